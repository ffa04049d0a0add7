"""Who crafts for whom in a step, with which attack and which random numbers."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from satm_tf.attacks import Attack
from satm_tf.models import ImageClassifier
from satm_tf.training.crafted_once import CraftedOnce, Crafter
from satm_tf.training.distribution import on_device
from satm_tf.training.passes import forward, in_training_mode
from satm_tf.training.recall import Recalled
from satm_tf.training.scheme import Scheme

_fold_in = tf.random.experimental.stateless_fold_in


class Batch(NamedTuple):
    """The batch that a step crafts from; `rows` are the images' numbers in their data, int64 `[batch]`, if known."""

    images: tf.Tensor
    labels: tf.Tensor
    rows: tf.Tensor | None = None

    def take(self, places: tf.Tensor) -> Batch:
        """The images at some positions of the batch."""
        return Batch(*(None if each is None else tf.gather(each, places) for each in self))


class Crafted(NamedTuple):
    """The adversarial batches from which a network learns in a step.

    Attributes:
        batches: k adversarial batches `[batch, height, width, 3]`.
        sources: Which of the network's sources made each of them, int32 `[k]`, or `[k, batch]` if several did.
        peers: Logits of the network's peers on them, as constants, `[peers, k, batch, classes]`; empty if unused.
        weights: How much each of them counts, float32 `[k]`, with sum 1; None if all count equally.
    """

    batches: Sequence[tf.Tensor] = ()
    sources: tf.Tensor | None = None
    peers: tf.Tensor | None = None
    weights: tf.Tensor | None = None


