"""Attacks with one gradient step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from satm_tf.attacks.base import Attack, Model
from satm_tf.attacks.losses import hot_cold
from satm_tf.attacks.norms import NORMS


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack, name="fgsm"):
    """Fast gradient sign method: `x + epsilon * sign(gradient of J(x, y))`; with `norm="l2"` the unit gradient.

    Example:
        >>> attack = FGSM(epsilon=16 / 256)
        >>> adversarial = attack(network, images, labels)

    Source:
        Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015; Eq. 1 of Liao (SATM).
    """

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        return images + epsilon * NORMS[self.norm].steepest(self.gradient(model, images, labels))


@dataclass(frozen=True, kw_only=True)
class FastGradientValue(Attack, name="fast_gradient_value"):
    """Fast gradient value: the gradient itself, not its sign, at the length `epsilon`; with `norm="l2"` it is FGSM's.

    Example:
        >>> adversarial = FastGradientValue(epsilon=16 / 256)(network, images, labels)

    Source:
        Rozsa et al., "Adversarial Diversity and Hard Positive Generation", CVPR Workshops 2016.
    """

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        gradient = self.gradient(model, images, labels)
        return images + epsilon * tf.math.divide_no_nan(gradient, NORMS[self.norm].length(gradient))


@dataclass(frozen=True, kw_only=True)
class HotCold(FastGradientValue, name="hot_cold"):
    """Hot/cold: one step that raises the logit of a hot class and lowers that of a cold one, each weighted by its size.

    Untargeted, the label is cold and the strongest other class hot; targeted, the target is hot and the strongest other
    class cold.

    Example:
        >>> adversarial = HotCold(epsilon=16 / 256, label_source="target")(network, images, targets)

    Source:
        Rozsa et al., "Adversarial Diversity and Hard Positive Generation", CVPR Workshops 2016.
    """

    def objective(self, logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        return self.direction * hot_cold(classes, logits)


@dataclass(frozen=True, kw_only=True)
class StepLL(FGSM, name="step_ll"):
    """Single step toward the least likely class: `x - epsilon * sign(gradient of J(x, y_LL))`.

    Eq. 2 of Liao (SATM) prints a plus, which would move away from that class; Kurakin et al. have the minus.

    Example:
        >>> adversarial = StepLL(epsilon=16 / 256)(network, images, labels)

    Source:
        Kurakin et al., "Adversarial Machine Learning at Scale", ICLR 2017.
    """

    label_source: str = "least_likely"


@dataclass(frozen=True, kw_only=True)
class RandomisedStep(Attack, name="randomised_step"):
    """R+Step-LL: a random step of `alpha` in every pixel, then one gradient step of `epsilon - alpha`.

    `x' = x + alpha * sign(N(0, I))`, kept inside [0, 1], then `x' - (epsilon - alpha) * sign(gradient of J(x', y_LL))`.
    With `alpha = epsilon / 2` and no clipping, each pixel moves by -epsilon, 0 or +epsilon.

    Eq. 3 and Algorithm 1 of Liao (SATM) print `x' + (epsilon - alpha) * sign(gradient of J(x', y_true))`, which Tramer
    et al. call R+FGSM: that is `label_source="label"`. The default is what the name says, because networks co-trained
    with the printed form encode the label in the perturbations that they craft for each other.

    Attributes:
        alpha: Size of the random step, in [0, epsilon]; None is half of epsilon.

    Raises:
        ValueError: If alpha is outside [0, epsilon].

    Example:
        >>> adversarial = RandomisedStep(epsilon=16 / 256)(network, images, labels, seed=7)

    Source:
        Tramer et al., "Ensemble Adversarial Training: Attacks and Defenses", ICLR 2018.
    """

    norms: ClassVar[Sequence[str]] = ("linf",)

    alpha: float | None = None
    label_source: str = "least_likely"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not 0 <= self.alpha <= self.epsilon:
            raise ValueError(
                f"alpha must lie in [0, epsilon]. Received: alpha={self.alpha} with epsilon={self.epsilon}"
            )

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        alpha = epsilon / 2 if self.alpha is None else tf.minimum(self.alpha, epsilon)
        noise = tf.sign(tf.random.stateless_normal(tf.shape(images), seed))
        start = tf.clip_by_value(images + alpha * noise, 0.0, 1.0)
        return start + (epsilon - alpha) * tf.sign(self.gradient(model, start, labels))
