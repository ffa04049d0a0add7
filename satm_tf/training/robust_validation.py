"""Validation under attacks that training does not use, after each epoch."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from satm_tf.attacks import FGSM, PGD, Attack
from satm_tf.metrics import at_chance

# A network overfits to single steps if its accuracy under many steps is below this share of that under one step ...
_MANY_STEPS = 0.25
# ... although accuracy under one step is almost as high as on clean images,
_ONE_STEP = 0.75
# ... or although accuracy under many steps was once at least this, and higher than now by the first share.
_ONCE_ROBUST = 0.1
# With fewer images, a share is too uncertain for a warning.
_ENOUGH = 50
MONITOR = "val_robust_accuracy"


class RobustValidation(keras.callbacks.Callback):
    """Measures every network after each epoch under PGD with 10 steps, and under examples of given surrogates.

    Validation with the training attack does not reveal catastrophic overfitting: within one epoch, single-step
    adversarial training may become robust to single steps only. This callback warns of it, or stops the training.

    The metrics are in the logs of the epoch, where other callbacks, such as `EarlyStopping` and `TensorBoard`, find
    them: `val_<network>_pgd_accuracy`, `val_<network>_single_step_accuracy`, and `val_<network>_from_<source>_accuracy`
    for each surrogate; and `val_robust_accuracy`, the mean over the networks of the share of images that withstand all
    surrogates, or, without any, PGD. If an optimizer keeps moving averages of the weights, all metrics use those.

    Args:
        dataset: Batches of `(images, labels)`, such as the validation data; the first `limit` images are used.
        sources: Surrogates by name. They must not change: their examples are crafted once.
        attack: Replaces PGD with 10 steps and the largest epsilon that the training uses.
        limit: Number of images.
        on_overfitting: "warn", once for each network, "stop" to end the training too, or "ignore".
        restore_best: Whether to restore the weights of the epoch with the highest `val_robust_accuracy` at the end of
            `fit`.
        seed: Seed of the attack's random numbers, which are the same in every epoch.

    Attributes:
        best: The highest `val_robust_accuracy` so far.
        best_epoch: Its epoch.
        seconds: How long this has taken; `fit` prints it at the end unless `verbose=0`.

    Raises:
        ValueError: If an option is unknown, there are no images, or the model is not a `CoTraining`.

    Warns:
        UserWarning: If a network has overfitted to single steps. Either its accuracy under a single step is at least
            three quarters of its clean accuracy, and that under PGD less than a quarter of that under the single step;
            or its accuracy under PGD was once at least 10 % and is now less than a quarter of its best, while that
            under a single step has not fallen. There is no warning for a network that is no better than chance or does
            not learn from its own examples, nor with fewer than 50 images.

    Example:
        >>> robust = RobustValidation(validation, sources={"densenet": densenet}, on_overfitting="stop")
        >>> trainer.fit(train, validation_data=validation, epochs=30, callbacks=[robust, Checkpoint("run")])

    Source:
        Wong, Rice and Kolter, "Fast is better than free", ICLR 2020, on catastrophic overfitting and its symptom.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        *,
        sources: Mapping[str, Callable[..., tf.Tensor]] | None = None,
        attack: Attack | None = None,
        limit: int = 200,
        on_overfitting: Literal["warn", "stop", "ignore"] = "warn",
        restore_best: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        if on_overfitting not in ("warn", "stop", "ignore"):
            raise ValueError(f"on_overfitting must be warn, stop or ignore. Received: {on_overfitting!r}")
        if limit < 1:
            raise ValueError(f"limit must be at least 1. Received: {limit}")
        self.dataset = dataset
        self.sources = dict(sources or {})
        self.attack = attack
        self.limit = limit
        self.on_overfitting = on_overfitting
        self.restore_best = restore_best
        self.seed = seed
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.best_weights: list[np.ndarray] = []
        self.seconds = 0.0
        self._told: set[str] = set()

    def on_train_begin(self, logs: Any = None) -> None:
        if not hasattr(self.model, "networks"):
            raise ValueError(f"RobustValidation is for satm_tf.CoTraining. Received: {type(self.model).__name__}")
        began = time.monotonic()
        self._batches = self._take()
        attack = self.attack or PGD(epsilon=self._epsilon(), steps=10)
        single = FGSM(epsilon=attack.epsilon) if attack.norm == "linf" else None
        networks = self.model.networks

        def answers(images: tf.Tensor) -> tf.Tensor:
            return tf.stack([tf.argmax(network(images, training=False), -1) for network in networks.values()])

        signature = [
            tf.TensorSpec([None, *self._batches[0][0].shape[1:]]),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([2], tf.int32),
        ]

        @tf.function(input_signature=signature, autograph=False)
        def attacked(images: tf.Tensor, labels: tf.Tensor, key: tf.Tensor) -> dict[str, tf.Tensor]:
            found = {"clean": answers(images)}
            for kind, each in (("pgd", attack), ("single_step", single)):
                if each is not None:
                    found[kind] = tf.stack(
                        [
                            tf.argmax(network(each(network, images, labels, seed=key), training=False), -1)
                            for network in networks.values()
                        ]
                    )
            return found

        self._attacked = attacked
        self._answers = tf.function(answers, input_signature=signature[:1], autograph=False)
        self._transferred = {
            name: [attack.compiled(source)(images, labels, seed=key) for images, labels, key in self._batches]
            for name, source in self.sources.items()
        }
        self.seconds += time.monotonic() - began

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        began = time.monotonic()
        right = self._measure()
        figures = {
            f"val_{name}_{kind}_accuracy": float(correct.mean())
            for kind, each in right.items()
            if kind != "clean"
            for name, correct in each.items()
        }
        withstood = [right[f"from_{name}"] for name in self.sources] or [right["pgd"]]
        robust = [np.all([each[name] for each in withstood], axis=0).mean() for name in self.model.networks]
        figures[MONITOR] = float(np.mean(robust))
        count = sum(len(labels) for _, labels, _ in self._batches)
        if self.on_overfitting != "ignore" and "single_step" in right and count >= _ENOUGH:
            # Only a network that learns from its own examples can learn to make them weak.
            for name in (each for each in self.model.networks if each in self.model.sources[each]):
                self._look_at(name, epoch, float(right["clean"][name].mean()), figures)
        if logs is not None:
            logs.update(figures)
        if self.best is None or figures[MONITOR] > self.best:
            self.best, self.best_epoch = figures[MONITOR], epoch
            if self.restore_best:
                self.best_weights = [np.array(each) for n in self.model.networks.values() for each in n.get_weights()]
        self.seconds += time.monotonic() - began

    def on_train_end(self, logs: Any = None) -> None:
        weights = iter(self.best_weights)
        for network in self.model.networks.values() if self.best_weights else ():
            network.set_weights([next(weights) for _ in network.weights])
        if self.params.get("verbose"):
            print(f"robust validation: {self.seconds:.0f} s, best in epoch {(self.best_epoch or 0) + 1}")

    def _take(self) -> list[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
        batches, left = [], self.limit
        for index, (images, labels) in enumerate(self.dataset):
            some = tf.cast(images[:left], tf.float32), tf.cast(labels[:left], tf.int32)
            batches.append((*some, tf.constant([self.seed, index])))
            left -= len(some[1])
            if left <= 0:
                break
        if not batches:
            raise ValueError("RobustValidation needs images. Received: an empty dataset")
        return batches

    def _epsilon(self) -> float:
        scheme, sources = self.model.scheme, self.model.sources
        epsilons = [
            scheme.attack_on(source, learner, trained=source in self.model.networks).epsilon
            for learner, its in sources.items()
            for source in its
        ]
        if not epsilons:
            raise ValueError(
                "No network learns from adversarial examples, so there is no epsilon to validate with. Give "
                "`attack`. Received: attack=None"
            )
        return max(epsilons)

    def _measure(self) -> dict[str, dict[str, np.ndarray]]:
        """The images that each network classifies correctly, without an attack and under each attack."""
        found: dict[str, list[np.ndarray]] = {}
        for index, (images, labels, key) in enumerate(self._batches):
            answers = dict(self._attacked(images, labels, key))
            for name, adversarial in self._transferred.items():
                answers[f"from_{name}"] = self._answers(adversarial[index])
            for kind, classes in answers.items():
                found.setdefault(kind, []).append(classes.numpy() == labels.numpy())
        return {
            kind: dict(zip(self.model.networks, np.concatenate(each, axis=1), strict=True))
            for kind, each in found.items()
        }

    def _look_at(self, name: str, epoch: int, clean: float, figures: Mapping[str, float]) -> None:
        """Reports a network that has overfitted to single steps."""
        many, one = (f"val_{name}_{kind}_accuracy" for kind in ("pgd", "single_step"))
        now_many, now_one = figures[many], figures[one]
        # The earlier epochs, including those before an interruption.
        past = self.model.history.history
        best_many, then_one = max(zip(past.get(many, []), past.get(one, []), strict=True), default=(0.0, 0.0))
        classes = self.model.networks[name].num_classes
        robust = best_many >= _ONCE_ROBUST and not at_chance(best_many, classes)
        lost = robust and now_many < _MANY_STEPS * best_many and now_one >= then_one
        never_there = now_one >= _ONE_STEP * clean and now_many < _MANY_STEPS * now_one
        if (lost or never_there) and not at_chance(clean, classes):
            message = (
                f"{name} has overfitted to single steps in epoch {epoch + 1}: accuracy is {now_one:.1%} under one step "
                f"and {now_many:.1%} under PGD"
                + (f", after {best_many:.1%} at its best" if best_many else "")
                + ". Use a random start (rs_fgsm), a smaller epsilon or more steps."
            )
            if name not in self._told:
                self._told.add(name)
                warnings.warn(message, stacklevel=2)
            if self.on_overfitting == "stop":
                self.model.stop_training = True
