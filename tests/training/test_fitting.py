"""`compile` and `fit` as Keras users know them, and what they refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining, DomainAdversarial
from satm_tf.attacks import FGSM
from satm_tf.training import RampedEpsilon, UniformEpsilon
from tests.training.by_hand import ATTACK, EPSILON

RATE = 0.1
# Float32 sums over 12 images in another order.
TOLERANCE = 2e-6


@pytest.fixture
def trainer(make_network):
    """A compiled trainer of one network that learns from nobody."""
    trainer = CoTraining({"a": make_network("a")}, "undefended")
    trainer.compile("sgd")
    return trainer


def assert_weights(network, expected, tolerance=TOLERANCE):
    for variable, value in zip(network.weights, expected.weights, strict=True):
        np.testing.assert_allclose(variable, value, rtol=0, atol=tolerance, err_msg=variable.path)


def test_class_weights_are_those_of_plain_fit(make_network, images, labels):
    a, plain = make_network("a"), make_network("plain")
    plain.set_weights(a.get_weights())
    trainer = CoTraining({"a": a}, learns_from="nobody")
    trainer.compile(keras.optimizers.SGD(RATE))
    plain.compile(keras.optimizers.SGD(RATE), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for model in (trainer, plain):
        model.fit(images, labels, batch_size=4, shuffle=False, verbose=0, class_weight={0: 0.1, 1: 2.0, 2: 1.0, 3: 3.0})
    assert_weights(a, plain)


def test_early_stopping_watches_the_sum_and_restores_the_best(make_network, images, labels):
    networks = {"a": make_network("a"), "b": make_network("b", width=4)}
    trainer = CoTraining(networks, attack=ATTACK)
    trainer.compile(keras.optimizers.SGD(50.0))  # diverges, so the first epoch is the best
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    history = trainer.fit(images, labels, validation_data=(images, labels), epochs=20, verbose=0, callbacks=[stop])
    assert len(history.history["loss"]) < 20
    best = min(history.history["val_loss"])
    assert trainer.evaluate(images, labels, verbose=0, return_dict=True)["loss"] == pytest.approx(best, rel=1e-5)


def test_the_schedule_knows_how_many_steps_are_planned(make_network, images, labels):
    trainer = CoTraining(
        {"a": make_network("a"), "b": make_network("b", width=4)},
        attack=FGSM(epsilon=EPSILON),
        domain_adaptation=DomainAdversarial(hidden=4),
    )
    trainer.compile("sgd")
    trainer.fit(images, labels, epochs=2, batch_size=6, verbose=0)
    assert (int(trainer.planned_steps), int(trainer.step)) == (4, 4)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"loss": "sparse_categorical_crossentropy"},
            r"takes no `loss`\. The scheme is .*Received: loss='sparse",
        ),
        ({"loss_weights": [1.0]}, r"takes no `loss_weights`\. Give `clean_weight`"),
        ({"weighted_metrics": ["accuracy"]}, r"takes no `weighted_metrics`\. Sample weights scale the losses alone"),
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


@pytest.mark.parametrize(
    "callback",
    [
        lambda folder: keras.callbacks.ModelCheckpoint(folder / "a.keras"),
        lambda folder: keras.callbacks.BackupAndRestore(folder),
        lambda folder: keras.callbacks.SwapEMAWeights(),
    ],
    ids=["ModelCheckpoint", "BackupAndRestore", "SwapEMAWeights"],
)
def test_callbacks_that_cannot_work_are_refused_before_the_first_step(trainer, images, labels, callback, tmp_path):
    callback = callback(tmp_path)
    with pytest.raises(ValueError, match=f"{type(callback).__name__} does not work with CoTraining"):
        trainer.fit(images, labels, verbose=0, callbacks=[callback])
    assert int(trainer.step) == 0


@pytest.mark.parametrize("method", ["save", "save_weights", "export"])
def test_a_trainer_has_no_file_and_says_what_has(trainer, method, tmp_path):
    with pytest.raises(ValueError, match=rf"save each of its networks.*satm_tf\.Checkpoint.*Received: {method}\(\)"):
        getattr(trainer, method)(tmp_path / "trainer.keras")


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
    def test_a_second_fit_without_anything_left_to_ramp_warns(self, make_network, images, labels, fields):
        trainer = self.make(make_network, **fields)
        trainer.fit(images, labels, verbose=0)
        with pytest.warns(UserWarning, match=r"full strength from the first step, because the 1 steps planned"):
            trainer.fit(images, labels, verbose=0)
        trainer.fit(images, labels, epochs=5, initial_epoch=2, verbose=0)  # planned as Keras means it: no warning

    def test_data_of_unknown_length_warns(self, make_network, images, labels):
        trainer = self.make(make_network, **self.RAMPS["epsilon"])
        data = tf.data.Dataset.from_tensors((images, labels)).filter(lambda *_: True)
        with pytest.warns(UserWarning, match="because the data is of unknown length; give `steps_per_epoch`"):
            trainer.fit(data, verbose=0)

    def test_without_a_ramp_nothing_warns(self, make_network, images, labels):
        constant = DomainAdversarial(hidden=4, strength=0.5)
        trainer = self.make(make_network, domain_adaptation=constant, epsilon_schedule=UniformEpsilon())
        for _ in range(2):
            trainer.fit(images, labels, verbose=0)


class Tracker(keras.callbacks.Callback):
    """What Keras callbacks of W&B (`WandbMetricsLogger`) and MLflow (`MlflowCallback`) do with a model."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_begin(self, logs=None):
        self.parameters = {f"optimizer_{key}": value for key, value in self.model.optimizer.get_config().items()}
        lines = []
        self.model.summary(print_fn=lambda line, *args, **kwargs: lines.append(line))
        self.summary = "\n".join(lines)
        self.asked = dict(self.params)

    def _record(self, step, logs):
        rate = self.model.optimizer.learning_rate
        rate = float(rate.numpy() if hasattr(rate, "numpy") else rate(step=step).numpy())
        self.found.append((int(self.model.optimizer.iterations.numpy()), rate, {k: float(v) for k, v in logs.items()}))

    def on_train_batch_end(self, batch, logs=None):
        self._record(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._record(epoch, logs)


def test_callbacks_of_experiment_trackers_find_what_they_look_for(make_network, images, labels):
    trainer = CoTraining({"a": make_network("a"), "b": make_network("b", width=4)}, epsilon=0.1)
    trainer.compile(keras.optimizers.Adam(1e-3))
    tracker = Tracker()
    history = trainer.fit(images, labels, batch_size=6, epochs=2, verbose=0, callbacks=[tracker]).history
    assert tracker.parameters["optimizer_name"] == "adam"
    assert "a (ImageClassifier)" in tracker.summary
    assert tracker.asked["epochs"] == 2
    steps = len(images) // 6
    assert [step for step, *_ in tracker.found] == [
        *range(1, steps + 1),
        steps,
        *range(steps + 1, 2 * steps + 1),
        2 * steps,
    ]
    assert {rate for _, rate, _ in tracker.found} == {float(np.float32(1e-3))}
    assert tracker.found[-1][2] == {key: values[-1] for key, values in history.items()}