class Crafting:
    """Crafts the adversarial batches of each step.

    Args:
        scheme: The scheme.
        sources: The sources of each network that trains, in the order of their turns.
        networks: The networks that train, by name.
        others: The other sources by name: frozen networks, sparring partners, earlier states of networks.
        devices: The devices of networks that have their own.
        seed: Seed of the random numbers.
        progress: Returns the share of the planned steps that is done.
        kept: The examples that are crafted once, if the scheme has any.

    Attributes:
        learners: The networks that have any sources.
        attacks: What each learner's sources craft with, by learner and source.
    """

    def __init__(
        self,
        scheme: Scheme,
        sources: Mapping[str, Sequence[str]],
        networks: Mapping[str, ImageClassifier],
        others: Mapping[str, Any],
        *,
        devices: Mapping[str, str],
        seed: int,
        progress: Callable[[], tf.Tensor],
        kept: CraftedOnce | None = None,
    ):
        self.scheme = scheme
        self.sources = sources
        self.networks = networks
        self.devices = devices
        self.seed = seed
        self.progress = progress
        self.kept = kept
        self.learners = [name for name, its in sources.items() if its]
        # A source's random numbers depend on its position here.
        self._crafters: dict[str, Any] = {**networks, **others}
        self.attacks = scheme.attacks(sources, networks)
        self._weights = {(name, its): scheme.weight_of(its, name, its in networks) for name, its in self.attacks}
        counts = [len(sources[name]) if scheme.mixing == "steps" else 1 for name in self.learners]
        self._period = math.lcm(*counts)

    def craft_once(self, split: str, batches: tf.data.Dataset, *, quiet: bool) -> None:
        """Crafts the examples that steps will read from `kept`: the scheme's number of copies, or one for validation.

        The arguments are those of `CraftedOnce.prepare`.
        """
        if self.kept is not None:
            crafters = {Crafter(source, attack): self._crafters[source] for (_, source), attack in self.attacks.items()}
            copies = self.scheme.crafted_once if split == "training" else 1
            self.kept.prepare(split, batches, crafters, copies, quiet=quiet)

    def for_training(self, batch: Batch, step: tf.Tensor) -> dict[str, Crafted]:
        """The examples of a training step for each network that learns, according to the scheme's `mixing`."""
        if self.kept is not None and batch.rows is None:
            raise ValueError(
                "With crafted_once, a step looks up examples by image number, which only `fit` provides; use `fit`, "
                "or crafted_once=0. Received: images without numbers"
            )
        if not self.learners:
            return {}
        if self.scheme.mixing == "images":
            return self._by_image(batch, step)
        if self.scheme.mixing == "all":
            return self._in_turn(None, batch, step, training=True)
        turns = [functools.partial(self._in_turn, turn, batch, step, training=True) for turn in range(self._period)]
        return turns[0]() if self._period == 1 else tf.switch_case(tf.cast(step % self._period, tf.int32), turns)

    def for_validation(self, batch: Batch) -> dict[str, Crafted]:
        """The validation examples for each network that learns: batches of all its sources, with fixed noise."""
        return self._in_turn(None, batch, tf.constant(-1, tf.int64), training=False)

    def _in_turn(self, turn: int | None, batch: Batch, step: tf.Tensor, training: bool) -> dict[str, Crafted]:
        """The examples of the source whose turn it is for each network, or of all its sources without a turn."""
        counts = {name: len(self.sources[name]) for name in self.learners}
        ids = {name: list(range(count)) if turn is None else [turn % count] for name, count in counts.items()}
        pairs = [(name, self.sources[name][index]) for name in self.learners for index in ids[name]]
        crafted = self.craft(pairs, batch, step, training)
        batches = {name: [crafted[name, self.sources[name][index]] for index in ids[name]] for name in ids}
        return {
            name: Crafted(
                batches[name],
                tf.constant(ids[name]),
                self._ask_peers(name, batches[name]),
                self._shares(name, ids[name]) if self.scheme.source_weights else None,
            )
            for name in ids
        }

    def _shares(self, name: str, ids: Sequence[int]) -> tf.Tensor:
        weights = np.array([self._weights[name, self.sources[name][index]] for index in ids], np.float32)
        return tf.constant(weights / weights.sum())

    def craft(
        self, pairs: Iterable[tuple[str, str]], batch: Batch, step: tf.Tensor, training: bool
    ) -> dict[tuple[str, str], tf.Tensor]:
        """Adversarial images for each pair of learner and source; shared ones are crafted once."""
        seed = self._seed(step, training)
        made: dict[tuple[str, Attack], tf.Tensor] = {}
        crafted = {}
        for name, source in pairs:
            attack = self.attacks[name, source]
            if (source, attack) not in made:
                made[source, attack] = self._craft(source, attack, batch, step, seed, training)
            crafted[name, source] = made[source, attack]
        return crafted

    def _seed(self, step: tf.Tensor, training: bool) -> tf.Tensor:
        seed = _fold_in(tf.constant([self.seed, 0]), step)
        if training and tf.distribute.get_strategy().num_replicas_in_sync > 1:
            seed = _fold_in(seed, tf.distribute.get_replica_context().replica_id_in_sync_group)
        return seed

    def _craft(
        self, source: str, attack: Attack, batch: Batch, step: tf.Tensor, seed: tf.Tensor, training: bool
    ) -> tf.Tensor:
        own = _fold_in(seed, list(self._crafters).index(source))
        if self.kept is not None and batch.rows is not None:
            split = "training" if training else "validation"
            return self.kept.read(split, source, attack, batch.images, batch.rows, own)
        epsilon = tf.constant(attack.epsilon, tf.float32)
        schedule: Any = self.scheme.epsilon_schedule
        if training and schedule is not None:
            epsilon *= schedule.share(self.progress(), tf.shape(batch.images)[0], _fold_in(own, -1))
        network = self._crafters[source]
        if isinstance(network, Recalled):
            # Each source in turn. Validation has step -1, and so always the last.
            network = network.at(tf.cast(step // self._period % network.slots, tf.int32))
        elif training and self.scheme.crafting_mode == "training" and source in self.sources:
            network = in_training_mode(network)
        with on_device(self.devices, source):
            return attack(network, batch.images, batch.labels, epsilon=epsilon, seed=own)

    def _by_image(self, batch: Batch, step: tf.Tensor) -> dict[str, Crafted]:
        """One batch for each network, of which each of its sources crafts a share.

        Networks with the same sources, attacks and weights share the batch. If a source crafts the whole batch for a
        network without other sources, its images are taken from there.
        """
        seed, count = self._seed(step, training=True), tf.shape(batch.images)[0]
        single = [(name, self.sources[name][0]) for name in self.learners if len(self.sources[name]) == 1]
        alone = self.craft(single, batch, step, training=True)
        whole = {(source, self.attacks[name, source]): made for (name, source), made in alone.items()}
        order = tf.argsort(tf.random.stateless_uniform([count], _fold_in(seed, -1)))
        rounding = tf.random.stateless_uniform([], _fold_in(seed, -2))
        mixed: dict[tuple[Any, ...], tuple[tf.Tensor, tf.Tensor]] = {}
        crafted = {}
        for name in self.learners:
            its = sorted(self.sources[name], key=list(self._crafters).index)
            if len(its) == 1:
                adversarial, chosen = alone[name, its[0]], tf.zeros([count], tf.int32)
            else:
                key = tuple((each, self.attacks[name, each], self._weights[name, each]) for each in its)
                if key not in mixed:
                    mixed[key] = self._shared_out(key, whole, batch, step, seed, order, rounding)
                adversarial, chosen = mixed[key]
            ids = tf.gather(tf.constant([list(self.sources[name]).index(each) for each in its]), chosen)
            crafted[name] = Crafted([adversarial], ids[None], self._ask_peers(name, [adversarial]))
        return crafted

    def _shared_out(
        self,
        key: Sequence[tuple[str, Attack, float]],
        whole: Mapping[tuple[str, Attack], tf.Tensor],
        batch: Batch,
        step: tf.Tensor,
        seed: tf.Tensor,
        order: tf.Tensor,
        rounding: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """A batch of which each source crafts its share, and each image's source, an index into `key`, int32 `[batch]`.

        A share is a contiguous part of `order`. `rounding`, in [0, 1), rounds shares up or down: right on average.
        """
        weights = np.array([weight for *_, weight in key])
        count = tf.shape(order)[0]
        ends = tf.cast(
            tf.floor(np.cumsum(weights / weights.sum()) * tf.cast(count, tf.float64) + tf.cast(rounding, tf.float64)),
            tf.int32,
        )
        bounds = [tf.zeros([], tf.int32), *tf.unstack(ends)[:-1], count]
        parts = []
        for (source, attack, _), begin, end in zip(key, bounds[:-1], bounds[1:], strict=True):
            if (source, attack) in whole:
                parts.append(tf.gather(whole[source, attack], order[begin:end]))
                continue
            # At least one image: TensorFlow's convolutions may fail on an empty batch.
            first = tf.minimum(begin, count - 1)
            places = order[first : tf.maximum(end, first + 1)]
            made = self._craft(source, attack, batch.take(places), step, seed, training=True)
            parts.append(made[: end - begin])
        back = tf.argsort(order)
        chosen = tf.repeat(tf.range(len(key)), [end - begin for begin, end in itertools.pairwise(bounds)])
        adversarial = tf.ensure_shape(tf.gather(tf.concat(parts, 0), back), batch.images.shape)
        return adversarial, tf.gather(chosen, back)

    def by_source(self, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        """The adversarial images of each source, as validation uses them."""
        crafted = self.craft(self.attacks, Batch(images, labels), tf.constant(-1, tf.int64), training=False)
        return {source: adversarial for (_, source), adversarial in crafted.items()}

    def _ask_peers(self, name: str, batches: Sequence[tf.Tensor]) -> tf.Tensor:
        if not (batches and self.scheme.terms_of(name).peer_weight):
            return tf.zeros([0])
        answers = []
        for peer, network in self.networks.items():
            if peer != name:
                with on_device(self.devices, peer):
                    answers.append(forward(network, batches, training=False).logits)
        return tf.stop_gradient(tf.stack(answers))
