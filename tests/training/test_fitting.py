"""`compile` and `fit` as Keras users know them, and what they refuse."""

import contextlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining, DomainAdversarial
from satm_tf.attacks import FGSM
from satm_tf.training import RampedEpsilon, UniformEpsilon
from tests.training.by_hand import ATTACK, EPSILON


@pytest.fixture
def trainer(make_network):
    """A compiled trainer of one network that learns from nobody."""
    trainer = CoTraining({"a": make_network("a")}, "undefended")
    trainer.compile("sgd")
    return trainer


def test_early_stopping_watches_the_sum_and_restores_the_best(make_network, images, labels):
    networks = {"a": make_network("a"), "b": make_network("b", width=4)}
    trainer = CoTraining(networks, attack=ATTACK)
    trainer.compile(keras.optimizers.SGD(50.0))  # diverges, so the first epoch is the best
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    history = trainer.fit(images, labels, validation_data=(images, labels), epochs=20, verbose=0, callbacks=[stop])
    assert len(history.history["loss"]) < 20
    best = min(history.history["val_loss"])
    assert trainer.evaluate(images, labels, verbose=0, return_dict=True)["loss"] == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"loss": "sparse_categorical_crossentropy"},
            r"takes no `loss`\. The scheme defines .*Received: loss='sparse",
        ),
        ({"loss_weights": [1.0]}, r"takes no `loss_weights`\. Give `clean_weight`"),
        ({"weighted_metrics": ["accuracy"]}, r"takes no `weighted_metrics`\. Sample weights scale only the losses"),
        ({"jit_compile": True}, r"takes no `jit_compile`\. XLA drops the checks"),
    ],
)
def test_compile_refuses_what_it_would_ignore(trainer, option, message):
    with pytest.raises(ValueError, match=message):
        trainer.compile("sgd", **option)


def test_auto_is_off_and_what_keras_lacks_is_unknown(trainer):
    trainer.compile("sgd", jit_compile="auto")
    assert trainer.jit_compile is False
    with pytest.raises(TypeError, match="auto_scale_loss"):
        trainer.compile("sgd", auto_scale_loss=False)
    with pytest.raises(TypeError, match="epoch"):
        trainer.fit(epoch=3)


def test_fit_takes_keras_parameters_in_keras_order(trainer, images, labels):
    trainer.fit(images, labels, 4, 2, 0)
    assert int(trainer.step) == 6
    trainer.fit(images, labels, batch_size=6, validation_split=0.5, verbose=0)
    assert int(trainer.step) == 7
    data = tf.data.Dataset.from_tensors((images, labels))
    with pytest.raises(ValueError, match=r"its own batch size.*Received: batch_size=4"):
        trainer.fit(data, batch_size=4)


@pytest.mark.parametrize(("shuffle", "same"), [(None, False), (True, False), (False, True)])
def test_arrays_are_shuffled_by_default(trainer, images, labels, shuffle, same):
    seen = []
    trainer.train_step = lambda data: seen.append(data[1].numpy()) or {"loss": tf.zeros([])}
    trainer.compile("sgd", run_eagerly=True)
    keras.utils.set_random_seed(1)
    trainer.fit(images, labels, batch_size=12, verbose=0, shuffle=shuffle)
    assert np.array_equal(seen[0], labels) == same


class WandbModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """As W&B's: Keras's own, and an upload after it."""


class MlflowModelCheckpointCallback(keras.callbacks.Callback):
    """As MLflow's: no `ModelCheckpoint` of Keras's, and whatever it raises is only logged."""

    __module__ = "mlflow.tensorflow.callback"

    def on_epoch_end(self, epoch, logs=None):
        with contextlib.suppress(Exception):
            self.model.save("latest_checkpoint.h5", overwrite=True)


def test_callbacks_that_cannot_work_are_refused_before_the_first_step(trainer, images, labels, tmp_path):
    for callback in (
        keras.callbacks.ModelCheckpoint(tmp_path / "a.keras"),
        keras.callbacks.BackupAndRestore(tmp_path),
        keras.callbacks.SwapEMAWeights(),
        WandbModelCheckpoint(tmp_path / "a.keras"),
        MlflowModelCheckpointCallback(),
    ):
        with pytest.raises(ValueError, match=f"{type(callback).__name__} does not work with CoTraining"):
            trainer.fit(images, labels, verbose=0, callbacks=[callback])
    assert int(trainer.step) == 0


def test_a_trainer_has_no_file_and_no_configuration_and_says_what_has(trainer, tmp_path):
    calls = {method: [tmp_path / "trainer.keras"] for method in ("save", "save_weights", "export")}
    for method, arguments in {**calls, "get_config": [], "to_json": []}.items():
        received = method.replace("to_json", "get_config")
        with pytest.raises(ValueError, match=rf"each of its networks.*satm_tf\.Checkpoint.*Received: {received}\(\)"):
            getattr(trainer, method)(*arguments)


