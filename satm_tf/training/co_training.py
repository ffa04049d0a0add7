"""The trainer: several networks at once, each on clean images and on adversarial examples of its sources."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from satm_tf.attacks import Attack
from satm_tf.attacks.losses import divergence
from satm_tf.metrics import OneOffAccuracy
from satm_tf.models import ImageClassifier
from satm_tf.training.checkpoint import Checkpoint, Position
from satm_tf.training.distribution import DistributedFit, count_apart, naming_lost_workers
from satm_tf.training.domain import DomainAdaptation
from satm_tf.training.losses import ClassificationLoss
from satm_tf.training.optimization import NetworkOptimizer, in_half_precision
from satm_tf.training.passes import batch_norm_variables, forward, in_training_mode, synchronize
from satm_tf.training.scheme import Scheme

_fold_in = tf.random.experimental.stateless_fold_in
_NOT_FINITE = "is not a finite number at step"


class _Crafted(NamedTuple):
    """k adversarial batches, the index of the source of each, and the logits of the network's peers on them."""

    batches: Sequence[tf.Tensor]
    sources: tf.Tensor | None
    peers: tf.Tensor | None


_NOTHING = _Crafted((), None, None)


class CoTraining(DistributedFit, keras.Model):
    """Trains one or more networks, each on clean images and on the adversarial examples of the networks it learns from.

    In each step every source crafts against its weights as they are (before any update), then each network takes one
    gradient step on its own loss. Who learns from whom, from which examples and at which price is the scheme, so this
    is SATM, standard or ensemble adversarial training, TRADES, mutual learning, or plain fine-tuning; see `Scheme`.

    `fit` takes a data set of `(images, labels)`: float images in [0, 1], integer labels. Sample weights scale the
    clean and the adversarial loss. The loss that `fit` reports, and `val_loss` with it, is the sum of the networks'
    losses. For each network there are `<name>_loss` and its parts before weighting (`_clean_loss`, `_adversarial_loss`,
    `_peer_loss`, `_domain_loss`), `<name>_accuracy`, `<name>_adversarial_accuracy`, and one-off
    rates likewise. In training the adversarial figures are of the source whose turn it is; validation uses every
    source, the full epsilon and the same noise each time.

    Under a `tf.distribute` strategy, in whose scope all is made, a step is one device's step on the global batch, batch
    statistics included; the batch normalisation of the networks is set to be synchronised. Only random numbers differ:
    those of dropout and of attacks are drawn on each replica.

    Args:
        networks: The networks that train, by name: same image shape, same number of classes.
        scheme: Name of a preset (see `SCHEMES`) or a `Scheme`; None is the default one.
        frozen: Networks that only craft, by name; never changed.
        loss: What a network loses on its answers.
        ordered: Whether the classes are in a meaningful order, so that one-off accuracys have a meaning.
        devices: Names of the devices that networks, and all that is computed on them, have to themselves; only images
            cross. Make the networks there too, with `tf.device`.
        seed: Seed of the attacks' random numbers. A step's numbers follow from it and the step count alone.
        name: Name of the Keras model.
        **fields: Fields of the scheme in place of its own, such as `learns_from` and `attack`.

    Raises:
        ValueError: If names, shapes or numbers of classes do not fit together.

    Warns:
        UserWarning: If two networks start from equal weights: the paper found that such a pair diverges (5.5).

    Example:
        >>> satm = CoTraining({"a": a, "b": b}, learns_from="others", attack=RandomisedStep(epsilon=16 / 256))
        >>> satm.compile(optimizer=keras.optimizers.SGD(1e-3, momentum=0.9))
        >>> satm.fit(train, validation_data=validation, epochs=5, callbacks=[Checkpoint("run")])

    Source:
        Algorithm 1 of Liao, "Simultaneous Adversarial Training - Learn from Others' Mistakes".
    """

    def __init__(
        self,
        networks: Mapping[str, ImageClassifier],
        scheme: Scheme | str | None = None,
        *,
        frozen: Mapping[str, Callable[..., tf.Tensor]] | None = None,
        loss: ClassificationLoss | None = None,
        ordered: bool = True,
        devices: Mapping[str, str] | None = None,
        seed: int = 0,
        name: str = "co_training",
        **fields: Any,
    ):
        super().__init__(name=name, dtype="float32")
        frozen = dict(frozen or {})
        self.scheme = Scheme.get(scheme, **fields)
        _check(networks, frozen)
        self.sources = MappingProxyType(self.scheme.sources(networks, frozen))
        self._learners = [name for name, sources in self.sources.items() if sources]
        self._attacks = {
            (name, source): self.scheme.attack_on(source, name, trained=source in networks)
            for name in self._learners
            for source in self.sources[name]
        }
        self._peers = {name: [peer for peer in networks if peer != name] for name in networks}
        self.networks = dict(networks)
        for network in networks.values():
            synchronize(network)
        # A proxy, because Keras would take the variables of networks in a dict for this model's own.
        self.frozen = MappingProxyType(frozen)
        self.classification_loss = loss or ClassificationLoss()
        self.ordered = ordered
        self.devices = MappingProxyType(dict(devices or {}))
        self.seed = seed
        self.domain_adaptation: Mapping[str, DomainAdaptation] = MappingProxyType(
            self.scheme.domain_adaptation_of(self.sources)
        )
        self._batch_norm = self.scheme.batch_norm_of(networks)
        self.domain_heads: dict[str, keras.layers.Layer] = {}
        self._auxiliary: dict[str, list[tuple[keras.Variable, keras.Variable]]] = {}
        for name in self._learners:
            with self._device(name):
                self._add_parts(name)
        counter = {"shape": (), "dtype": "int64", "trainable": False, "aggregation": "only_first_replica"}
        self.step = self.add_weight(name="step", initializer="zeros", **counter)
        self.planned_steps = self.add_weight(name="planned_steps", initializer="zeros", **counter)
        self._means = {key: keras.metrics.Mean(name=key) for key in self._loss_names()}
        self._rates = {key: rate(name=key) for key, rate in self._rate_names()}
        for metric in (*self._means.values(), *self._rates.values()):
            count_apart(metric)
        self._skip = 0
        self.built = True

    def _add_parts(self, name: str) -> None:
        """What a network needs for training alone: its domain head, and batch normalisation for adversarial images."""
        network = self.networks[name]
        if name in self.domain_adaptation:
            head = self.domain_adaptation[name].head(len(self.sources[name]), f"{name}_domain")
            if head is not None:
                head.build((None, network.feature_size))
                self.domain_heads[name] = head
        if self._batch_norm.get(name) == "auxiliary":
            self._auxiliary[name] = [
                (own, self._copy(own, f"{name}_auxiliary_{index}"))
                for index, own in enumerate(batch_norm_variables(network))
            ]

    def _copy(self, variable: keras.Variable, name: str) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=variable.shape,
            dtype=variable.dtype,
            trainable=variable.trainable,
            initializer=lambda shape, dtype=None: tf.convert_to_tensor(variable),
        )

    def _loss_names(self) -> list[str]:
        parts = [(name, part) for name in self.networks for part in ("loss", "clean_loss")]
        parts += [(name, "adversarial_loss") for name in self._learners]
        parts += [(name, "peer_loss") for name in self._learners if self.scheme.peer_weight]
        parts += [(name, part) for name, adaptation in self.domain_adaptation.items() for part in adaptation.metrics]
        return ["loss", *(f"{name}_{part}" for name, part in parts)]

    def _rate_names(self) -> list[tuple[str, Any]]:
        kinds: dict[str, Any] = {"accuracy": keras.metrics.SparseCategoricalAccuracy}
        if self.ordered:
            kinds["one_off_accuracy"] = OneOffAccuracy
        of = [*self.networks, *(f"{name}_adversarial" for name in self._learners)]
        return [(f"{name}_{kind}", rate) for name in of for kind, rate in kinds.items()]

    def compile(self, optimizer: Any = "sgd", *, jit_compile: bool | str = False, **kwargs: Any) -> None:
        """As Keras's, without a loss: that is the method's.

        XLA is off unless asked for: on CPUs it was slower, and it leaves out the check that losses are finite numbers.

        Each network gets a copy of the optimizer, with a state of its own (`optimizers`), and scales its loss if it
        computes in float16. `optimizer` itself holds the learning rate that all follow, for callbacks to change.

        Raises:
            ValueError: If the optimizer scales losses already: that is done for each network by itself. Or, where there
                are several replicas, if something is asked for that they cannot do together.
        """
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "Losses are scaled here, for each network that needs it. Give the inner optimizer. "
                f"Received: {optimizer.name!r}"
            )
        with self.distribute_strategy.scope():
            super().compile(optimizer=optimizer, jit_compile=jit_compile, auto_scale_loss=False, **kwargs)
            self.optimizer.build([])
            self.check_compiled()
            # Not a dict of a Keras model's: optimizers in it are no layers.
            optimizers = {}
            for name, network in self.networks.items():
                with self._device(name):
                    optimizers[name] = NetworkOptimizer(
                        self.optimizer, self._trained(name), in_half_precision(network), f"{name}_optimizer"
                    )
            self.optimizers = MappingProxyType(optimizers)

    def state(self) -> list[keras.Variable]:
        """All variables on which the rest of a training depends, in a fixed order.

        Weights, counters, metrics, dropout's seeds and the optimizers' own; not those of frozen networks, which stay.
        """
        optimizers = [self.optimizer, *(each.optimizer for each in self.optimizers.values())]
        slots = [variable for each in optimizers for variable in each.variables]
        return [*self.variables, *self.metrics_variables, *slots]

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        *,
        epochs: int = 1,
        initial_epoch: int = 0,
        validation_data: Any = None,
        callbacks: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """As Keras's. With a `Checkpoint` among the callbacks it goes on where the last one was written.

        To go on, the data has to begin in the middle: that of `satm_tf.data.batches` can.

        Raises:
            ValueError: If the data cannot begin where the checkpoint does, or `steps_per_epoch` makes epochs its own.
            FloatingPointError: If a part of a loss, or its gradient, is not a finite number; the message gives step,
                network and part. No weight has been changed in that step, nor batch statistics or dropout's seeds.
            ConnectionError: If another worker has gone.
        """
        # A checkpoint comes last, so that it saves what the other callbacks have made of an epoch.
        callbacks = sorted(callbacks or [], key=lambda callback: isinstance(callback, Checkpoint))
        position = Position()
        checkpoint = callbacks[-1] if callbacks and isinstance(callbacks[-1], Checkpoint) else None
        if checkpoint is not None:
            if kwargs.get("steps_per_epoch") is not None:
                raise ValueError(
                    "With a Checkpoint an epoch is the whole of the data; leave out steps_per_epoch. "
                    f"Received: steps_per_epoch={kwargs['steps_per_epoch']}"
                )
            position = checkpoint.restore(self, callbacks)
            initial_epoch = epochs if position.stopped else max(initial_epoch, position.epoch)
        self._skip = position.step
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # which Keras does not do to data sets, and warns of
        try:
            with naming_lost_workers():
                return super().fit(
                    self.distributed(x, None if checkpoint is None else position),
                    y,
                    epochs=epochs,
                    initial_epoch=initial_epoch,
                    validation_data=self.distributed_validation(validation_data),
                    callbacks=[_Bookkeeping(), *callbacks],
                    **kwargs,
                )
        except tf.errors.InvalidArgumentError as error:
            found = re.search(rf"(\w+ of .+? {_NOT_FINITE})\D*(\d+)", error.message)
            if found is None:
                raise
            raise FloatingPointError(
                f"{found[1]} {found[2]}; nothing was updated in it. Lower the learning rate, or look at the data."
            ) from None
        finally:
            if checkpoint is not None:
                checkpoint.release()

    def make_train_function(self, force: bool = False) -> None:
        """As Keras's, but that the steps which a checkpoint had behind it are not taken again."""
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        step = self.train_function

        def train_function(iterator: Any) -> Any:
            if self._skip > 0:
                self._skip -= self.steps_per_execution
                return {} if self._skip > 0 else self.get_metrics_result()
            return step(iterator)

        self.train_function = train_function

    def call(self, images: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        """The logits `[batch, classes]` of each network by name."""
        return {name: network(images, training=training) for name, network in self.networks.items()}

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of Algorithm 1; all adversarial examples are crafted before the first update."""
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        crafted = self._craft_in_turn(images, labels)
        gradients: dict[str, Any] = {}
        updates: dict[str, Any] = {}
        finite: list[tf.Operation] = []
        total = 0.0
        for name in self.networks:
            with self._device(name):
                with tf.GradientTape() as tape:
                    given = crafted.get(name, _NOTHING)
                    loss, parts, updates[name] = self._loss(name, images, labels, weights, given, training=True)
                    scaled = self.optimizers[name].scale(self._share_of_batch(loss))
                gradients[name] = tape.gradient(scaled, self._trained(name))
            checked = {part: [values] for part, values in {**parts, "loss": loss}.items()}
            if not self.optimizers[name].scales:  # which else leaves out steps whose gradient overflows
                checked["gradient"] = [each for each in gradients[name] if each is not None]
            for part, values in checked.items():
                with tf.control_dependencies(finite):  # so that the first cause is named
                    finite.append(self._check_finite(name, part, values))
            total += loss
        with tf.control_dependencies(finite):
            gradients = tf.nest.map_structure(tf.identity, gradients)
            updates = {name: [(each, tf.identity(value)) for each, value in updates[name]] for name in updates}
        for name in self.networks:
            with self._device(name):
                self.optimizers[name].apply(gradients[name])
                for variable, value in updates[name]:
                    variable.assign(value)
        self.step.assign_add(1)
        self.optimizer._iterations.assign_add(1)  # not `iterations`, which are fewer where gradients accumulate
        self._means["loss"].update_state(total)
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """The same losses in inference mode, with every source of every network and the same noise each time."""
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        pairs = [(name, source) for name in self._learners for source in self.sources[name]]
        crafted = self._craft(pairs, images, labels, tf.constant(-1, tf.int64), training=False)
        total = 0.0
        for name, sources in self.sources.items():
            batches = [crafted[name, source] for source in sources]
            given = _Crafted(batches, tf.range(len(sources)), self._ask_peers(name, batches))
            with self._device(name):
                total += self._loss(name, images, labels, weights, given, training=False)[0]
        self._means["loss"].update_state(total)
        return self.get_metrics_result()

    def craft(self, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        """The adversarial images `[batch, height, width, 3]` of each source, as validation uses them."""
        pairs = [(name, source) for name in self._learners for source in self.sources[name]]
        crafted = self._craft(pairs, images, labels, tf.constant(-1, tf.int64), training=False)
        return {source: adversarial for (_, source), adversarial in crafted.items()}

    def _device(self, name: str) -> Any:
        # Not `tf.device(None)`, which would bring the work of all replicas back to the first device.
        return tf.device(self.devices[name]) if name in self.devices else contextlib.nullcontext()

    def _trained(self, name: str) -> list[keras.Variable]:
        head = self.domain_heads.get(name)
        auxiliary = [copy for own, copy in self._auxiliary.get(name, ()) if own.trainable]
        return [*self.networks[name].trainable_variables, *(head.trainable_variables if head else ()), *auxiliary]

    def _share_of_batch(self, losses: tf.Tensor) -> tf.Tensor:
        """This replica's share of the mean loss over the global batch; the optimizer sums the shares."""
        count = tf.cast(tf.shape(losses)[0], tf.float32)
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            count = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, count)
        return tf.reduce_sum(losses) / count

    def _check_finite(self, name: str, part: str, values: Sequence[tf.Tensor]) -> tf.Operation:
        message = [f"{part} of {name} {_NOT_FINITE}", tf.convert_to_tensor(self.step.value)]
        return tf.debugging.Assert(tf.reduce_all([tf.reduce_all(tf.math.is_finite(each)) for each in values]), message)

    def _craft(
        self, pairs: Sequence[tuple[str, str]], images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor, training: bool
    ) -> dict[tuple[str, str], tf.Tensor]:
        """Adversarial images for each pair of learner and source; what two learners share is crafted once."""
        seed = _fold_in(tf.constant([self.seed, 0]), step)
        if training and tf.distribute.get_strategy().num_replicas_in_sync > 1:
            seed = _fold_in(seed, tf.distribute.get_replica_context().replica_id_in_sync_group)
        everyone: dict[str, Any] = {**self.networks, **self.frozen}
        made: dict[tuple[str, Attack], tf.Tensor] = {}
        for name, source in pairs:
            attack = self._attacks[name, source]
            if (source, attack) in made:
                continue
            own = _fold_in(seed, list(everyone).index(source))
            epsilon = tf.constant(attack.epsilon, tf.float32)
            if training and self.scheme.epsilon_schedule is not None:
                count, noise = tf.shape(images)[0], _fold_in(own, -1)
                epsilon *= self.scheme.epsilon_schedule.share(self._progress(), count, noise)
            network = everyone[source]
            if training and self.scheme.crafting_mode == "training" and source in self.networks:
                network = in_training_mode(network)
            with self._device(source):
                made[source, attack] = attack(network, images, labels, epsilon=epsilon, seed=own)
        return {(name, source): made[source, self._attacks[name, source]] for name, source in pairs}

    def _craft_in_turn(self, images: tf.Tensor, labels: tf.Tensor) -> dict[str, _Crafted]:
        """What a step gives each network that learns: adversarial batches, who made them, and its peers' answers."""
        if not self._learners:
            return {}
        counts = [1 if self.scheme.all_sources else len(self.sources[name]) for name in self._learners]
        period = math.lcm(*counts)

        def craft(turn: int) -> dict[str, _Crafted]:
            ids = {
                name: list(range(len(self.sources[name]))) if self.scheme.all_sources else [turn % count]
                for name, count in zip(self._learners, counts, strict=True)
            }
            pairs = [(name, self.sources[name][index]) for name in self._learners for index in ids[name]]
            crafted = self._craft(pairs, images, labels, self.step.value, training=True)
            batches = {name: [crafted[name, self.sources[name][index]] for index in ids[name]] for name in ids}
            return {
                name: _Crafted(batches[name], tf.constant(ids[name]), self._ask_peers(name, batches[name]))
                for name in ids
            }

        turns = [functools.partial(craft, turn) for turn in range(period)]
        return turns[0]() if period == 1 else tf.switch_case(tf.cast(self.step % period, tf.int32), turns)

    def _ask_peers(self, name: str, batches: Sequence[tf.Tensor]) -> tf.Tensor:
        """The logits `[peers, k, batch, classes]` of a network's peers on k batches, as constants; empty if unused."""
        if not (self.scheme.peer_weight and batches):
            return tf.zeros([0])
        answers = []
        for peer in self._peers[name]:
            with self._device(peer):
                answers.append(forward(self.networks[peer], batches, training=False).logits)
        return tf.stop_gradient(tf.stack(answers))

    def _loss(
        self,
        name: str,
        images: tf.Tensor,
        labels: tf.Tensor,
        weights: tf.Tensor | None,
        given: _Crafted,
        training: bool,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor], list[tuple[keras.Variable, tf.Tensor]]]:
        """A network's loss `[batch]`, its parts `[batch]` before weighting, and what is to become of its statistics.

        Updates the network's metrics.
        """
        scheme, (adversarial, sources, peers) = self.scheme, given
        features, logits, activity, updates = forward(
            self.networks[name],
            [images, *adversarial],
            training=training,
            mode=self._batch_norm.get(name, "shared"),
            auxiliary=self._auxiliary.get(name, ()),
        )
        importance = 1.0 if weights is None else tf.cast(weights, tf.float32)
        parts = {"clean_loss": importance * self.classification_loss(labels, logits[0])}
        loss = scheme.clean_weight * parts["clean_loss"]
        answers = {name: logits[:1]}
        if adversarial:
            answers[f"{name}_adversarial"] = logits[1:]
            everyone = tf.tile(labels[None], [len(adversarial), 1])
            if scheme.adversarial_loss == "divergence":
                losses = divergence(logits[:1], logits[1:])
            else:
                losses = self.classification_loss(everyone, logits[1:])
            parts["adversarial_loss"] = importance * tf.reduce_mean(losses, axis=0)
            loss += scheme.adversarial_weight * parts["adversarial_loss"]
            if scheme.peer_weight:
                parts["peer_loss"] = tf.reduce_mean(divergence(peers, logits[1:]), axis=[0, 1])
                loss += scheme.peer_weight * parts["peer_loss"]
            if name in self.domain_adaptation:
                added, watched = self.domain_adaptation[name].losses(
                    self.domain_heads.get(name), features[0], features[1:], sources, self._progress()
                )
                loss += added
                parts |= watched
        loss += tf.add_n([activity, *self.networks[name].losses])
        for part, values in {**parts, "loss": loss}.items():
            self._means[f"{name}_{part}"].update_state(values)
        for who, answer in answers.items():
            for kind in ("accuracy", "one_off_accuracy") if self.ordered else ("accuracy",):
                # In one row: Keras takes a metric's means over all axes but the first, and a small batch counts less.
                everyone = tf.tile(labels, [answer.shape[0]])
                self._rates[f"{who}_{kind}"].update_state(everyone, tf.reshape(answer, [-1, answer.shape[-1]]))
        return loss, parts, updates

    def _progress(self) -> tf.Tensor:
        """The share of the planned steps that is done, in [0, 1]; 1 where nothing was planned."""
        planned = tf.cast(self.planned_steps, tf.float32)
        return tf.where(planned > 0, tf.minimum(tf.cast(self.step, tf.float32) / tf.maximum(planned, 1.0), 1.0), 1.0)


