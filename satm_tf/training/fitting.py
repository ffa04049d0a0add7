"""The Keras interface of the trainer: `compile`, `fit`, `evaluate`, and what they refuse."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from satm_tf.training.checkpoint import Checkpoint
from satm_tf.training.crafting import Crafting
from satm_tf.training.distribution import DistributedFit, Position, naming_lost_workers, on_device
from satm_tf.training.domain import DomainAdaptation
from satm_tf.training.figures import Figures, MetricLike, resolve_metrics
from satm_tf.training.guards import check_callbacks, naming_bad_values
from satm_tf.training.objective import Objective
from satm_tf.training.optimization import AveragedWeights, NetworkOptimizer, in_half_precision
from satm_tf.training.robust_validation import RobustValidation
from satm_tf.training.scheme import Scheme


def _refused(method: str) -> Callable[..., NoReturn]:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: save or export each of `networks`.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "CoTraining cannot be saved to a file: save each of its networks, `trainer.networks[name].save(...)`, and "
            f"add a satm_tf.Checkpoint to the callbacks of `fit` to resume training. Received: {method}()"
        )

    refuse.__name__ = method
    return refuse


class Fitting(DistributedFit):
    """A model of several networks, each with its own optimizer and objective.

    A subclass sets the attributes declared here and defines the steps.
    """

    scheme: Scheme
    domain_adaptation: Mapping[str, DomainAdaptation]
    devices: Mapping[str, str]
    ordered: bool
    step: keras.Variable
    planned_steps: keras.Variable
    optimizers: Mapping[str, NetworkOptimizer]
    averages: AveragedWeights
    _crafting: Crafting
    _objectives: Mapping[str, Objective]
    _figures: Figures
    _given_order: bool | None
    _given_metrics: MetricLike | Sequence[MetricLike] | None
    _skip: int

    def _make_figures(self) -> Figures:
        learners = self._crafting.learners
        losses = {name: objective.parts(name in learners) for name, objective in self._objectives.items()}
        with self.distribute_strategy.scope():
            return Figures(losses, learners, self.ordered, resolve_metrics(self._given_metrics))

    def ramps(self) -> bool:
        """Whether a step depends on how much of the planned training is done."""
        schedules = [self.scheme.epsilon_schedule, *self.domain_adaptation.values()]
        return any(getattr(each, "ramps", False) for each in schedules)

    def crafts_once(self, data: Any, split: str, *, quiet: bool) -> Any:
        """Crafts the examples of "training" or "validation" data that are crafted before the first step.

        Returns:
            The data as the steps take it: with numbered images if there are such examples.
        """
        if self._crafting.kept is None or not (split == "training" or hasattr(data, "numbered")):
            return data
        if not hasattr(data, "numbered"):
            raise ValueError(
                "crafted_once needs data with numbered images, such as that of satm_tf.data.batches; pass such data, "
                f"or crafted_once=0. Received: {type(data).__name__}"
            )
        self._crafting.craft_once(split, data.in_order(), quiet=quiet)
        return data.numbered

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer | str | Mapping[str, Any] = "sgd",
        loss: None = None,
        loss_weights: None = None,
        metrics: MetricLike | Sequence[MetricLike] | None = None,
        weighted_metrics: None = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | str = False,
    ) -> None:
        """As Keras's `compile`, without a loss, which the scheme defines.

        Each network gets a copy of the optimizer, with its own state (`optimizers`), and scales its loss if it computes
        in float16. `optimizer` itself holds the learning rate of all, which callbacks can change.

        Args:
            optimizer: Any except a `LossScaleOptimizer`.
            loss: Refused.
            loss_weights: Refused.
            metrics: Metrics of integer labels `[n]` and logits `[n, classes]`, without sample weights. Each network
                gets a copy for its answers to clean images, `<network>_<metric>`, and, if it learns from adversarial
                examples, one for its answers to these, `<network>_adversarial_<metric>`. "accuracy" is always reported.
            weighted_metrics: Refused.
            run_eagerly: Whether to run steps without compiling them, for debugging.
            steps_per_execution: How many steps run between two calls of the callbacks.
            jit_compile: True is refused; "auto" is off.

        Raises:
            ValueError: If an option would have no effect or cannot work, or does not work on several replicas when
                there are several.
        """
        refused = {
            "loss": (loss, "The scheme defines the loss; give the classification loss to the constructor as `loss`"),
            "loss_weights": (loss_weights, "Give `clean_weight`, `adversarial_weight` and so on to the constructor"),
            "weighted_metrics": (weighted_metrics, "Sample weights scale only the losses; give `metrics`"),
            "jit_compile": (
                jit_compile is True or None,
                "XLA drops the checks of images, labels and losses, and draws other random numbers; leave it off",
            ),
        }
        for option, (value, advice) in refused.items():
            if value is not None:
                raise ValueError(f"compile() of CoTraining takes no `{option}`. {advice}. Received: {option}={value!r}")
        with self.distribute_strategy.scope():
            optimizer = keras.optimizers.get(optimizer)
            if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
                raise ValueError(
                    "CoTraining itself scales the loss of each network that needs it. Pass the inner optimizer. "
                    f"Received: {optimizer.name!r}"
                )
            super().compile(
                optimizer=optimizer,
                run_eagerly=run_eagerly,
                steps_per_execution=steps_per_execution,
                jit_compile=False,
                auto_scale_loss=False,
            )
            self.optimizer.build([])
            self.check_compiled()
            optimizers = {}
            for name, objective in self._objectives.items():
                with on_device(self.devices, name):
                    optimizers[name] = NetworkOptimizer(
                        self.optimizer,
                        objective.trainable_variables(),
                        in_half_precision(objective.network),
                        f"{name}_optimizer",
                    )
            self.optimizers = MappingProxyType(optimizers)
            self.averages = AveragedWeights(list(optimizers.values()))
        self._given_metrics = metrics
        self._figures = self._make_figures()

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool | None = None,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int = 1,
    ) -> keras.callbacks.History:
        """As Keras's `fit`. With a `Checkpoint` among the callbacks, it resumes from the last checkpoint.

        To resume, the data must be able to start in the middle, as data of `satm_tf.data.batches` can. Arrays are
        shuffled unless `shuffle` is False; a data set keeps its order.

        Raises:
            ValueError: If images or labels have the wrong type, shape or range; if a callback does not work with
                `CoTraining`; or if the data cannot start at the checkpoint's position.
            FloatingPointError: If a part of a loss, or its gradient, is not a finite number; the message gives step,
                network and part. That step changed no weights, batch statistics or dropout seeds.
            ConnectionError: If another worker has stopped.

        Warns:
            UserWarning: If a schedule over the training cannot work: the length of the data is unknown, or earlier
                calls have taken all planned steps.
        """
        # Callbacks that add figures come before those that read them, and a checkpoint last, so that it saves the
        # effects of all other callbacks.
        given = sorted(
            keras.tree.flatten(callbacks or []),
            key=lambda callback: isinstance(callback, Checkpoint) - isinstance(callback, RobustValidation),
        )
        check_callbacks(given)
        is_dataset = isinstance(x, tf.data.Dataset)
        if is_dataset and batch_size is not None:
            raise ValueError(
                f"A data set has its own batch size; leave out batch_size. Received: batch_size={batch_size}"
            )
        ordered = getattr(x, "ordered", False) is True if self._given_order is None else self._given_order
        if ordered != self.ordered:
            self.ordered = ordered
            self._figures = self._make_figures()
            self.train_function = self.test_function = None  # which hold the earlier figures
        checkpoint = given[-1] if given and isinstance(given[-1], Checkpoint) else None
        position = Position()
        if checkpoint is not None:
            if steps_per_epoch is not None:
                raise ValueError(
                    "With a Checkpoint, an epoch covers all the data; leave out steps_per_epoch. Received: "
                    f"steps_per_epoch={steps_per_epoch}"
                )
            position = checkpoint.restore(self, given)
            initial_epoch = epochs if position.stopped else max(initial_epoch, position.epoch)
        self._skip = position.step
        try:
            with naming_lost_workers(), naming_bad_values():
                if initial_epoch < epochs:
                    # `before` holds the checkpoint's figures.
                    x = self.crafts_once(x, "training", quiet=not verbose)
                    validation_data = self.crafts_once(validation_data, "validation", quiet=not verbose)
                return super().fit(
                    self.distributed(x, None if checkpoint is None else position),
                    y,
                    batch_size=batch_size,
                    epochs=epochs,
                    verbose=verbose,
                    callbacks=[_Plan(initial_epoch), *given],
                    validation_split=validation_split,
                    validation_data=self.distributed_validation(validation_data),
                    shuffle=not is_dataset if shuffle is None else shuffle,
                    class_weight=class_weight,
                    sample_weight=sample_weight,
                    initial_epoch=initial_epoch,
                    steps_per_epoch=steps_per_epoch,
                    validation_steps=validation_steps,
                    validation_batch_size=validation_batch_size,
                    validation_freq=validation_freq,
                )
        finally:
            self.averages.take_out()
            if checkpoint is not None:
                checkpoint.release()

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras's `evaluate`; refuses the images and labels that `fit` refuses.

        Raises:
            ValueError: If images or labels have the wrong type, shape or range.
        """
        with naming_bad_values():
            return super().evaluate(*args, **kwargs)

    def make_train_function(self, force: bool = False) -> None:
        """As Keras's, but skips the steps that a checkpoint already includes."""
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

    save = _refused("save")
    save_weights = _refused("save_weights")
    export = _refused("export")
    get_config = _refused("get_config")


