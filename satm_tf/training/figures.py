"""The figures that a training reports for each network: losses, accuracies, and your own metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from satm_tf.metrics import OneOffAccuracy
from satm_tf.training.private_keras import sum_over_replicas

MetricLike: TypeAlias = keras.metrics.Metric | Callable[..., Any] | str | Mapping[str, Any]


class Figures:
    """The metrics of a `CoTraining`, by the key that Keras logs them under.

    Args:
        losses: For each network the parts of its loss, such as "clean_loss".
        learners: The networks that learn from adversarial examples, which are also measured on them.
        ordered: Whether one-off accuracies have a meaning.
        metrics: The caller's own, as `resolve_metrics` returns them.

    Raises:
        ValueError: If a metric has the name of another figure.
    """

    def __init__(
        self,
        losses: Mapping[str, Sequence[str]],
        learners: Sequence[str],
        ordered: bool,
        metrics: Mapping[str, keras.metrics.Metric | Callable[..., Any]],
    ):
        keys = ["loss", *(f"{name}_{part}" for name, parts in losses.items() for part in parts)]
        self._losses = {key: keras.metrics.Mean(name=key) for key in keys}
        self._answers: dict[str, list[keras.metrics.Metric]] = {}
        for which in (*losses, *(f"{name}_adversarial" for name in learners)):
            own = [keras.metrics.SparseCategoricalAccuracy(name=f"{which}_accuracy")]
            if ordered:
                own.append(OneOffAccuracy(name=f"{which}_one_off_accuracy"))
            self._answers[which] = own + [_copy(metric, f"{which}_{name}") for name, metric in metrics.items()]
        self.all = [*self._losses.values(), *(metric for each in self._answers.values() for metric in each)]
        names = [metric.name for metric in self.all]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is already the name of a figure; give the metric another name.")
        for metric in self.all:
            sum_over_replicas(metric)

    def update_loss(self, key: str, values: tf.Tensor) -> None:
        """Adds the losses `[batch]` of a step to the mean of that key."""
        self._losses[key].update_state(values)

    def update_answers(self, which: str, labels: tf.Tensor, logits: tf.Tensor) -> None:
        """Adds the logits `[k, batch, classes]` for labels `[batch]` to the metrics of a network's answers."""
        # Flattened: Keras averages a metric over all axes but the first, and a small batch counts less.
        labels, logits = tf.tile(labels, [logits.shape[0]]), tf.reshape(logits, [-1, logits.shape[-1]])
        for metric in self._answers[which]:
            metric.update_state(labels, logits)


def resolve_metrics(
    metrics: MetricLike | Sequence[MetricLike] | None,
) -> dict[str, keras.metrics.Metric | Callable[..., Any]]:
    """Metrics by name, from the argument of `compile`, without "accuracy", which is always reported.

    Raises:
        ValueError: If one is unknown, two have one name, or there are metrics for each output.
    """
    if metrics is None:
        return {}
    given = list(metrics) if isinstance(metrics, list | tuple) else [metrics]
    nested = [each for each in given if isinstance(each, list | tuple)]
    by_output = [each for each in given if isinstance(each, Mapping) and "class_name" not in each]
    if nested or by_output:
        raise ValueError(f"`metrics` must be one list, of which every network gets a copy. Received: {metrics!r}")
    found = [keras.metrics.get(each) for each in given if each not in ("accuracy", "acc")]
    names = [each.name if isinstance(each, keras.metrics.Metric) else each.__name__ for each in found]
    if len(set(names)) < len(names):
        raise ValueError(f"Metrics need different names. Received: {', '.join(names)}")
    return dict(zip(names, found, strict=True))


def _copy(metric: keras.metrics.Metric | Callable[..., Any], name: str) -> keras.metrics.Metric:
    if not isinstance(metric, keras.metrics.Metric):
        return keras.metrics.MeanMetricWrapper(metric, name=name)
    return type(metric).from_config({**metric.get_config(), "name": name})