class _Bookkeeping(keras.callbacks.Callback):
    """Tells the model how many steps `fit` is going to take in all, and ends the optimizers' moving averages."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.model.planned_steps.assign(self.params["epochs"] * (self.params["steps"] or 0))

    def on_train_end(self, logs: Any = None) -> None:
        for optimizer in self.model.optimizers.values():
            optimizer.finalize()


def _check(networks: Mapping[str, ImageClassifier], frozen: Mapping[str, Any]) -> None:
    if not networks:
        raise ValueError("CoTraining needs at least one network. Received: none")
    common = set(networks) & set(frozen)
    if common or {id(network) for network in networks.values()} & {id(network) for network in frozen.values()}:
        raise ValueError(
            f"A network is either trained or frozen, not both. Received: {sorted(common) or list(networks)}"
        )
    for fact in ("image_shape", "num_classes"):
        values = {name: getattr(network, fact) for name, network in networks.items()}
        if len(set(values.values())) > 1:
            raise ValueError(f"All networks must have the same {fact}. Received: {values}")
    named = list(networks.items())
    for index, (name, network) in enumerate(named):
        for other_name, other in named[index + 1 :]:
            if network is other:
                raise ValueError(f"{name!r} and {other_name!r} are one network; give each name its own.")
            if _equal_weights(network, other):
                warnings.warn(
                    f"{name!r} and {other_name!r} have equal architecture and weights: each would learn from its own "
                    "white-box examples, and the paper found that this diverges (5.5).",
                    stacklevel=3,
                )


def _equal_weights(network: keras.Model, other: keras.Model) -> bool:
    pairs = list(zip(network.weights, other.weights, strict=False))
    return (
        len(network.weights) == len(other.weights)
        and all(a.shape == b.shape for a, b in pairs)
        and all(np.array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b)) for a, b in pairs)
    )