class TestRamps:
    RAMPS = {
        "reversal": {"domain_adaptation": DomainAdversarial(hidden=4)},
        "epsilon": {"epsilon_schedule": RampedEpsilon()},
    }

    def make(self, make_network, **fields):
        trainer = CoTraining({"a": make_network("a")}, learns_from="itself", attack=FGSM(epsilon=EPSILON), **fields)
        trainer.compile("sgd")
        return trainer

    @pytest.mark.parametrize("fields", RAMPS.values(), ids=RAMPS)
    def test_nothing_left_to_ramp_and_data_of_unknown_length_warn(self, make_network, images, labels, fields):
        trainer = self.make(make_network, **fields)
        trainer.fit(images, labels, verbose=0)
        with pytest.warns(UserWarning, match=r"full strength from the first step, because the 1 steps planned"):
            trainer.fit(images, labels, verbose=0)
        trainer.fit(images, labels, epochs=5, initial_epoch=2, verbose=0)  # planned as Keras means it: no warning
        data = tf.data.Dataset.from_tensors((images, labels)).filter(lambda *_: True)
        with pytest.warns(UserWarning, match="because the data is of unknown length; give `steps_per_epoch`"):
            trainer.fit(data, verbose=0)

    def test_without_a_ramp_nothing_warns(self, make_network, images, labels):
        constant = DomainAdversarial(hidden=4, strength=0.5)
        trainer = self.make(make_network, domain_adaptation=constant, epsilon_schedule=UniformEpsilon())
        for _ in range(2):
            trainer.fit(images, labels, verbose=0)


class WandbLogger(keras.callbacks.Callback):
    """What W&B's `WandbMetricsLogger` asks of a model, batch by batch."""

    def __init__(self):
        super().__init__()
        self.batches, self.epochs = [], []

    def _row(self, logs):
        rate = self.model.optimizer.learning_rate
        assert isinstance(rate, tf.Tensor) or rate.shape == ()
        return {**logs, "learning_rate": rate.numpy().item()}

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(self._row(logs))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self._row(logs))


class MlflowCallback(keras.callbacks.Callback):
    """What MLflow's callback of this name asks of a model; it too knows batches by the alias alone."""

    def __init__(self):  # without that of Keras, like the real one
        self.steps, self.epochs, self.validations = {}, {}, []

    def on_train_begin(self, logs=None):
        self.parameters = self.model.optimizer.get_config()
        lines = []
        self.model.summary(print_fn=lambda line, *args, **kwargs: lines.append(line))
        self.summary = "\n".join(lines)

    def on_batch_end(self, batch, logs=None):
        self.steps[int(self.model.optimizer.iterations.numpy())] = logs

    def on_epoch_end(self, epoch, logs=None):
        self.epochs[epoch] = logs

    def on_test_end(self, logs=None):
        self.validations.append(logs)


class TestExperimentTrackers:
    """The callbacks of W&B 0.31 and MLflow 3.18 were tried; these stand for them."""

    RATES = keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.1, 0.01, 0.001])

    @pytest.mark.parametrize(
        ("rate", "expected"),
        [(0.1, [0.1] * 4), (RATES, [0.1, 0.01, 0.01, 0.001])],  # after one to four steps
        ids=["constant", "schedule"],
    )
    def test_wandb_is_given_and_mlflow_adds_its_callback_to_that_of_keras_fit(
        self, make_network, images, labels, monkeypatch, rate, expected
    ):
        logger, callback, fit = WandbLogger(), MlflowCallback(), keras.Model.fit

        def patched(model, *args, **kwargs):
            kwargs["callbacks"].append(callback)
            return fit(model, *args, **kwargs)

        monkeypatch.setattr(keras.Model, "fit", patched)
        trainer = CoTraining({"a": make_network("a"), "b": make_network("b", width=4)}, attack=ATTACK)
        trainer.compile(keras.optimizers.SGD(rate))
        options = {"validation_data": (images, labels), "epochs": 2, "batch_size": 6, "verbose": 0}
        history = trainer.fit(images, labels, callbacks=[logger], **options).history
        assert [row["learning_rate"] for row in logger.batches] == pytest.approx(expected)
        assert {type(value) for row in logger.batches for value in row.values()} == {float}
        assert {"loss", "a_adversarial_accuracy", "b_loss"} <= logger.batches[0].keys()
        if rate == 0.1:
            assert callback.parameters["learning_rate"] == pytest.approx(0.1)
        for name, network in trainer.networks.items():
            assert re.search(rf"{name} \(ImageClassifier\) .* {network.count_params():,} ", callback.summary)
        assert list(callback.steps) == [1, 2, 3, 4]
        for epoch, row in enumerate(logger.epochs):
            figures = {key: values[epoch] for key, values in history.items()}
            assert row == {**figures, "learning_rate": pytest.approx(expected[2 * epoch + 1])}
            assert callback.epochs[epoch] == figures
            validated = {f"val_{key}": value for key, value in callback.validations[epoch].items()}
            assert validated.items() <= figures.items()
