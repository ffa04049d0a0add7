"""Attacks with many gradient steps: one loop, whose options give the known methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import tensorflow as tf

from satm_tf.attacks.base import LossAttack, Model, consensus, input_gradient
from satm_tf.attacks.loops import iterate, select
from satm_tf.attacks.losses import divergence
from satm_tf.attacks.norms import NORMS
from satm_tf.attacks.sources import at_step, logits_of
from satm_tf.attacks.transforms import Transform

_fold_in = tf.random.experimental.stateless_fold_in


class _Motion(NamedTuple):
    """The state of a run, all `[batch, height, width, channels]`: images, velocity, the neighbours' correction."""

    x: tf.Tensor
    velocity: tf.Tensor
    variance: tf.Tensor


class _Best(NamedTuple):
    """The best of several runs: images, and the loss `[batch]` of each."""

    images: tf.Tensor
    loss: tf.Tensor


@dataclass(frozen=True, kw_only=True)
class IterativeAttack(LossAttack, name="iterative"):
    """Steps of steepest ascent, each projected back into the ball; the settings give the known methods.

    With `g` the gradient, `v` the velocity and `m` the momentum, a step is `v <- m v + g / mean|g|` and `x <- project(x
    + step_size * steepest(v))`. The label sources "predicted" and "least_likely" choose the class once, at the clean
    image. The loop is a `tf.while_loop`, so more steps take no longer to trace.

    Attributes:
        steps: Number of gradient steps, at least 1.
        step_size: Length of a step in units of images in [0, 1]; None is `epsilon / steps` (2.5 times that for PGD,
            1.25 times for RS-FGSM).
        random_start: Whether to start from a uniformly random point in the ball instead of the image.
        restarts: Number of random starts; each image keeps the result of the highest loss.
        momentum: The decay factor of the velocity, mu in Dong et al.; 0 turns it off.
        nesterov: Whether to take the gradient at the look-ahead point `x + step_size * m v`.
        neighbours: Variance tuning: the number of random neighbours, whose mean gradient minus the current one is added
            to the next; 0 turns it off. Each costs one gradient per step.
        neighbourhood: Half the width of the cube that they are drawn from, in units of epsilon; beta in Wang and He.
        transforms: Transforms that improve transfer, as objects, names or mappings.
        loss: "cross_entropy", "margin", "dlr", "hot_cold" or "evading_margin".

    Raises:
        ValueError: If a number is out of range, a name unknown, or restarts would all be the same.

    Example:
        >>> mi_di_ti = MIFGSM(epsilon=16 / 256, transforms=(InputDiversity(), TranslationInvariance()))
        >>> adversarial = mi_di_ti(network, images, labels)
    """

    reach: ClassVar[float] = 1.0
    at_least: ClassVar[Mapping[str, float]] = {"steps": 1, "restarts": 1, "momentum": 0, "neighbours": 0}

    steps: int = 10
    step_size: float | None = None
    random_start: bool = False
    restarts: int = 1
    momentum: float = 0.0
    nesterov: bool = False
    neighbours: int = 0
    neighbourhood: float = 1.5
    transforms: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "transforms", tuple(Transform.get(part) for part in self.transforms))
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"step_size must be positive. Received: step_size={self.step_size}")
        if self.neighbourhood < 0:
            raise ValueError(f"neighbourhood must be at least 0. Received: neighbourhood={self.neighbourhood}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"Restarts need random_start=True. Received: restarts={self.restarts}")

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Runs one attempt for each start, and keeps the best of each image."""
        classes = self.classes(model, images, labels)
        if self.restarts == 1:
            return self._attempt(model, images, classes, epsilon, seed)

        def restart(index: tf.Tensor, state: _Best) -> _Best:
            found = self._attempt(model, images, classes, epsilon, _fold_in(seed, index))
            loss = consensus(self.objective(logits_of(model, found), classes), rank=1)
            return select(loss > state.loss, _Best(found, loss), state)

        start = _Best(images, tf.fill(tf.shape(images)[:1], -tf.float32.max))
        return iterate(restart, start, self.restarts).images

    def _attempt(
        self, model: Model, images: tf.Tensor, classes: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        norm = NORMS[self.norm]
        step_size = epsilon * self.reach / self.steps if self.step_size is None else self.step_size

        def gradient_at(network: Model, point: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
            # The last transform wraps first, so that images pass the transforms in order.
            for place, part in reversed(list(enumerate(self.transforms))):
                network = part.network(network, _fold_in(key, place))
            return input_gradient(network, point, lambda logits: self.objective(logits, classes))[0]

        def around(network: Model, point: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
            def add(index: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
                own = _fold_in(key, index + len(self.transforms))
                offset = epsilon * self.neighbourhood * tf.random.stateless_uniform(tf.shape(point), own, -1.0, 1.0)
                return total + gradient_at(network, point + offset, own)

            return iterate(add, tf.zeros_like(point), self.neighbours) / self.neighbours

        def step(index: tf.Tensor, state: _Motion) -> _Motion:
            key = _fold_in(seed, index)
            network = at_step(model, index)
            point = state.x + step_size * self.momentum * state.velocity if self.nesterov else state.x
            gradient = gradient_at(network, point, key)
            direction = gradient + state.variance
            for part in self.transforms:
                direction = part.gradient(direction)
            size = tf.reduce_mean(tf.abs(direction), axis=(1, 2, 3), keepdims=True)
            velocity = self.momentum * state.velocity + tf.math.divide_no_nan(direction, size)
            variance = around(network, point, key) - gradient if self.neighbours else state.variance
            x = self.project(state.x + step_size * norm.steepest(velocity), images, epsilon)
            return _Motion(x, velocity, variance)

        start = images
        if self.random_start:
            start = self.project(images + epsilon * norm.random(tf.shape(images), seed), images, epsilon)
        still = tf.zeros_like(images)
        return iterate(step, _Motion(start, still, still), self.steps).x


@dataclass(frozen=True, kw_only=True)
class BIM(IterativeAttack, name="bim"):
    """Basic iterative method, iterative FGSM: `steps` steps of `epsilon / steps` from the image itself.

    Source:
        Kurakin et al., "Adversarial Examples in the Physical World", ICLR Workshops 2017, section 2.2.
    """


@dataclass(frozen=True, kw_only=True)
class IterativeLL(IterativeAttack, name="iterative_ll"):
    """Iterative least likely class: BIM toward the class that is least likely at the clean image.

    Source:
        Kurakin et al., "Adversarial Examples in the Physical World", ICLR Workshops 2017, section 2.3.
    """

    label_source: str = "least_likely"


@dataclass(frozen=True, kw_only=True)
class PGD(IterativeAttack, name="pgd"):
    """Projected gradient descent: a random start, and steps that together could cross the ball.

    Source:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
    """

    reach: ClassVar[float] = 2.5

    random_start: bool = True


@dataclass(frozen=True, kw_only=True)
class RSFGSM(PGD, name="rs_fgsm"):
    """FGSM from a random start: one step of 1.25 epsilon from a point uniform in the ball, the cheapest to train on.

    Example:
        >>> adversarial = RSFGSM(epsilon=8 / 255)(network, images, labels)

    Source:
        Wong et al., "Fast is better than free: Revisiting adversarial training", ICLR 2020, Algorithm 3.
    """

    reach: ClassVar[float] = 1.25

    steps: int = 1


@dataclass(frozen=True, kw_only=True)
class KLPGD(PGD, name="kl_pgd"):
    """PGD on the divergence `KL(p(x) || p(x'))` between the answers to clean and adversarial image, without labels.

    The start is uniform in the ball, as PGD's; the authors' code starts from normal noise of standard deviation 0.001.

    Raises:
        ValueError: If there is no random start: at the image itself the divergence has no gradient.

    Example:
        >>> adversarial = KLPGD(epsilon=8 / 255)(network, images, labels)

    Source:
        Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy" (TRADES), ICML 2019, Eq. 5.
    """

    label_sources: ClassVar[Sequence[str]] = ("predicted",)

    label_source: str = "predicted"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.random_start:
            raise ValueError(
                "At the clean image the divergence has no gradient; use random_start=True. Received: random_start=False"
            )

    def classes(self, model: Model, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """The logits `[..., batch, classes]` of the images, the reference of the divergence."""
        return tf.stop_gradient(logits_of(model, images))

    def objective(self, logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """The divergence, `[..., batch]`."""
        return divergence(classes, logits)


@dataclass(frozen=True, kw_only=True)
class MIFGSM(IterativeAttack, name="mi_fgsm"):
    """Momentum iterative FGSM.

    Source:
        Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018, Algorithm 1.
    """

    momentum: float = 1.0


@dataclass(frozen=True, kw_only=True)
class NIFGSM(MIFGSM, name="ni_fgsm"):
    """Nesterov iterative FGSM; with `transforms=("scale_invariance",)` SI-NI-FGSM.

    Gradients are divided by their mean absolute value, as the authors' code does, not by their L1 norm, as the paper
    prints: with the norm, the look-ahead point would hardly differ from `x`.

    Source:
        Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", ICLR 2020, Eq. 4-5.
    """

    nesterov: bool = True


@dataclass(frozen=True, kw_only=True)
class VMIFGSM(MIFGSM, name="vmi_fgsm"):
    """Variance-tuned momentum iterative FGSM.

    Source:
        Wang and He, "Enhancing the Transferability of Adversarial Attacks through Variance Tuning", CVPR 2021.
    """

    neighbours: int = 20
