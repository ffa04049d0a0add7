"""Who crafts for whom in a step, with which attack and which random numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import tensorflow as tf

from satm_tf.attacks import Attack
from satm_tf.models import ImageClassifier
from satm_tf.training.distribution import on_device
from satm_tf.training.passes import forward, in_training_mode
from satm_tf.training.scheme import Scheme

_fold_in = tf.random.experimental.stateless_fold_in


class Crafted(NamedTuple):
    """What a step gives a network to learn from.

    Attributes:
        batches: k adversarial batches `[batch, height, width, 3]`.
        sources: Which of the network's sources made each of them, int32 `[k]`.
        peers: Logits of the network's peers on them, as constants, `[peers, k, batch, classes]`; empty if unused.
    """

    batches: Sequence[tf.Tensor] = ()
    sources: tf.Tensor | None = None
    peers: tf.Tensor | None = None


class Crafting:
    """Crafts the adversarial batches of each step.

    Args:
        scheme: The scheme.
        networks: The networks that train, by name.
        frozen: The networks that only craft, by name.
        devices: Devices that networks have to themselves.
        seed: Seed of the random numbers.
        progress: Gives the share of the planned steps that is done.

    Attributes:
        sources: The sources of each network that trains, in the order of their turns.
        learners: The networks that have any.
    """

    def __init__(
        self,
        scheme: Scheme,
        networks: Mapping[str, ImageClassifier],
        frozen: Mapping[str, Callable[..., tf.Tensor]],
        *,
        devices: Mapping[str, str],
        seed: int,
        progress: Callable[[], tf.Tensor],
    ):
        self.scheme = scheme
        self.networks = networks
        self.devices = devices
        self.seed = seed
        self.progress = progress
        self.sources = MappingProxyType(scheme.sources(networks, frozen))
        self.learners = [name for name, sources in self.sources.items() if sources]
        self._crafters: dict[str, Any] = {**networks, **frozen}
        self._attacks = {
            (name, source): scheme.attack_on(source, name, trained=source in networks)
            for name in self.learners
            for source in self.sources[name]
        }

    def in_turn(self, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> dict[str, Crafted]:
        """What a training step gives each network that learns: batches of all its sources, or of the one in turn."""
        if not self.learners:
            return {}
        counts = [1 if self.scheme.all_sources else len(self.sources[name]) for name in self.learners]
        period = math.lcm(*counts)

        def craft(turn: int) -> dict[str, Crafted]:
            ids = {
                name: list(range(len(self.sources[name]))) if self.scheme.all_sources else [turn % count]
                for name, count in zip(self.learners, counts, strict=True)
            }
            return self._for_learners(ids, images, labels, step, training=True)

        turns = [functools.partial(craft, turn) for turn in range(period)]
        return turns[0]() if period == 1 else tf.switch_case(tf.cast(step % period, tf.int32), turns)

    def for_validation(self, images: tf.Tensor, labels: tf.Tensor) -> dict[str, Crafted]:
        """What validation gives each network that learns: batches of all its sources, with the same noise each time."""
        ids = {name: list(range(len(self.sources[name]))) for name in self.learners}
        return self._for_learners(ids, images, labels, tf.constant(-1, tf.int64), training=False)

    def _for_learners(
        self, ids: Mapping[str, list[int]], images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor, training: bool
    ) -> dict[str, Crafted]:
        pairs = [(name, self.sources[name][index]) for name in self.learners for index in ids[name]]
        crafted = self.craft(pairs, images, labels, step, training)
        batches = {name: [crafted[name, self.sources[name][index]] for index in ids[name]] for name in ids}
        return {
            name: Crafted(batches[name], tf.constant(ids[name]), self._ask_peers(name, batches[name])) for name in ids
        }

    def craft(
        self, pairs: Iterable[tuple[str, str]], images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor, training: bool
    ) -> dict[tuple[str, str], tf.Tensor]:
        """Adversarial images for each pair of learner and source; what two learners share is crafted once."""
        seed = _fold_in(tf.constant([self.seed, 0]), step)
        if training and tf.distribute.get_strategy().num_replicas_in_sync > 1:
            seed = _fold_in(seed, tf.distribute.get_replica_context().replica_id_in_sync_group)
        made: dict[tuple[str, Attack], tf.Tensor] = {}
        crafted = {}
        for name, source in pairs:
            attack = self._attacks[name, source]
            if (source, attack) not in made:
                own = _fold_in(seed, list(self._crafters).index(source))
                epsilon = tf.constant(attack.epsilon, tf.float32)
                schedule: Any = self.scheme.epsilon_schedule
                if training and schedule is not None:
                    epsilon *= schedule.share(self.progress(), tf.shape(images)[0], _fold_in(own, -1))
                network = self._crafters[source]
                if training and self.scheme.crafting_mode == "training" and source in self.networks:
                    network = in_training_mode(network)
                with on_device(self.devices, source):
                    made[source, attack] = attack(network, images, labels, epsilon=epsilon, seed=own)
            crafted[name, source] = made[source, attack]
        return crafted

    def by_source(self, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        """The adversarial images of each source, as validation uses them."""
        crafted = self.craft(self._attacks, images, labels, tf.constant(-1, tf.int64), training=False)
        return {source: adversarial for (_, source), adversarial in crafted.items()}

    def _ask_peers(self, name: str, batches: Sequence[tf.Tensor]) -> tf.Tensor:
        if not (self.scheme.peer_weight and batches):
            return tf.zeros([0])
        answers = []
        for peer, network in self.networks.items():
            if peer != name:
                with on_device(self.devices, peer):
                    answers.append(forward(network, batches, training=False).logits)
        return tf.stop_gradient(tf.stack(answers))
