"""Domain adaptation: making a network's features of clean and adversarial images similar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import tensorflow as tf

from satm_tf.configurable import Configurable, unknown_name
from satm_tf.layers import GradientReversal


@dataclass(frozen=True, kw_only=True)
class DomainAdaptation(Configurable, kind="domain adaptation"):
    """An additional part of a network's loss, on the features that feed the classification layer.

    Attributes:
        weight: r_da, the weight of this part in the network's loss. Non-negative.

    Raises:
        ValueError: If the weight is negative.
    """

    metrics: ClassVar[tuple[str, ...]] = ("domain_loss",)

    weight: float = 0.1

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight must be non-negative. Received: weight={self.weight}")

    @property
    def ramps(self) -> bool:
        """Whether this part of the loss depends on the progress of the training."""
        return False

    def head(self, num_sources: int, name: str) -> keras.layers.Layer | None:
        """The domain classifier of a network with this number of sources, if it needs one."""
        return None

    def losses(
        self,
        head: keras.layers.Layer | None,
        clean: tf.Tensor,
        adversarial: tf.Tensor,
        sources: tf.Tensor,
        progress: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The additional loss of each image of a batch, and the values to log.

        Args:
            head: The result of `head`.
            clean: Features of the clean images, float32 `[batch, size]`.
            adversarial: Features of their adversarial twins, float32 `[k, batch, size]`.
            sources: Which of the network's sources made each of the k batches, int32 `[k]`.
            progress: The share of the training that is done, float32 in [0, 1].

        Returns:
            The weighted loss `[batch]`, and for each of `metrics` its values `[batch]`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define its part of the loss: implement `losses`.")


@dataclass(frozen=True, kw_only=True)
class DomainAdversarial(DomainAdaptation, name="domain_adversarial"):
    """Domain-adversarial adaptation: a classifier of clean against adversarial, behind a gradient reversal.

    Attributes:
        weight: At 1.0 without a schedule, a network without batch normalisation collapsed.
        strength: Strength of the gradient reversal: a constant, or "ganin" for `2 / (1 + exp(-10 p)) - 1` with p the
            share of the training that is done.
        hidden: Width of the first of the two fully-connected layers.
        domains: "two", clean and adversarial; or "sources", clean and one for each network that crafts.

    Raises:
        ValueError: If a number is negative or a name unknown.

    Example:
        >>> CoTraining(networks, attack=attack, domain_adaptation=DomainAdversarial(weight=0.1))

    Source:
        Section 4.2 of Liao (SATM); Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016.
    """

    metrics: ClassVar[tuple[str, ...]] = ("domain_loss", "domain_accuracy")

    strength: float | str = "ganin"
    hidden: int = 256
    domains: str = "two"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.strength == "ganin" if isinstance(self.strength, str) else self.strength >= 0
        if self.hidden < 1 or not known:
            raise ValueError(
                f"hidden must be positive, and strength a non-negative number or 'ganin'. Received: {self}"
            )
        if self.domains not in ("two", "sources"):
            raise unknown_name("set of domains", self.domains, ("two", "sources"))

    @property
    def ramps(self) -> bool:
        return self.strength == "ganin"

    def head(self, num_sources: int, name: str) -> DomainHead:
        return DomainHead(self.hidden, 1 + num_sources if self.domains == "sources" else 2, name=name)

    def strength_at(self, progress: tf.Tensor) -> tf.Tensor:
        """The strength, float32, when the share `progress` in [0, 1] of the training is done."""
        if self.strength == "ganin":
            return 2.0 / (1.0 + tf.exp(-10.0 * tf.cast(progress, tf.float32))) - 1.0
        return tf.constant(self.strength, tf.float32)

    def losses(
        self, head: Any, clean: tf.Tensor, adversarial: tf.Tensor, sources: tf.Tensor, progress: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        domains = 1 + sources if self.domains == "sources" else tf.ones_like(sources)
        losses, hits = _classified(head, clean, adversarial, domains, self.strength_at(progress))
        return self.weight * losses, {"domain_loss": losses, "domain_accuracy": hits}


@dataclass(frozen=True, kw_only=True)
class DomainDiscriminative(DomainAdaptation, name="domain_discriminative"):
    """Adversarial discriminative adaptation, as in ADDA: a discriminator, and features that learn to look clean.

    The discriminator learns to distinguish clean from adversarial features, and its gradient stops at the features. The
    network learns from the inverted label, so that the discriminator takes its adversarial features for clean ones.
    Clean features receive no gradient, as ADDA's source encoder; unlike there, one network produces both.

    Attributes:
        hidden: Width of the first of the discriminator's two fully-connected layers.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> CoTraining(networks, attack=attack, domain_adaptation=DomainDiscriminative(weight=0.05))

    Source:
        Tzeng et al., "Adversarial Discriminative Domain Adaptation", CVPR 2017, Eq. 9.
    """

    metrics: ClassVar[tuple[str, ...]] = ("domain_loss", "domain_accuracy", "discriminator_loss")

    hidden: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1:
            raise ValueError(f"hidden must be positive. Received: hidden={self.hidden}")

    def head(self, num_sources: int, name: str) -> DomainHead:
        return DomainHead(self.hidden, 2, name=name)

    def losses(
        self, head: Any, clean: tf.Tensor, adversarial: tf.Tensor, sources: tf.Tensor, progress: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        discriminator, hits = _classified(
            head, tf.stop_gradient(clean), tf.stop_gradient(adversarial), tf.ones_like(sources), tf.constant(1.0)
        )
        # As constants: the discriminator must not learn from the inverted labels.
        fixed = [(variable, tf.stop_gradient(variable.value)) for variable in head.trainable_variables]
        with keras.StatelessScope(state_mapping=fixed):
            logits = head.classify(adversarial)
        passed = tf.reduce_mean(-tf.nn.log_softmax(logits)[..., 0], axis=0)
        watched = {"domain_loss": passed, "domain_accuracy": hits, "discriminator_loss": discriminator}
        return self.weight * passed + discriminator, watched


@dataclass(frozen=True, kw_only=True)
class UnifiedEmbedding(DomainAdaptation, name="unified_embedding"):
    """Pulls the features of a clean image and of its adversarial twin together: the squared L2 distance between them.

    Attributes:
        pivot: Whether the clean features stay where they are and only the adversarial ones move ("pivot loss"); if not,
            both move ("bidirectional loss").

    Raises:
        ValueError: If the weight is negative.

    Example:
        >>> CoTraining(networks, learns_from="frozen", attack=attack, domain_adaptation=UnifiedEmbedding(weight=1e-4))

    Source:
        Na et al., "Cascade Adversarial Machine Learning Regularized with a Unified Embedding", ICLR 2018, Section 3;
        there the embedding is the input of the softmax, here the features before the classification layer.
    """

    weight: float = 1e-4
    pivot: bool = False

    def losses(
        self, head: Any, clean: tf.Tensor, adversarial: tf.Tensor, sources: tf.Tensor, progress: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        goal = tf.stop_gradient(clean) if self.pivot else clean
        distances = tf.reduce_mean(tf.reduce_sum(tf.square(adversarial - goal), axis=-1), axis=0)
        return self.weight * distances, {"domain_loss": distances}


@keras.saving.register_keras_serializable(package="satm_tf")
class DomainHead(keras.layers.Layer):
    """Two fully-connected layers behind a gradient reversal: features `[..., size]` to logits `[..., domains]`.

    The first domain is the clean one. Two domains have one logit between them, the adversarial one's; the clean one's
    is 0, so that the softmax is the sigmoid.

    Args:
        hidden: Width of the first layer.
        domains: Number of domains, at least 2.
    """

    def __init__(self, hidden: int = 256, domains: int = 2, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.hidden = hidden
        self.domains = domains
        self.reversal = GradientReversal(name="reversal", dtype="float32")
        self.first = keras.layers.Dense(hidden, activation="relu", name="first", dtype="float32")
        self.second = keras.layers.Dense(domains if domains > 2 else 1, name="second", dtype="float32")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.first.build(input_shape)
        self.second.build((None, self.hidden))

    def call(self, features: tf.Tensor, strength: tf.Tensor | float = 1.0) -> tf.Tensor:
        return self.classify(self.reversal(features, strength=strength))

    def classify(self, features: tf.Tensor) -> tf.Tensor:
        """The same without the reversal."""
        logits = self.second(self.first(features))
        return logits if self.domains > 2 else tf.concat([tf.zeros_like(logits), logits], -1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "hidden": self.hidden, "domains": self.domains}


def _classified(
    head: DomainHead, clean: tf.Tensor, adversarial: tf.Tensor, domains: tf.Tensor, strength: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The losses `[batch]` and hits `[batch]` of a domain head; clean and adversarial count alike.

    `domains` is the domain of each adversarial batch, int32 `[k]`, or of each of its images, `[k, batch]`.
    """
    domains = domains if domains.shape.rank == 2 else domains[:, None]
    features = tf.concat([clean[None], adversarial], 0)
    truth = tf.concat([tf.zeros_like(domains[:1]), domains], 0) + tf.zeros(tf.shape(features)[:2], tf.int32)
    logits = head(features, strength=strength)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(truth, logits)
    hits = tf.cast(tf.argmax(logits, -1, tf.int32) == truth, tf.float32)
    return tuple((each[0] + tf.reduce_mean(each[1:], axis=0)) / 2 for each in (losses, hits))
