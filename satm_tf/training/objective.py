"""The loss that one network minimises in a step, under any scheme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from satm_tf.attacks.losses import divergence
from satm_tf.attacks.norms import NORMS
from satm_tf.models import ImageClassifier
from satm_tf.training.crafting import Crafted
from satm_tf.training.domain import DomainAdaptation
from satm_tf.training.losses import ClassificationLoss
from satm_tf.training.passes import forward
from satm_tf.training.scheme import Terms


class Evaluated(NamedTuple):
    """A network's loss on a batch, and the other results that a step needs.

    Attributes:
        loss: The loss of each image, `[batch]`.
        parts: The parts of the loss before weighting, and what the domain adaptation logs, `[batch]` each.
        logits: `[1 + k, batch, classes]`, the clean images' first.
        updates: Variables, such as moving statistics and dropout's seeds, with their new values.
    """

    loss: tf.Tensor
    parts: dict[str, tf.Tensor]
    logits: tf.Tensor
    updates: list[tuple[keras.Variable, tf.Tensor]]


class Objective(NamedTuple):
    """The loss that a network minimises.

    Attributes:
        network: The network.
        terms: The scheme's fields that define the loss.
        classification_loss: The loss on the network's answers.
        batch_norm: A mode of `passes.forward`.
        auxiliary: For the mode "auxiliary", each batch normalisation variable with its counterpart.
        adaptation: The domain adaptation, if any.
        head: Its domain classifier, if it needs one.
        teachers: From images to logits, each network whose answers this one learns.
        null_epsilon: The largest value of a perturbation that has all of the null class's share.
    """

    network: ImageClassifier
    terms: Terms
    classification_loss: ClassificationLoss
    batch_norm: str
    auxiliary: Sequence[tuple[keras.Variable, keras.Variable]]
    adaptation: DomainAdaptation | None
    head: keras.layers.Layer | None
    teachers: Sequence[Callable[[tf.Tensor], tf.Tensor]]
    null_epsilon: float

    def trainable_variables(self) -> list[keras.Variable]:
        """All variables that the loss trains: the network's, and those needed only for training."""
        auxiliary = [copy for own, copy in self.auxiliary if own.trainable]
        head = self.head.trainable_variables if self.head else ()
        return [*self.network.trainable_variables, *head, *auxiliary]

    def parts(self, learns: bool) -> list[str]:
        """Names of the loss and its parts, for a network with or without adversarial examples."""
        optional = {"pairing_loss": self.terms.pairing_weight, "peer_loss": self.terms.peer_weight}
        adversarial = ["adversarial_loss", *(part for part, weight in optional.items() if weight)] if learns else []
        clean = {"gradient_loss": self.terms.gradient_penalty, "teacher_loss": self.terms.teacher_weight}
        penalty = [part for part, weight in clean.items() if weight]
        return ["loss", "clean_loss", *penalty, *adversarial, *(self.adaptation.metrics if self.adaptation else ())]

    def evaluate(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        weights: tf.Tensor | None,
        crafted: Crafted,
        progress: tf.Tensor,
        training: bool,
    ) -> Evaluated:
        """The loss on a clean batch and its adversarial batches; no variable changes."""
        terms, (adversarial, sources, peers, shares) = self.terms, crafted
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            if terms.gradient_penalty:
                tape.watch(images)
            features, logits, null, activity, updates = forward(
                self.network, [images, *adversarial], training=training, mode=self.batch_norm, auxiliary=self.auxiliary
            )
            entropies = self._cross_entropy(labels, logits, null, [images, *adversarial])
            losses = entropies[0]
        importance = 1.0 if weights is None else tf.cast(weights, tf.float32)
        parts = {"clean_loss": importance * losses}
        loss = terms.clean_weight * parts["clean_loss"]
        if terms.gradient_penalty:
            # Of the sum over the batch: a mean would underflow in float16. The dual norm is the rise along the steepest
            # step of unit length; its derivative is the one with that step held fixed.
            gradient = tape.gradient(losses, images)
            step = tf.stop_gradient(NORMS[terms.penalty_norm].steepest(gradient))
            parts["gradient_loss"] = importance * tf.reduce_sum(gradient * step, axis=[1, 2, 3])
            loss += terms.gradient_penalty * parts["gradient_loss"]
        if terms.teacher_weight:
            taught = [tf.nn.softmax(teacher(images) / terms.temperature) for teacher in self.teachers]
            taught = tf.stop_gradient(tf.reduce_mean(tf.stack(taught), axis=0))
            losses = tf.nn.softmax_cross_entropy_with_logits(taught, logits[0] / terms.temperature)
            parts["teacher_loss"] = importance * losses
            loss += terms.teacher_weight * parts["teacher_loss"]
        if adversarial:
            losses = divergence(logits[:1], logits[1:]) if terms.adversarial_loss == "divergence" else entropies[1:]
            parts["adversarial_loss"] = importance * _over_sources(losses, shares)
            loss += terms.adversarial_weight * parts["adversarial_loss"]
            if terms.pairing_weight:
                differences = tf.reduce_mean(tf.math.squared_difference(logits[:1], logits[1:]), axis=-1)
                parts["pairing_loss"] = _over_sources(differences, shares)
                loss += terms.pairing_weight * parts["pairing_loss"]
            if terms.peer_weight:
                losses = divergence(peers, logits[1:])
                if shares is None:
                    parts["peer_loss"] = tf.reduce_mean(losses, axis=[0, 1])
                else:
                    parts["peer_loss"] = _over_sources(tf.reduce_mean(losses, axis=0), shares)
                loss += terms.peer_weight * parts["peer_loss"]
            if self.adaptation is not None:
                added, watched = self.adaptation.losses(self.head, features[0], features[1:], sources, progress)
                loss += added
                parts |= watched
        loss += tf.add_n([activity, *self.network.losses])
        return Evaluated(loss, parts, logits, updates)

    def _cross_entropy(
        self,
        labels: tf.Tensor,
        logits: tf.Tensor,
        null: tf.Tensor | None,
        batches: Sequence[tf.Tensor],
    ) -> tf.Tensor:
        """The cross-entropy `[1 + k, batch]` of the answers to a clean batch and its adversarial ones.

        With a null class it is `(1 - share) * CE(label) + share * CE(null)` over all outputs, here written with the
        log-odds of the null class.
        """
        labels = tf.tile(labels[None], [len(batches), 1])
        losses = self.classification_loss(labels, logits / self.terms.temperature)
        if not self.terms.null_share:
            return losses
        sizes = tf.stack([tf.reduce_max(tf.abs(batch - batches[0]), axis=[1, 2, 3]) for batch in batches])
        share = self.terms.null_share * tf.minimum(tf.math.divide_no_nan(sizes, self.null_epsilon), 1.0)
        return (1 - share) * losses + tf.nn.sigmoid_cross_entropy_with_logits(share, null)


def _over_sources(losses: tf.Tensor, shares: tf.Tensor | None) -> tf.Tensor:
    """The weighted mean `[batch]` of losses `[k, batch]` over the sources."""
    return tf.reduce_mean(losses, axis=0) if shares is None else tf.tensordot(shares, losses, 1)
