"""The image classifier that everything else in the package trains, attacks, measures and exports."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from satm_tf.configurable import unknown_name
from satm_tf.models.preprocessing import Preprocessing
from satm_tf.models.registry import get_backbone
from satm_tf.models.runtimes import load_keras, loading
from satm_tf.models.weights import find_weights, weights_record
from satm_tf.models.wrapping import take_apart

_POOLING = {
    "avg": keras.layers.GlobalAveragePooling2D,
    "max": keras.layers.GlobalMaxPooling2D,
    "flatten": keras.layers.Flatten,
}


@keras.saving.register_keras_serializable(package="satm_tf")
class ImageClassifier(keras.Model):
    """A backbone between its own preprocessing and a linear classification layer: images in [0, 1] to logits.

    `preprocessing -> backbone -> pooling = features -> dropout -> classification layer = logits`. The features feed the
    classification layer, and domain adaptation uses them. All but the backbone is float32 whatever the dtype policy.

    Args:
        backbone: Keras model from preprocessed images `[batch, height, width, 3]` to a feature map
            `[batch, h, w, channels]` or to features `[batch, channels]`.
        num_classes: Number of classes, at least 2.
        image_shape: `(height, width, 3)` of the images.
        preprocessing: The layer that the images pass first; None leaves them unchanged.
        pooling: "avg", "max" or "flatten" turns a feature map into features; None if the backbone gives features.
        dropout: Rate of the dropout before the classification layer, in [0, 1).
        initial_weights: The backbone's starting weights, for the run's record: `weights` as requested, the name of the
            `file` and its `sha256`; None for random weights. It has no effect, and is saved with the model.
        head: Model from features to logits `[batch, num_classes]`; None takes a randomly initialised linear layer.
        null_class: Whether the linear layer has one more output, for adversarial images, which a scheme's `null_share`
            trains. It is not among the logits; `answers` returns it.
        **kwargs: `name`, `dtype`, `trainable`, as any Keras model takes.

    Raises:
        ValueError: If there are fewer than two classes, the pooling is unknown or does not fit the backbone, or a
            network with a head of another kind is to have a null class.

    Example:
        >>> network = ImageClassifier.from_backbone("compact_resnet", num_classes=8, image_shape=(48, 48, 3))
        >>> network(tf.zeros([2, 48, 48, 3])).shape
        TensorShape([2, 8])
    """

    gives_logits = True

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        *,
        image_shape: tuple[int, int, int],
        preprocessing: keras.layers.Layer | None = None,
        pooling: str | None = "avg",
        dropout: float = 0.0,
        initial_weights: Mapping[str, str] | None = None,
        head: keras.Model | None = None,
        null_class: bool = False,
        **kwargs: Any,
    ):
        # Under mixed precision Keras would round the images before the preprocessing sees them, and perturbations with
        # them. So each inner layer casts its own inputs.
        super().__init__(autocast=False, **kwargs)
        if num_classes < 2:
            raise ValueError(f"A classifier needs at least two classes. Received: num_classes={num_classes}")
        if pooling is not None and pooling not in _POOLING:
            raise unknown_name("pooling", pooling, _POOLING)
        if null_class and head is not None:
            raise ValueError(f"Only a linear classification layer can have a null class. Received: head={head.name!r}")
        self.backbone = backbone
        self.num_classes = num_classes
        self.image_shape = tuple(image_shape)
        self.preprocessing = preprocessing or Preprocessing()
        self.pooling = pooling
        self.dropout = dropout
        self.initial_weights = dict(initial_weights) if initial_weights else None
        self._pool = _POOLING[pooling](dtype="float32", name="pooling") if pooling else None
        self._dropout = keras.layers.Dropout(dropout, dtype="float32", name="dropout")
        self.head = head
        self.null_class = null_class
        outputs = num_classes + null_class
        self._classification = head or keras.layers.Dense(outputs, dtype="float32", name="classification")
        self.build((None, *self.image_shape))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Does nothing: the constructor has created the weights."""
        if self.built:
            return
        shape = self.backbone.compute_output_shape(self.preprocessing.compute_output_shape(input_shape))
        if (len(shape) == 4) != (self._pool is not None):
            raise ValueError(
                "A backbone that gives a feature map needs a pooling; one that gives features takes none. Received: "
                f"pooling={self.pooling!r} and a backbone with output shape {tuple(shape)}"
            )
        features = prod(shape[1:]) if self.pooling == "flatten" else shape[-1]
        if self.head is None:
            self._classification.build((None, features))
        self.feature_size = int(features)
        super().build(input_shape)

    @classmethod
    def from_backbone(
        cls,
        backbone: str,
        /,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int] | None = None,
        weights: str | None = None,
        dropout: float | None = None,
        resize_to: int | None = None,
        **kwargs: Any,
    ) -> ImageClassifier:
        """Builds a classifier on a registered backbone, with that backbone's preprocessing and pooling.

        Args:
            backbone: One of `available_backbones()`.
            num_classes: Number of classes, at least 2.
            image_shape: `(height, width, 3)`; None takes the backbone's default size.
            weights: The backbone's starting weights: the name of published ones ("vggface", "imagenet"), which are
                downloaded once; the path of an HDF5 file of its weights; or None for random weights.
            dropout: Rate of the dropout before the classification layer, in [0, 1); None takes the backbone's, which is
                0 except for networks published with dropout.
            resize_to: Height and width at which the backbone sees the images, resized in the graph; None keeps their
                size, unless they are too small for the backbone.
            **kwargs: `name` (the backbone's if not given), `dtype` and `trainable`, as any Keras model takes.

        Raises:
            ValueError: If the backbone is unknown, the images are too small for it, or the weights do not fit it.
            OSError: If published weights cannot be downloaded.
        """
        spec = get_backbone(backbone)
        shape = tuple(image_shape or (spec.default_size, spec.default_size, 3))
        if len(shape) != 3 or shape[2] != 3 or min(shape[:2]) < spec.minimum_size:
            raise ValueError(
                f"Backbone {backbone!r} takes images of shape (height, width, 3), "
                f"of at least {spec.minimum_size} x {spec.minimum_size}. Received: image_shape={shape}"
            )
        if resize_to is None and min(shape[:2]) < spec.resize_below:
            resize_to = spec.default_size
        if resize_to is not None and resize_to < max(spec.minimum_size, spec.resize_below):
            raise ValueError(
                f"Backbone {backbone!r} works on at least {max(spec.minimum_size, spec.resize_below)} pixels per "
                f"side. Received: resize_to={resize_to}"
            )
        size = (resize_to, resize_to) if resize_to else None
        file = find_weights(backbone, weights, spec.published) if weights is not None else None
        network = spec.build((*(size or shape[:2]), 3))
        if weights is not None and file is not None:
            spec.load(network, file)
            kwargs["initial_weights"] = weights_record(weights, file)
        return cls(
            network,
            num_classes,
            image_shape=shape,
            preprocessing=Preprocessing(**spec.preprocessing, size=size),
            pooling=spec.pooling,
            dropout=spec.dropout if dropout is None else dropout,
            **{"name": backbone, **kwargs},
        )

    @classmethod
    def from_keras(
        cls,
        model: keras.Model | str | os.PathLike[str],
        input_range: tuple[float, float] = (0, 255),
        *,
        class_names: Sequence[str] | None = None,
        features: str | None = None,
        sample: Any = None,
        name: str | None = None,
    ) -> ImageClassifier:
        """Converts a trained Keras classifier, including its head, so that its answers stay the same.

        The softmax, or the sigmoid of a model with one output, is removed, and the range of the images moves into the
        graph. The classifier is a copy: training it does not change the model. KerasHub's `preprocessor` is not part of
        the network, so `input_range` is the range of its output.

        Args:
            model: A functional, Sequential, nested or subclassed model from images `[batch, height, width, channels]`
                to logits or probabilities `[batch, classes]`, or to one output with a sigmoid; or its `.keras` file. A
                subclassed model's `call` must work on Keras tensors. An `ImageClassifier` is returned as it is.
            input_range: The range of pixel values that the model expects, (lowest, highest).
            class_names: The classes, to check their number; with two of them, one output without activation is the
                logit of the second.
            features: Name of the layer whose output `features` gives; None takes the input of the last Dense layer.
                Required if the model does not end in a Dense layer.
            sample: Images `[n, height, width, channels]` in `input_range`, on which the answers are compared; None
                takes noise. Required for a model without a fixed size.
            name: The classifier's name; None takes the model's.

        Raises:
            ValueError: If the model cannot be taken apart, copied or saved, an argument does not fit it, or the
                classifier's answers would differ from the model's by more than 1e-5.

        Example:
            >>> network = ImageClassifier.from_keras("mine.keras", input_range=(0, 255))
            >>> network(images / 255)  # the logits behind the model's probabilities of `images`
        """
        if isinstance(model, (str, os.PathLike)):
            if not Path(model).is_file():
                raise FileNotFoundError(f"No model was found at this path. Received: {os.fspath(model)}")
            model = load_keras(Path(model))
        if isinstance(model, cls):
            return model
        if not isinstance(model, keras.Model):
            raise ValueError(f"The model must be a Keras model or its .keras file. Received: {type(model).__name__}")
        low, high = map(float, input_range)
        if not low < high:
            raise ValueError(f"input_range must be the lowest and the highest value. Received: {input_range}")
        shape = tuple(getattr(model, "input_shape", (None,))[1:]) if sample is None else np.shape(sample)[1:]
        if len(shape) != 3 or None in shape:
            raise ValueError(
                f"{model.name} does not define its image size; pass images as sample, [n, height, width, channels]. "
                f"Received: images of shape {shape}"
            )
        images = keras.random.uniform((4, *shape), low, high, seed=0) if sample is None else np.asarray(sample)
        images = keras.ops.cast(images, "float32")
        if not low <= float(keras.ops.min(images)) <= float(keras.ops.max(images)) <= high:
            raise ValueError(
                f"The sample must lie in input_range, {tuple(input_range)}. "
                f"Received: {float(keras.ops.min(images))} to {float(keras.ops.max(images))}"
            )
        expected = keras.ops.cast(model(images, training=False), "float32")
        parts = take_apart(model, shape, features=features, binary=len(class_names or ()) == 2)
        head = parts.head
        classes = int(head.units if isinstance(head, keras.layers.Dense) else head.output_shape[-1])
        if class_names is not None and len(class_names) != classes:
            raise ValueError(f"The model has {classes} classes. Received: {len(class_names)} class_names")
        shared = cls(
            parts.body,
            classes,
            image_shape=shape,
            preprocessing=Preprocessing(scale=high - low, offset=low),
            pooling=None,
            head=None if isinstance(head, keras.layers.Dense) else head,
            name=name or model.name,
        )
        shared._classification.set_weights(head.get_weights())
        with loading(f"A copy of {model.name}"):
            network = cls.from_config(shared.get_config())
            network.set_weights(shared.get_weights())
        answers = parts.answers(network((images - low) / (high - low), training=False))
        difference = float(keras.ops.max(keras.ops.abs(answers - expected)))
        if not difference <= 1e-5 * (1 + float(keras.ops.max(keras.ops.abs(expected)))):
            raise ValueError(
                f"The classifier must give the same answers as {model.name}, to 1e-5; check that the model is float32 "
                f"and uses no random numbers in inference. Received: a difference of {difference:.2g}"
            )
        return network

    def features(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The float32 features `[batch, feature_size]` of float images `[batch, height, width, 3]` in [0, 1]."""
        outputs = tf.cast(self.backbone(self.preprocessing(images), training=training), tf.float32)
        return self._pool(outputs) if self._pool else outputs

    def classify(self, features: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The float32 logits `[batch, num_classes]` of features `[batch, feature_size]`."""
        return self.answers(features, training=training)[0]

    def answers(self, features: tf.Tensor, training: bool | None = None) -> tuple[tf.Tensor, tf.Tensor | None]:
        """What `classify` gives, and the float32 log-odds `[batch]` of the null class, or None if there is none.

        The log-odds are the null class's output minus the logarithm of the sum of the others' exponentials: their
        sigmoid is the probability that a softmax over all outputs gives the null class.
        """
        outputs = self._classification(self._dropout(features, training=training))
        if not self.null_class:
            return outputs, None
        logits = outputs[:, :-1]
        return logits, outputs[:, -1] - tf.reduce_logsumexp(logits, axis=-1)

    def with_null_class(self) -> ImageClassifier:
        """A copy with one more output, for images that are adversarial, and the same logits.

        The output starts at a probability of nearly 0 for every image, and `null_share` of a scheme trains it.

        Raises:
            ValueError: If the network has a head that is not a linear layer.

        Example:
            >>> network = network.with_null_class()
            >>> CoTraining({"a": network}, "adversarial", null_share=1.0)
        """
        network = type(self).from_config({**self.get_config(), "null_class": True})
        *body, kernel, bias = self.get_weights()
        if not self.null_class:
            kernel = np.pad(kernel, [(0, 0), (0, 1)])
            bias = np.append(bias, np.float32(-10))  # the logits of trained classes are far above
        network.set_weights([*body, kernel, bias])
        return network

    def call(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The float32 logits `[batch, num_classes]` of float images `[batch, height, width, 3]` in [0, 1]."""
        return self.classify(self.features(images, training=training), training=training)

    def freeze_backbone(self) -> None:
        """Makes only the classification layer trainable, as in the first of the two usual stages of fine-tuning.

        Frozen batch normalisation uses its moving statistics and does not update them, whatever `training` says, so
        apart from dropout the backbone computes the same in training as in inference. Compile afterwards: a compiled
        model keeps training the variables that it was compiled with. `network.backbone.trainable = True` undoes it.
        """
        self.backbone.trainable = False

    def fine_tune_from(self, layer: str, *, freeze_batch_norm: bool = False) -> None:
        """Trains the backbone from one of its layers on, in the order of `backbone.layers`; those before are frozen.

        Frozen layers behave as described in `freeze_backbone`. Compile afterwards.

        Args:
            layer: Name of the first layer to train, such as `"conv5_1"`.
            freeze_batch_norm: Whether batch normalisation stays frozen in the trained layers too, which keeps
                pre-trained statistics when batches are small.

        Raises:
            ValueError: If the backbone has no such layer.

        Example:
            >>> network = ImageClassifier.from_backbone("vgg16_face", num_classes=8)
            >>> network.freeze_backbone()  # then compile and fit
            >>> network.fine_tune_from("conv5_1")  # then compile again, with a smaller learning rate, and fit
        """
        names = [each.name for each in self.backbone.layers]
        if layer not in names:
            weighted = [each.name for each in self.backbone.layers if each.weights]
            raise unknown_name(f"layer of {self.name!r}", layer, weighted)
        self.backbone.trainable = True
        for index, each in enumerate(self.backbone.layers):
            batch_norm = isinstance(each, keras.layers.BatchNormalization)
            each.trainable = index >= names.index(layer) and not (freeze_batch_norm and batch_norm)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "backbone": serialize(self.backbone),
            "num_classes": self.num_classes,
            "image_shape": self.image_shape,
            "preprocessing": serialize(self.preprocessing),
            "pooling": self.pooling,
            "dropout": self.dropout,
            "initial_weights": self.initial_weights,
            "head": serialize(self.head) if self.head else None,
            "null_class": self.null_class,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> ImageClassifier:
        layers = {
            key: keras.saving.deserialize_keras_object(config[key], custom_objects=custom_objects)
            for key in ("backbone", "preprocessing", "head")
            if config.get(key) is not None
        }
        return cls(**{**config, **layers})
