"""The trainer: several networks at once, each on clean images and on adversarial examples of its sources."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import tensorflow as tf

from satm_tf.attacks.base import consensus
from satm_tf.attacks.sources import logits_of, refuse_probabilities
from satm_tf.models import ImageClassifier
from satm_tf.training.crafted_once import CraftedOnce
from satm_tf.training.crafting import Batch, Crafted, Crafting
from satm_tf.training.distribution import on_device
from satm_tf.training.fitting import Fitting
from satm_tf.training.guards import check_finite, check_networks, checked_batch
from satm_tf.training.losses import ClassificationLoss
from satm_tf.training.objective import Evaluated, Objective
from satm_tf.training.passes import batch_norm_variables, synchronize
from satm_tf.training.private_keras import count_step
from satm_tf.training.recall import Recalled
from satm_tf.training.scheme import (
    AdversarialLossLike,
    AttackLike,
    BatchNormLike,
    CraftingMode,
    DomainAdaptationLike,
    EpsilonScheduleLike,
    Mixing,
    PenaltyNorm,
    Scheme,
    WeightLike,
)
from satm_tf.training.sources import KINDS, LearnsFrom, split


class CoTraining(Fitting):
    """Trains one or more networks, each on clean images and on the adversarial examples of the networks it learns from.

    In each step, every source crafts with its current weights, before any update; then each network takes one gradient
    step on its own loss. The scheme decides who learns from whom, from which examples and with which weights, so this
    class does SATM, standard or ensemble adversarial training, TRADES, mutual learning, or plain fine-tuning; see
    `Scheme`. If epsilon is set in several places, the one given here overrides the scheme's, and the scheme's overrides
    each attack's; `epsilon_schedule` then scales that value.

    `fit` takes a data set of `(images, labels)`: float images `[batch, height, width, 3]` in [0, 1], integer labels
    `[batch]`. Sample weights scale the clean and the adversarial loss. The loss that `fit` reports, and `val_loss` with
    it, is the sum of the networks' losses. For each network there are `<name>_loss` and its parts before weighting
    (`_clean_loss`, `_adversarial_loss`, `_peer_loss`, `_gradient_loss`, `_teacher_loss`, `_domain_loss`),
    `<name>_accuracy` and `<name>_adversarial_accuracy`, the one-off accuracies likewise, and the metrics given to
    `compile`. In training, the adversarial metrics are for the source whose turn it is; validation uses every source,
    the full epsilon and the same noise each time.

    Under a `tf.distribute` strategy, create everything in its scope. A step then equals a single device's step on the
    global batch, including batch statistics: the networks' batch normalisation is synchronised. Only the random numbers
    of dropout and of attacks differ, because each replica draws its own.

    Args:
        networks: The networks to train, by name, all with the same image shape and number of classes.
        scheme: Name of a preset (see `SCHEMES`) or a `Scheme`; None is the default `Scheme()`.
        learns_from: Whose adversarial examples each network learns from. This and the following parameters, up to
            `crafted_once`, override the scheme's field of that name, see `Scheme`; None keeps the scheme's own.
        attack: What the sources craft with.
        epsilon: The epsilon of every attack.
        epsilon_schedule: Which share of epsilon a training step uses; "none" always uses all of it.
        mixing: How sources share a network's adversarial images: "steps", "images" or "all".
        source_weights: How much each source counts.
        snapshots: How many snapshots of a network the sources `past` replay.
        snapshot_steps: After how many steps a new snapshot replaces the oldest.
        crafting_mode: "inference" or "training".
        clean_weight: Weight of the clean loss.
        adversarial_weight: Weight of the adversarial loss.
        adversarial_loss: "cross_entropy" or "divergence".
        pairing_weight: Weight of the difference between the logits of clean and adversarial images.
        peer_weight: Weight of the divergence from the peers' answers.
        gradient_penalty: Weight of the norm of the clean loss's gradient by the image (double back-propagation).
        penalty_norm: The norm of the perturbations that the penalty is for, "linf" or "l2"; the penalty takes its dual.
        teachers: Whose answers to clean images each network learns (distillation).
        teacher_weight: Weight of the cross-entropy with these answers.
        temperature: What logits are divided by in the cross-entropies.
        null_share: Share of an adversarial image's label that goes to the null class.
        domain_adaptation: One for all networks that have a source, or for some by name; "none" turns it off.
        batch_norm: How clean and adversarial images share batch normalisation, for all networks or by name.
        crafted_once: How many adversarial copies of each training image are crafted before the first step of `fit`, and
            used from then on. The data must come from `satm_tf.data.batches`, without augmentation. For such validation
            data, one copy is crafted.
        crafted_folder: The folder for these copies, with 8 bits per value. A resumed training, and others with the same
            sources, images and seed, reuse them. None is a temporary folder.
        frozen: Networks that only craft, by name; never changed.
        sparring: Networks that train alongside the others on their own examples, only to be sources; the scheme refers
            to them as `sparring_<name>`. If it needs them and none are given, they are copies of `networks`. Their
            metrics are reported, but their losses are in neither `loss` nor `val_loss`.
        loss: The classification loss; None is the cross-entropy.
        ordered: Whether the classes are in a meaningful order, so that one-off accuracies have a meaning. None takes it
            from the attribute `ordered` of the data given to `fit`; data without that attribute counts as not ordered.
        devices: Names of the devices, one for each network and everything computed on it; only images move between
            devices. Create the networks there too, with `tf.device`.
        seed: Seed of the attacks' random numbers. The numbers of a step depend only on it and on the step count.
        name: Name of the Keras model.

    Attributes:
        networks: The networks that train; save these once `fit` has returned.
        sparring: The sparring partners that the scheme asks for, by the names of sources.
        sources: The sources of each network and sparring partner, in the order of their turns.
        teachers: The teachers of each network.
        step: The number of steps taken.

    Raises:
        ValueError: If names, shapes or numbers of classes do not fit together.

    Warns:
        UserWarning: If two networks start from equal weights: the paper found that such a pair diverges (5.5).

    Example:
        >>> satm = CoTraining({"a": a, "b": b}, "recommended", epsilon=8 / 255)
        >>> satm.compile(keras.optimizers.SGD(1e-3, momentum=0.9))
        >>> satm.fit(train, validation_data=validation, epochs=5, callbacks=[Checkpoint("run")])

    Source:
        Algorithm 1 of Liao, "Simultaneous Adversarial Training - Learn from Others' Mistakes".
    """

    def __init__(
        self,
        networks: Mapping[str, ImageClassifier],
        scheme: Scheme | str | None = None,
        *,
        learns_from: LearnsFrom | None = None,
        attack: AttackLike | None = None,
        epsilon: float | None = None,
        epsilon_schedule: EpsilonScheduleLike | None = None,
        mixing: Mixing | None = None,
        source_weights: Mapping[str, float] | None = None,
        snapshots: int | None = None,
        snapshot_steps: int | None = None,
        crafting_mode: CraftingMode | None = None,
        clean_weight: WeightLike | None = None,
        adversarial_weight: WeightLike | None = None,
        adversarial_loss: AdversarialLossLike | None = None,
        pairing_weight: WeightLike | None = None,
        peer_weight: WeightLike | None = None,
        gradient_penalty: WeightLike | None = None,
        penalty_norm: PenaltyNorm | None = None,
        teachers: LearnsFrom | None = None,
        teacher_weight: WeightLike | None = None,
        temperature: float | None = None,
        null_share: float | None = None,
        domain_adaptation: DomainAdaptationLike | None = None,
        batch_norm: BatchNormLike | None = None,
        crafted_once: int | None = None,
        crafted_folder: str | Path | None = None,
        frozen: Mapping[str, Callable[..., tf.Tensor]] | None = None,
        sparring: Mapping[str, ImageClassifier] | None = None,
        loss: ClassificationLoss | None = None,
        ordered: bool | None = None,
        devices: Mapping[str, str] | None = None,
        seed: int = 0,
        name: str = "co_training",
    ):
        arguments = locals()  # A test holds the fields of `Scheme` and the parameters together.
        super().__init__(name=name, dtype="float32")
        given = {field: arguments[field] for field in Scheme.__dataclass_fields__ if arguments[field] is not None}
        self.scheme = Scheme.get(scheme, **given).by_name(networks)
        # Proxies, because Keras would treat the values of a dict as parts of this model.
        self.frozen = MappingProxyType(dict(frozen or {}))
        check_networks(networks, self.frozen, sparring or {}, null_class=self.scheme.null_share > 0)
        self.sources = MappingProxyType(
            self.scheme.sources(networks, self.frozen, None if sparring is None else list(sparring))
        )
        related = {f"{kind}_{name}": device for kind in KINDS for name, device in (devices or {}).items()}
        self.teachers = MappingProxyType(self.scheme.teachers_of(networks, self.frozen))
        self.devices = MappingProxyType({**related, **(devices or {})})
        self.seed = seed
        self.networks = dict(networks)
        self.sparring = self._sparring_partners(sparring or networks, copied=sparring is None)
        self._recalled = MappingProxyType(self._recall())
        if self.scheme.crafted_once and self._several_replicas():
            raise ValueError(
                "crafted_once works on one device only; choose another strategy, or crafted_once=0. Received: "
                f"{self.distribute_strategy.num_replicas_in_sync} replicas"
            )
        self._crafting = Crafting(
            self.scheme,
            self.sources,
            dict(networks),
            {**self.frozen, **self.sparring, **self._recalled},
            devices=self.devices,
            seed=seed,
            progress=self._progress,
            kept=CraftedOnce(crafted_folder, seed) if self.scheme.crafted_once else None,
        )
        trained = {**networks, **self.sparring}
        for network in trained.values():
            synchronize(network)
        self.domain_adaptation = MappingProxyType(self.scheme.domain_adaptation_of(self.sources))
        self.domain_heads: dict[str, keras.layers.Layer] = {}
        objectives = {}
        for each, network in trained.items():
            with on_device(self.devices, each):
                objectives[each] = self._objective(each, network, loss or ClassificationLoss())
        self._objectives = MappingProxyType(objectives)
        counter = {"shape": (), "dtype": "int64", "trainable": False, "aggregation": "only_first_replica"}
        self.step = self.add_weight(name="step", initializer="zeros", **counter)
        self.planned_steps = self.add_weight(name="planned_steps", initializer="zeros", **counter)
        self._given_order = ordered
        self.ordered = bool(ordered)
        self._given_metrics = None
        self._figures = self._make_figures()
        self._skip = 0
        self.built = True

    def _sparring_partners(self, start: Mapping[str, ImageClassifier], copied: bool) -> dict[str, ImageClassifier]:
        """The sparring partners among the sources, each the network that it starts from, or a copy of it."""
        partners = {}
        for name in self.sources:
            kind, own = split(name)
            if kind:
                partners[name] = start[own]
                if copied:
                    with on_device(self.devices, name):
                        partners[name] = keras.models.clone_model(start[own])
                        partners[name].set_weights(start[own].get_weights())
        return partners

    def _recall(self) -> dict[str, Recalled]:
        """The earlier states of networks that are among the sources."""
        recalled = {}
        needed = itertools.chain(*self.sources.values(), *self.teachers.values())
        for source in dict.fromkeys(needed):
            kind, name = split(source)
            if kind in ("before", "past"):
                network = self.sparring.get(name, self.networks.get(name))
                slots = self.scheme.snapshots if kind == "past" else 1
                with on_device(self.devices, source):
                    recalled[source] = Recalled(network, slots, self._remembered, source)
        if any(split(source)[0] == "past" for source in recalled) and self._several_replicas():
            raise ValueError(
                "Snapshots work on one device only; choose 'sparring' or 'before' instead of 'past', or another "
                f"strategy. Received: {', '.join(recalled)}"
            )
        turns = self.scheme.mixing == "steps" and any(len(its) > 1 for its in self.sources.values())
        if turns and self.scheme.crafting_mode == "training" and self._several_replicas():
            raise ValueError(
                "On several replicas, sources that take turns cannot craft in training mode, because batch "
                "statistics cannot be synchronised inside a branch; choose crafting_mode='inference', or "
                f"mixing='all'. Received: crafting_mode={self.scheme.crafting_mode!r}, sources={self.sources}"
            )
        return recalled

    def _remembered(self, name: str, value: tf.Tensor, trainable: bool = False) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=value.shape,
            dtype=value.dtype.name,
            trainable=trainable,
            initializer=lambda shape, dtype=None: value,
        )

    def _several_replicas(self) -> bool:
        return bool(self.distribute_strategy.num_replicas_in_sync > 1)

    def _objective(self, name: str, network: ImageClassifier, loss: ClassificationLoss) -> Objective:
        """A network's objective, with the variables that it needs for training alone."""
        adaptation, head = self.domain_adaptation.get(name), None
        mode = self.scheme.batch_norm_of(self.sources).get(name, "shared")
        if adaptation is not None:
            head = adaptation.head(len(self.sources[name]), f"{name}_domain")
        if head is not None:
            head.build((None, network.feature_size))
            self.domain_heads[name] = head
        auxiliary = [
            (own, self._remembered(f"{name}_auxiliary_{index}", tf.convert_to_tensor(own), own.trainable))
            for index, own in enumerate(batch_norm_variables(network))
            if mode == "auxiliary" and self.sources[name]
        ]
        terms = self.scheme.terms_of(name)
        if not self.teachers.get(name):
            terms = terms._replace(teacher_weight=0.0)
        return Objective(
            network,
            terms,
            loss,
            mode,
            auxiliary,
            adaptation,
            head,
            [self._teacher(teacher, network.num_classes) for teacher in self.teachers.get(name, ())],
            self.scheme.null_epsilon_of(
                [attack for (learner, _), attack in self._crafting.attacks.items() if learner == name]
            ),
        )

    def _teacher(self, name: str, num_classes: int) -> Callable[[tf.Tensor], tf.Tensor]:
        """The logits `[batch, classes]` of a teacher, from images."""

        def answers(images: tf.Tensor) -> tf.Tensor:
            # The remembered weights are read here, in each step: a checkpoint may replace them.
            network: Any = self._recalled[name].at(0) if name in self._recalled else self.frozen[name]
            refuse_probabilities(network, images.shape)
            with on_device(self.devices, name):
                logits = consensus(logits_of(network, images))
            if logits.shape[-1] != num_classes:
                raise ValueError(f"Teacher {name!r} must distinguish {num_classes} classes. Received: {logits.shape}")
            return logits

        return answers

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics that `fit` reports."""
        return self._figures.all

    def state(self) -> list[keras.Variable]:
        """All variables on which the rest of a training depends, in a fixed order.

        Weights, counters, metrics, dropout's seeds and optimizer state, but not those of frozen networks, which do not
        change.
        """
        optimizers = [self.optimizer, *(each.optimizer for each in self.optimizers.values())]
        slots = [variable for each in optimizers for variable in each.variables]
        return [*self.variables, *self.metrics_variables, *slots]

    def call(self, images: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        """The logits `[batch, classes]` of each network by name."""
        return {name: network(images, training=training) for name, network in self.networks.items()}

    def craft(self, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        """The adversarial images `[batch, height, width, 3]` of each source, as validation uses them."""
        return self._crafting.by_source(images, labels)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of Algorithm 1; all adversarial examples are crafted before the first update."""
        batch, weights = self._unpack(data)
        images, labels, _ = batch
        crafted = self._crafting.for_training(batch, self.step.value)
        gradients: dict[str, Any] = {}
        updates: dict[str, Any] = {}
        finite: list[tf.Operation] = []
        total = 0.0
        for name, objective in self._objectives.items():
            optimizer = self.optimizers[name]
            with on_device(self.devices, name):
                with tf.GradientTape() as tape:
                    evaluated = objective.evaluate(
                        images, labels, weights, crafted.get(name, Crafted()), self._progress(), training=True
                    )
                    scaled = optimizer.scale(_share_of_batch(evaluated.loss))
                gradients[name] = tape.gradient(scaled, objective.trainable_variables())
                self._report(name, labels, evaluated)
            updates[name] = evaluated.updates
            checked = {part: [values] for part, values in {**evaluated.parts, "loss": evaluated.loss}.items()}
            if not optimizer.scales:  # which otherwise skips steps whose gradient overflows
                checked["gradient"] = [each for each in gradients[name] if each is not None]
            for part, values in checked.items():
                with tf.control_dependencies(finite):  # so that the message names the first cause
                    finite.append(check_finite(name, part, values, tf.convert_to_tensor(self.step.value)))
            total += evaluated.loss if name in self.networks else 0.0
        with tf.control_dependencies(finite):
            gradients = tf.nest.map_structure(tf.identity, gradients)
            updates = {name: [(each, tf.identity(value)) for each, value in updates[name]] for name in updates}
        for name in self._objectives:
            with on_device(self.devices, name):
                self.optimizers[name].apply(gradients[name])
                for variable, value in updates[name]:
                    variable.assign(value)
        self.step.assign_add(1)
        for source, recalled in self._recalled.items():
            if split(source)[0] == "past":
                recalled.remember(tf.convert_to_tensor(self.step.value), self.scheme.snapshot_steps)
        count_step(self.optimizer)
        self._figures.update_loss("loss", total)
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """The same losses in inference mode, with every source of every network and the same noise each time."""
        batch, weights = self._unpack(data)
        images, labels, _ = batch
        crafted = self._crafting.for_validation(batch)
        total = 0.0
        for name, objective in self._objectives.items():
            with on_device(self.devices, name):
                evaluated = objective.evaluate(
                    images, labels, weights, crafted.get(name, Crafted()), self._progress(), training=False
                )
                self._report(name, labels, evaluated)
                total += evaluated.loss if name in self.networks else 0.0
        self._figures.update_loss("loss", total)
        return self.get_metrics_result()

    def _unpack(self, data: Any) -> tuple[Batch, tf.Tensor | None]:
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        images, rows = images if isinstance(images, tuple) else (images, None)
        num_classes = next(iter(self.networks.values())).num_classes
        return Batch(*checked_batch(images, labels, num_classes), rows), weights

    def _report(self, name: str, labels: tf.Tensor, evaluated: Evaluated) -> None:
        for part, values in {**evaluated.parts, "loss": evaluated.loss}.items():
            self._figures.update_loss(f"{name}_{part}", values)
        self._figures.update_answers(name, labels, evaluated.logits[:1])
        if evaluated.logits.shape[0] > 1:
            self._figures.update_answers(f"{name}_adversarial", labels, evaluated.logits[1:])

    def _progress(self) -> tf.Tensor:
        """The share of the planned steps that is done, in [0, 1]; 1 if none are planned."""
        planned = tf.cast(self.planned_steps, tf.float32)
        return tf.where(planned > 0, tf.minimum(tf.cast(self.step, tf.float32) / tf.maximum(planned, 1.0), 1.0), 1.0)


def _share_of_batch(losses: tf.Tensor) -> tf.Tensor:
    """This replica's share of the mean loss over the global batch; the optimizer sums the shares."""
    count = tf.cast(tf.shape(losses)[0], tf.float32)
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        count = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, count)
    return tf.reduce_sum(losses) / count
