"""The backbones by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from satm_tf.configurable import look_up
from satm_tf.models.weights import PublishedWeights, load_weights


@dataclass(frozen=True)
class Backbone:
    """How to build a backbone, and what comes before and after it.

    Attributes:
        build: Function of `input_shape`, `(height, width, 3)`, that gives a Keras model from preprocessed images
            `[batch, height, width, 3]` to a feature map `[batch, h, w, channels]` or to features `[batch, channels]`.
        preprocessing: Arguments of `Preprocessing` that give the input on which the backbone was trained.
        pooling: What turns a feature map into features: "avg", "max" or "flatten"; None if the backbone gives features.
        dropout: Default rate of the dropout before the classification layer.
        default_size: Default height and width of the images.
        minimum_size: The smallest height and width of images that it accepts.
        resize_below: Images with a side smaller than this are resized to `default_size` in the graph, because the
            backbone cannot work on them as they are.
        published: Published weights, by the name in `weights`.
        load: Function of the backbone and a path that loads a weights file or refuses it.
        folded: Whether batch normalisation is folded into the published weights, so that `restore_batch_norm` must
            measure its statistics before training.
    """

    build: Callable[[tuple[int, int, int]], keras.Model]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    pooling: str | None = "avg"
    dropout: float = 0.0
    default_size: int = 224
    minimum_size: int = 32
    resize_below: int = 0
    published: Mapping[str, PublishedWeights] = field(default_factory=dict)
    load: Callable[[keras.Model, Path], None] = load_weights
    folded: bool = False


_BACKBONES: dict[str, Backbone] = {}


def register_backbone(name: str, **facts: Any) -> Callable[[Callable[..., keras.Model]], Callable[..., keras.Model]]:
    """Registers a function that builds a backbone, so that `from_backbone` and configurations can name it.

    Args:
        name: The name.
        **facts: The attributes of `Backbone` other than `build`.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        ValueError: If another function has the name.

    Example:
        >>> @register_backbone("tiny", preprocessing={"scale": 2.0, "offset": -1.0}, default_size=16, minimum_size=8)
        ... def tiny(input_shape):
        ...     images = keras.Input(input_shape)
        ...     return keras.Model(images, keras.layers.Conv2D(8, 3, activation="relu")(images))
        >>> "tiny" in available_backbones()
        True
    """

    def register(build: Callable[..., keras.Model]) -> Callable[..., keras.Model]:
        # A notebook's cell that is run again defines the same function anew.
        if name in _BACKBONES and _origin(_BACKBONES[name].build) != _origin(build):
            raise ValueError(f"There is already a backbone of this name; choose another name. Received: {name!r}")
        _BACKBONES[name] = Backbone(build, **facts)
        return build

    return register


def _origin(build: Callable[..., keras.Model]) -> tuple[object, object]:
    return getattr(build, "__module__", build), getattr(build, "__qualname__", build)


def available_backbones() -> list[str]:
    """The names that `ImageClassifier.from_backbone` takes."""
    return sorted(_BACKBONES)


def get_backbone(name: str) -> Backbone:
    """The backbone of this name.

    Raises:
        ValueError: If there is no such backbone; the message gives the nearest name.
    """
    return look_up("backbone", name, _BACKBONES)
