"""One compiled function for all networks of one architecture: tracing a network takes seconds, copying it does not."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import keras

from satm_tf.evaluation.blocks import architecture
from satm_tf.models import ImageClassifier
from satm_tf.models.files import LoadedModel

Function = Callable[..., Any]


class StandIns:
    """Compiles functions of networks once for each architecture, on a copy that takes the weights of each network.

    A network that is no `ImageClassifier`, whose architecture no other one has, or that Keras cannot copy, is used
    itself.

    Args:
        networks: All networks that functions will be compiled for. Their weights must not change.

    Example:
        >>> stand_ins = StandIns(networks.values())
        >>> craft = stand_ins.compiled("pgd", pgd.compiled, networks["satm/vgg"])
        >>> adversarial = craft(images, labels)
    """

    def __init__(self, networks: Iterable[Any]):
        alike = defaultdict(list)
        for network in {id(each): each for each in networks}.values():
            inner = _classifier(network)
            if inner is not None:
                kind = type(network), getattr(network, "input_range", None)
                alike[_nameless(architecture(inner)), kind].append(network)
        self._alike = {id(network): same for same in alike.values() if len(same) > 1 for network in same}
        self._stand_ins: dict[int, _StandIn | None] = {}
        self._functions: dict[Hashable, Function] = {}

    def forget(self) -> None:
        """Drops all compiled functions, which hold memory."""
        self._functions.clear()

    def compiled(self, key: Hashable, make: Callable[[Any], Function], network: Any) -> Function:
        """A function of a network, compiled once for its architecture.

        Args:
            key: What tells this function from others of the same network.
            make: Returns the function of the network that it is given.
            network: One of the networks.
        """
        stand_in = self._stand_in(network)
        place = id(network if stand_in is None else stand_in), key
        if place not in self._functions:
            self._functions[place] = make(network if stand_in is None else stand_in.network)
        function = self._functions[place]
        if stand_in is None:
            return function

        def call(*args: Any, **kwargs: Any) -> Any:
            stand_in.take(network)
            return function(*args, **kwargs)

        return call

    def _stand_in(self, network: Any) -> _StandIn | None:
        same = self._alike.get(id(network))
        if same is None:
            return None
        if id(same) not in self._stand_ins:
            self._stand_ins[id(same)] = None
            # Keras cannot make a layer again whose class is not registered, or that is a function.
            with contextlib.suppress(TypeError, ValueError):
                self._stand_ins[id(same)] = _StandIn(same[0])
        return self._stand_ins[id(same)]


class _StandIn:
    def __init__(self, original: Any):
        saved = keras.saving.serialize_keras_object(_classifier(original))
        self._copy = keras.saving.deserialize_keras_object(saved)
        self._holds: Any = None
        self.network = original.around(self._copy) if isinstance(original, LoadedModel) else self._copy

    def take(self, network: Any) -> None:
        if self._holds is not network:
            self._copy.set_weights(_classifier(network).get_weights())
            self._holds = network


def _classifier(network: Any) -> Any:
    """The `ImageClassifier` that a network is, or that it is loaded from; None if there is none."""
    inner = network.network if isinstance(network, LoadedModel) else network
    return inner if isinstance(inner, ImageClassifier) else None


# Where a Keras configuration names layers; elsewhere the same text may say what a layer does.
_NAMES = ("name", "keras_history", "input_layers", "output_layers")


def _nameless(architecture: str) -> str:
    """An architecture with its names, which Keras counts up, replaced by numbers in their order."""
    numbers: dict[str, str] = {}

    def replaced(part: Any, key: str = "") -> Any:
        if isinstance(part, dict) and str(part.get("class_name")).endswith("DTypePolicy"):
            return part  # whose name is what it does
        if isinstance(part, dict):
            return {each: replaced(value, each) for each, value in part.items()}
        if isinstance(part, list):
            return [replaced(each, key) for each in part]
        return numbers.setdefault(part, str(len(numbers))) if isinstance(part, str) and key in _NAMES else part

    return json.dumps(replaced(json.loads(architecture)))
