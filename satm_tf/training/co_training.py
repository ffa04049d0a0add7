"""The trainer: several networks at once, each on clean images and on adversarial examples of its sources."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

from satm_tf.attacks import Attack
from satm_tf.metrics import ClassificationRate
from satm_tf.models import ImageClassifier
from satm_tf.training.domain import DomainAdversarial, DomainHead
from satm_tf.training.sources import LearnsFrom, resolve_sources


class CoTraining(keras.Model):
    """Trains one or more networks, each on clean images and on the adversarial examples of the networks it learns from.

    In each step every source crafts against its weights as they are (before any update), then each network takes one
    gradient step on `CE(clean) + adversarial_weight * CE(adversarial) + domain weight * domain loss`. A network with
    several sources takes them in turn, one a step, so that half of what it sees is clean. `learns_from` makes it SATM,
    standard or ensemble adversarial training, or plain fine-tuning; see `resolve_sources`.

    `fit` takes a data set of `(images, labels)`: float images in [0, 1], integer labels. One optimizer serves all
    networks; their variables are disjoint, so this equals an optimizer each, but for `global_clipnorm`, which spans
    all. The loss that `fit` reports, and `val_loss` with it, is the sum of the networks' losses. Sample and class
    weights scale the clean and the adversarial cross-entropy.

    Args:
        networks: The networks that train, by name: same image shape, same number of classes.
        attack: What the sources craft with; may be None where nobody learns from anybody.
        learns_from: A word or a mapping as `resolve_sources` takes.
        frozen: Networks that only craft, by name; never changed.
        domain_adaptation: One for every network that has a source, or a mapping from the names of some of them.
        adversarial_weight: r_adv, non-negative.
        seed: Seed of the attacks' random numbers. A step's numbers follow from it and the step count alone.
        name: Name of the Keras model.

    Raises:
        ValueError: If names, shapes or numbers of classes do not fit together.

    Warns:
        UserWarning: If two networks start from equal weights: the paper found that such a pair diverges (5.5).

    Example:
        >>> satm = CoTraining({"a": a, "b": b}, attack=RandomisedStep(epsilon=16 / 256))
        >>> satm.compile(optimizer=keras.optimizers.SGD(1e-3, momentum=0.9))
        >>> satm.fit(train, validation_data=validation, epochs=5)

    Source:
        Algorithm 1 of Liao, "Simultaneous Adversarial Training - Learn from Others' Mistakes".
    """

    def __init__(
        self,
        networks: Mapping[str, ImageClassifier],
        *,
        attack: Attack | None = None,
        learns_from: LearnsFrom = "others",
        frozen: Mapping[str, Callable[..., tf.Tensor]] | None = None,
        domain_adaptation: DomainAdversarial | Mapping[str, DomainAdversarial] | None = None,
        adversarial_weight: float = 1.0,
        seed: int = 0,
        name: str = "co_training",
    ):
        super().__init__(name=name)
        frozen = dict(frozen or {})
        self.sources = MappingProxyType(resolve_sources(learns_from, networks, frozen))
        self._learners = [name for name, sources in self.sources.items() if sources]
        _check(networks, frozen, attack, self._learners, adversarial_weight)
        self.networks = dict(networks)
        # A proxy, because Keras would take the variables of networks in a dict for this model's own.
        self.frozen = MappingProxyType(frozen)
        self.attack = attack
        self.adversarial_weight = adversarial_weight
        self.seed = seed
        if not isinstance(domain_adaptation, Mapping):
            domain_adaptation = dict.fromkeys(self._learners, domain_adaptation) if domain_adaptation else {}
        strangers = set(domain_adaptation) - set(self._learners)
        if strangers:
            raise ValueError(
                "Domain adaptation is for networks that learn from somebody. "
                f"Received: {sorted(strangers)}, among learners {self._learners}"
            )
        self.domain_adaptation = MappingProxyType(dict(domain_adaptation))
        self.domain_heads = {
            name: DomainHead(adaptation.hidden, name=f"{name}_domain") for name, adaptation in domain_adaptation.items()
        }
        for name, head in self.domain_heads.items():
            head.build((None, networks[name].feature_size))
        counter = {"shape": (), "dtype": "int64", "trainable": False, "aggregation": "only_first_replica"}
        self.step = self.add_weight(name="step", initializer="zeros", **counter)
        self.planned_steps = self.add_weight(name="planned_steps", initializer="zeros", **counter)
        self._means = {key: keras.metrics.Mean(name=key) for key in self._loss_names()}
        self._rates = {key: ClassificationRate(name=key) for key in self._rate_names()}
        self.built = True

    def _loss_names(self) -> list[str]:
        parts = [(name, part) for name in self.networks for part in ("loss", "clean_loss")]
        parts += [(name, "adversarial_loss") for name in self._learners]
        parts += [(name, part) for name in self.domain_heads for part in ("domain_loss", "domain_accuracy")]
        return ["loss", *(f"{name}_{part}" for name, part in parts)]

    def _rate_names(self) -> list[str]:
        names = [f"{name}_classification_rate" for name in self.networks]
        return names + [f"{name}_adversarial_classification_rate" for name in self._learners]

    def compile(self, optimizer: Any = "sgd", *, jit_compile: bool | str = False, **kwargs: Any) -> None:
        """As Keras's, without a loss: that is the method's. XLA is off unless asked for; on CPUs it was slower."""
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
        self.optimizer.build([v for name in self.networks for v in self._trained(name)])

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """As Keras's; tells the domain adaptation's schedule how many steps are planned."""
        return super().fit(*args, callbacks=[_PlanSteps(), *(callbacks or [])], **kwargs)

    def call(self, images: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        """The logits `[batch, classes]` of each network by name."""
        return {name: network(images, training=training) for name, network in self.networks.items()}

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of Algorithm 1; all adversarial examples are crafted before the first update."""
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        adversarial = self._craft_in_turn(images, labels)
        gradients, variables, total = [], [], 0.0
        for name in self.networks:
            with tf.GradientTape() as tape:
                loss = self._loss(name, images, labels, weights, adversarial.get(name, []), training=True)
                scaled = self.optimizer.scale_loss(loss / tf.distribute.get_strategy().num_replicas_in_sync)
            gradients += tape.gradient(scaled, self._trained(name))
            variables += self._trained(name)
            total += loss
        self.optimizer.apply(gradients, variables)
        self.step.assign_add(1)
        self._means["loss"].update_state(total, tf.shape(images)[0])
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """The same losses in inference mode, with every source of every network and the same noise each time."""
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        everyone = dict.fromkeys(source for sources in self.sources.values() for source in sources)
        crafted = self._craft(everyone, images, labels, -1)
        total = sum(
            self._loss(name, images, labels, weights, [crafted[source] for source in sources], training=False)
            for name, sources in self.sources.items()
        )
        self._means["loss"].update_state(total, tf.shape(images)[0])
        return self.get_metrics_result()

    def _trained(self, name: str) -> list[keras.Variable]:
        layers: list[keras.layers.Layer] = [self.networks[name]]
        if name in self.domain_heads:
            layers.append(self.domain_heads[name])
        return [variable for layer in layers for variable in layer.trainable_variables]

    def _craft(self, sources: Any, images: tf.Tensor, labels: tf.Tensor, step: Any) -> dict[str, tf.Tensor]:
        seed = tf.random.experimental.stateless_fold_in(tf.constant([self.seed, 0]), step)
        everyone: dict[str, Any] = {**self.networks, **self.frozen}
        attack = cast(Attack, self.attack)  # the constructor has seen to it
        return {
            source: attack(
                everyone[source],
                images,
                labels,
                seed=tf.random.experimental.stateless_fold_in(seed, list(everyone).index(source)),
            )
            for source in sources
        }

    def _craft_in_turn(self, images: tf.Tensor, labels: tf.Tensor) -> dict[str, list[tf.Tensor]]:
        """For each network that learns, the adversarial images of the source whose turn it is, in a list of one."""
        if not self._learners:
            return {}
        period = math.lcm(*(len(self.sources[name]) for name in self._learners))

        def craft(turn: int) -> list[tf.Tensor]:
            chosen = [self.sources[name][turn % len(self.sources[name])] for name in self._learners]
            crafted = self._craft(dict.fromkeys(chosen), images, labels, self.step)
            return [crafted[source] for source in chosen]

        turns = [functools.partial(craft, turn) for turn in range(period)]
        crafted = turns[0]() if period == 1 else tf.switch_case(tf.cast(self.step % period, tf.int32), turns)
        return {name: [images] for name, images in zip(self._learners, crafted, strict=True)}

    def _loss(
        self,
        name: str,
        images: tf.Tensor,
        labels: tf.Tensor,
        weights: tf.Tensor | None,
        adversarial: list[tf.Tensor],
        training: bool,
    ) -> tf.Tensor:
        """A network's loss, averaged over the batch; updates the network's metrics."""
        network = self.networks[name]
        count, sources = tf.shape(images)[0], len(adversarial)
        # One pass, so that batch normalisation sees clean and adversarial images together.
        features = network.features(tf.concat([images, *adversarial], 0), training=training)
        logits = network.classify(features, training=training)
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.tile(labels, [1 + sources]), logits)
        if weights is not None:
            cross_entropy *= tf.tile(tf.cast(weights, tf.float32), [1 + sources])
        parts = {"clean_loss": cross_entropy[:count]}
        loss = tf.reduce_mean(parts["clean_loss"])
        self._rates[f"{name}_classification_rate"].update_state(labels, logits[:count])
        if sources:
            parts["adversarial_loss"] = cross_entropy[count:]
            loss += self.adversarial_weight * tf.reduce_mean(parts["adversarial_loss"])
            self._rates[f"{name}_adversarial_classification_rate"].update_state(
                tf.tile(labels, [sources]), logits[count:]
            )
        if sources and name in self.domain_heads:
            adaptation = self.domain_adaptation[name]
            domain_logits = self.domain_heads[name](features, strength=adaptation.strength_at(self._progress()))[:, 0]
            is_adversarial = tf.cast(tf.range(tf.shape(domain_logits)[0]) >= count, tf.float32)
            losses = tf.nn.sigmoid_cross_entropy_with_logits(is_adversarial, domain_logits)
            hits = tf.cast((domain_logits > 0) == (is_adversarial > 0), tf.float32)
            # The mean of the two domains' means: with several sources there are more adversarial than clean images.
            for part, values in (("domain_loss", losses), ("domain_accuracy", hits)):
                parts[part] = (tf.reduce_mean(values[:count]) + tf.reduce_mean(values[count:])) / 2
            loss += adaptation.weight * parts["domain_loss"]
        for part, values in parts.items():
            self._means[f"{name}_{part}"].update_state(tf.reduce_mean(values), count)
        if network.losses:
            loss += tf.add_n(network.losses)
        self._means[f"{name}_loss"].update_state(loss, count)
        return loss

    def _progress(self) -> tf.Tensor:
        """The share of the planned steps that is done, in [0, 1]; 1 where nothing was planned."""
        planned = tf.cast(self.planned_steps, tf.float32)
        return tf.where(planned > 0, tf.minimum(tf.cast(self.step, tf.float32) / tf.maximum(planned, 1.0), 1.0), 1.0)


class _PlanSteps(keras.callbacks.Callback):
    """Tells the model how many steps `fit` is going to take in all."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.model.planned_steps.assign(self.params["epochs"] * (self.params["steps"] or 0))


def _check(
    networks: Mapping[str, ImageClassifier],
    frozen: Mapping[str, Any],
    attack: Attack | None,
    learners: list[str],
    adversarial_weight: float,
) -> None:
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
    if learners and attack is None:
        raise ValueError(f"An attack is needed where networks learn from adversarial examples. Learners: {learners}")
    if adversarial_weight < 0:
        raise ValueError(f"adversarial_weight must be non-negative. Received: {adversarial_weight}")
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
