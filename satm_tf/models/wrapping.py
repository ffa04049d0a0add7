"""Splits a trained Keras classifier into its features, its head and its output activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from satm_tf.configurable import unknown_name
from satm_tf.models.runtimes import first_line

_ADVICE = (
    "Give a model that ends in a Dense layer with one output per class, with a softmax or without, or in one output "
    "with a sigmoid; or name the layer before the head with features="
)


class Parts(NamedTuple):
    """A classifier in two parts, whose layers are those of the model itself.

    Attributes:
        body: From images in the model's own range to its features.
        head: From features to logits; a Dense layer that is linear, or a model.
        answers: The function from logits `[batch, classes]` to the model's own outputs.
    """

    body: keras.Model
    head: keras.layers.Layer
    answers: Callable[[Any], Any]


def take_apart(model: keras.Model, image_shape: tuple[int, ...], *, features: str | None, binary: bool) -> Parts:
    """Finds features, head and activation of a classifier.

    Args:
        model: Any model whose `call` can be traced with a Keras tensor.
        image_shape: `(height, width, channels)` of its images.
        features: Name of the layer whose output goes to the head; None takes the input of the last Dense layer.
        binary: Whether a single output without activation is the logit of the second of two classes.

    Raises:
        ValueError: If the model cannot be taken apart.
    """
    inputs = keras.Input(image_shape, name="images")
    try:
        flat = keras.Model(inputs, model.call(inputs))
        while isinstance(_last(flat), keras.Model):
            flat = _rebuilt(flat, _last(flat).call)
    except Exception as error:  # whatever the model's own code raises
        raise ValueError(
            f"{model.name} cannot be traced as a graph of Keras layers; write its call with keras.layers and keras.ops "
            f"without branches on values, and with one output. Received: {first_line(error)}"
        ) from error
    if {id(each) for each in model.weights} != {id(each) for each in flat.weights}:
        raise ValueError(
            f"All weights of {model.name} must belong to layers that its call uses; remove unused weights, and move "
            f"weights that are used directly into a layer. Received: {len(model.weights)} weights, "
            f"{len(flat.weights)} of them in layers of the graph"
        )
    flat, activation = _without_activation(flat)
    units = flat.output_shape[-1]
    two = units == 1 and (activation == "sigmoid" or (binary and activation == "linear"))
    if len(flat.output_shape) != 2 or not (two or (units > 1 and activation in ("linear", "softmax"))):
        raise ValueError(f"{_ADVICE}. Received: outputs of shape {flat.output_shape}, activation {activation}")
    last = _last(flat)
    dense = isinstance(last, keras.layers.Dense)
    if not dense and (features is None or two):
        raise ValueError(f"{_ADVICE}. Received: {last.name} ({type(last).__name__}) as the last layer of {model.name}")
    linear = _linear(last, two) if dense else None
    if features is None:
        body, head = _rebuilt(flat, lambda outputs: outputs), linear
    else:
        names = [layer.name for layer in flat.layers[1:-1]]
        if features not in names:
            raise unknown_name(f"layer before the head of {model.name}", features, names)
        outputs: dict[str, Any] = {}
        logits = _rebuilt(flat, linear or last, outputs)
        body = keras.Model(logits.inputs, outputs[features])
        head = keras.Model(outputs[features], logits.outputs[0])
    return Parts(body, head, _ANSWERS["binary_" * two + activation])


_ANSWERS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda logits: logits,
    "softmax": keras.ops.softmax,
    "binary_linear": lambda logits: logits[:, 1:] - logits[:, :1],
    "binary_sigmoid": lambda logits: keras.ops.softmax(logits)[:, 1:],
}


def _last(model: keras.Model) -> Any:
    return model.operations[-1]


def _rebuilt(model: keras.Model, change: Callable[..., Any], outputs: dict[str, Any] | None = None) -> keras.Model:
    """The same graph of the same layers with the last one replaced; `outputs` receives each output.

    A layer's `output` is ambiguous here: a layer in several graphs has one in each.
    """
    last = _last(model)

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        result = change(*args) if operation is last else operation(*args, **kwargs)
        if outputs is not None:
            outputs[operation.name] = result
        return result

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)


def _without_activation(model: keras.Model) -> tuple[keras.Model, str]:
    """The model without a final softmax or sigmoid layer, and the name of what was removed."""
    last = _last(model)
    activation = getattr(last, "activation", None)
    if isinstance(last, keras.layers.Dense):
        return model, str(keras.activations.serialize(activation))
    name = type(last).__name__.lower() if activation is None else str(keras.activations.serialize(activation))
    if name not in ("softmax", "sigmoid", "linear") or model.operations[-1:] == model.operations[:1]:
        return model, "linear"
    before = _rebuilt(model, lambda outputs: outputs)
    if isinstance(_last(before), keras.Model):
        before = _rebuilt(before, _last(before).call)
    inner = getattr(_last(before), "activation", keras.activations.linear)
    if isinstance(_last(before), keras.layers.Dense) and inner is not keras.activations.linear:
        raise ValueError(f"{_ADVICE}. Received: {keras.activations.serialize(inner)} and then {name}")
    return before, name


def _linear(dense: keras.layers.Dense, two: bool) -> keras.layers.Dense:
    """The Dense layer without its activation; one output becomes two, the first of them always 0."""
    kernel = np.asarray(dense.kernel, "float32")
    bias = np.asarray(dense.bias if dense.use_bias else np.zeros(dense.units), "float32")
    if two:
        kernel, bias = np.pad(kernel, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
    linear = keras.layers.Dense(kernel.shape[1], dtype="float32", name="classification")
    linear.build((None, kernel.shape[0]))
    linear.set_weights([kernel, bias])
    return linear