class _Plan(keras.callbacks.Callback):
    """Tells the model the total number of steps of `fit`, and applies the optimizers' moving averages.

    The networks use these from a validation to the next epoch, and permanently at the end.
    """

    def __init__(self, initial_epoch: int):
        super().__init__()
        self.initial_epoch = initial_epoch

    def on_train_begin(self, logs: Any = None) -> None:
        epochs, steps = self.params["epochs"], self.params["steps"]
        planned, done = epochs * (steps or 0), int(np.asarray(self.model.step))
        self.model.planned_steps.assign(planned)
        if self.model.ramps() and self.initial_epoch < epochs and done >= planned:
            reason = (
                f"the {planned} steps planned were taken by earlier calls of fit; count their epochs in `epochs`, "
                "with `initial_epoch`"
                if steps
                else "the data is of unknown length; give `steps_per_epoch`"
            )
            warnings.warn(
                f"Epsilon and gradient reversal are at their full strength from the first step, because {reason}.",
                stacklevel=2,
            )

    def on_test_begin(self, logs: Any = None) -> None:
        self.model.averages.put_in()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.averages.put_in()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.averages.take_out()

    def on_train_end(self, logs: Any = None) -> None:
        self.model.averages.take_out()
        for optimizer in self.model.optimizers.values():
            optimizer.finalize()
