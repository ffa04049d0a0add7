"""Validation under attacks that training does not use: its figures, its alarm, and what other callbacks make of it."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining, ImageClassifier, RobustValidation
from satm_tf.attacks import FGSM, PGD
from satm_tf.data import Examples, batches
from satm_tf.training import Checkpoint

SIZE, EPSILON = 12, 0.2
PGD_KEY, ONE_KEY, ROBUST = "val_a_pgd_accuracy", "val_a_single_step_accuracy", "val_robust_accuracy"


def bars(count, seed):
    """Noise with a brighter bar at the height of the class."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 4).astype(np.int32)
    images = rng.integers(60, 190, (count, SIZE, SIZE, 3))
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 3] += 65
    return Examples(labels=labels, images=images.astype(np.uint8))


def network(name="a", width=24):
    images = x = keras.Input((SIZE, SIZE, 3))
    for strides in (1, 2, 2):
        x = keras.layers.Conv2D(width, 3, strides, padding="same", activation="relu")(x)
    return ImageClassifier(keras.Model(images, x), 4, image_shape=(SIZE, SIZE, 3), name=name)


def fitted(callbacks, *, epochs=2, optimizer=None, count=64, networks=None, **options):
    keras.utils.set_random_seed(0)
    networks = networks or {"a": network(width=4)}
    options = {"learns_from": "itself", "attack": FGSM(epsilon=EPSILON), **options}
    trainer = CoTraining(networks, **options)
    trainer.compile(optimizer or keras.optimizers.Adam(3e-3))
    train = batches(bars(count, 0), image_size=SIZE, batch_size=32, shuffle=True)
    return trainer, trainer.fit(train, epochs=epochs, verbose=0, callbacks=callbacks).history


VALIDATION = batches(bars(128, 1), image_size=SIZE, batch_size=48)


def scripted(monkeypatch, **kept):
    """Lets the callback find these shares of 100 images right, epoch by epoch."""
    epochs = iter(zip(*kept.values(), strict=True))

    def measure(self):
        shares = dict(zip(kept, next(epochs), strict=True))
        return {kind: {"a": np.arange(100) < 100 * share} for kind, share in shares.items()}

    monkeypatch.setattr(RobustValidation, "_measure", measure)


def test_the_figures_are_those_of_the_attacks_and_stand_where_others_find_them(capsys):
    source = network("source", width=4)
    validation = RobustValidation(VALIDATION, sources={"s": source}, limit=100, on_overfitting="ignore")
    seen = []
    # The callback comes last, and is called first all the same.
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(dict(logs)))
    trainer, history = fitted([watch, validation], networks={"a": network(width=4), "b": network("b", width=6)})

    taken = [(images[:count], labels[:count]) for (images, labels), count in zip(VALIDATION, (48, 48, 4), strict=True)]
    right = {}
    for index, (images, labels) in enumerate(taken):
        key = tf.constant([0, index])
        for name, target in trainer.networks.items():
            crafted = {
                f"{name}_pgd": PGD(epsilon=EPSILON, steps=10)(target, images, labels, seed=key),
                f"{name}_single_step": FGSM(epsilon=EPSILON)(target, images, labels),
                f"{name}_from_s": PGD(epsilon=EPSILON, steps=10)(source, images, labels, seed=key),
            }
            for kind, adversarial in crafted.items():
                right.setdefault(kind, []).extend(np.argmax(target(adversarial), -1) == labels)
    expected = {f"val_{kind}_accuracy": np.mean(each) for kind, each in right.items()}
    expected[ROBUST] = (expected["val_a_from_s_accuracy"] + expected["val_b_from_s_accuracy"]) / 2
    # A few images may be at the border, where another compilation rounds to the other side.
    assert {key: history[key][-1] for key in expected} == pytest.approx(expected, abs=0.02)
    assert [row[ROBUST] for row in seen] == history[ROBUST]
    assert validation.seconds > 0


def test_keras_stops_and_the_best_weights_come_back(monkeypatch):
    scripted(monkeypatch, clean=[0.9] * 4, pgd=[0.3, 0.6, 0.5, 0.4], single_step=[0.6] * 4)
    weights = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(kernel()))
    kernel = lambda: networks["a"].trainable_variables[0].numpy()  # noqa: E731
    networks = {"a": network(width=4)}
    validation = RobustValidation(VALIDATION, restore_best=True)
    stop = keras.callbacks.EarlyStopping(monitor=ROBUST, mode="max", patience=2)
    _, history = fitted([stop, watch, validation], epochs=9, networks=networks)
    assert history[ROBUST] == [0.3, 0.6, 0.5, 0.4]
    assert (validation.best, validation.best_epoch) == (0.6, 1)
    np.testing.assert_array_equal(kernel(), weights[1])
    assert np.abs(weights[1] - weights[3]).max() > 0


def epochs_until_stopped(epochs, limit=100, learns_from=("a",)):
    """The callback alone, epoch by epoch, in the place of a training."""
    validation = RobustValidation(VALIDATION, on_overfitting="stop", limit=limit)
    validation._batches = validation._take()
    history = defaultdict(list)
    model = SimpleNamespace(
        networks={"a": SimpleNamespace(num_classes=4)},
        sources={"a": learns_from},
        history=SimpleNamespace(history=history),
        stop_training=False,
    )
    validation.set_model(model)
    for epoch in range(epochs):
        logs = {}
        validation.on_epoch_end(epoch, logs)
        for key, value in logs.items():
            history[key].append(value)
        if model.stop_training:
            break
    return epoch + 1


@pytest.mark.parametrize(
    ("clean", "single_step", "pgd", "epoch"),
    [
        ([0.6, 0.8, 0.9], [0.4, 0.5, 0.8], [0.3, 0.4, 0.05], 2),  # what was there is lost
        ([0.6, 0.8], [0.4, 0.7], [0.02, 0.03], 1),  # it never was: one step hardly harms
        ([0.6, 0.8, 0.9], [0.4, 0.5, 0.6], [0.3, 0.4, 0.45], None),  # an honest run
        ([0.8, 0.9, 0.9], [0.3, 0.2, 0.1], [0.05, 0.01, 0.0], None),  # undefended, or SATM: one step harms too
        ([0.8, 0.9, 0.9], [0.5, 0.3, 0.2], [0.4, 0.2, 0.05], None),  # both fall: too large a learning rate
        ([0.25, 0.25], [0.25, 0.25], [0.2, 0.0], None),  # at chance
    ],
)
def test_the_alarm(monkeypatch, clean, single_step, pgd, epoch):
    scripted(monkeypatch, clean=clean, pgd=pgd, single_step=single_step)
    if epoch is None:
        assert epochs_until_stopped(len(clean)) == len(clean)  # a warning would be an error
    else:
        with pytest.warns(UserWarning, match=rf"a has overfitted to single steps in epoch {epoch + 1}: accuracy is"):
            assert epochs_until_stopped(9) == epoch + 1


@pytest.mark.slow
def test_catastrophic_overfitting_made_on_purpose_is_caught_and_an_honest_run_is_not():
    """FGSM without a random start at a large epsilon; and PGD of 3 steps at a smaller one."""
    validation = RobustValidation(VALIDATION, limit=128, on_overfitting="stop")
    with pytest.warns(UserWarning, match="has overfitted to single steps"):
        _, history = fitted([validation], epochs=20, count=512, networks={"a": network()}, clean_weight=0.0)
    assert history[PGD_KEY][-1] < 0.25 * history[ONE_KEY][-1], "seen: 2 % against 64 %"

    honest = RobustValidation(VALIDATION, limit=128, on_overfitting="stop")
    attack = PGD(epsilon=0.05, steps=3)
    _, history = fitted([honest], epochs=4, count=512, networks={"a": network()}, attack=attack)
    assert len(history["loss"]) == 4
    assert history[PGD_KEY][-1] > 0.5


def test_an_average_of_the_weights_is_what_validation_and_callbacks_see(tmp_path):
    """One step an epoch, momentum 0.6: by hand the average is 0.6 times the last one and 0.4 times the weights."""
    networks = {"a": network(width=4)}
    kernel = lambda: networks["a"].trainable_variables[0].numpy()  # noqa: E731
    steps, tested, shown = [], [], []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(kernel()),
        on_test_batch_end=lambda batch, logs: tested.append(kernel()),
        on_epoch_end=lambda epoch, logs: shown.append(kernel()),
    )
    sgd = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.6)
    keras.utils.set_random_seed(0)
    trainer = CoTraining(networks, "undefended")
    trainer.compile(sgd)
    train = batches(bars(32, 0), image_size=SIZE, batch_size=32)
    validation = RobustValidation(VALIDATION, attack=PGD(epsilon=0.05, steps=2), limit=48)
    checkpoint = Checkpoint(tmp_path)
    callbacks = [watch, validation, checkpoint]
    history = trainer.fit(train, validation_data=train, epochs=3, verbose=0, callbacks=callbacks).history

    averages = [steps[0]]
    for weights in steps[1:]:
        averages.append(0.6 * averages[-1] + 0.4 * weights)
    assert np.abs(averages[1] - steps[1]).max() > 1e-4
    for seen in (tested, shown):
        np.testing.assert_allclose(seen, averages, atol=1e-6)
    np.testing.assert_allclose(kernel(), averages[-1], atol=1e-6)
    images, labels = next(iter(VALIDATION))
    adversarial = PGD(epsilon=0.05, steps=2)(networks["a"], images, labels, seed=tf.constant([0, 0]))
    right = np.mean(np.argmax(networks["a"](adversarial), -1) == labels)
    assert history[PGD_KEY][-1] == pytest.approx(right, abs=0.02)

    # The checkpoint holds the weights themselves: training continues from these.
    other = CoTraining({"a": network(width=4)}, "undefended")
    other.compile(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.6))
    again = RobustValidation(VALIDATION, attack=PGD(epsilon=0.05, steps=2), limit=48)
    restored = Checkpoint(tmp_path)
    restored.restore(other, [again, restored])
    np.testing.assert_array_equal(other.networks["a"].trainable_variables[0], steps[-1])


def test_its_state_is_part_of_the_checkpoint(monkeypatch, tmp_path):
    scripted(monkeypatch, clean=[0.9] * 4, pgd=[0.3, 0.6, 0.5, 0.4], single_step=[0.6] * 4)
    first = RobustValidation(VALIDATION, restore_best=True)
    fitted([first, Checkpoint(tmp_path)], epochs=3)
    second = RobustValidation(VALIDATION, restore_best=True)
    _, history = fitted([second, Checkpoint(tmp_path)], epochs=4)
    assert history[ROBUST] == [0.3, 0.6, 0.5, 0.4]
    assert (second.best, second.best_epoch) == (0.6, 1)
    for ours, theirs in zip(second.best_weights, first.best_weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_no_alarm_of_few_images_or_of_a_network_that_does_not_learn_from_itself(monkeypatch):
    """The figures are those of an alarm above, which would stop the training after the second epoch."""
    for options in ({"limit": 49}, {"learns_from": ("f",)}):
        scripted(monkeypatch, clean=[0.6, 0.8, 0.8], pgd=[0.02, 0.03, 0.03], single_step=[0.4, 0.7, 0.7])
        assert epochs_until_stopped(3, **options) == 3


def test_what_it_cannot_do_is_refused():
    for options, message in (({"on_overfitting": "panic"}, "Received: 'panic'"), ({"limit": 0}, "Received: 0")):
        with pytest.raises(ValueError, match=message):
            RobustValidation(VALIDATION, **options)
    with pytest.raises(ValueError, match="Give `attack`"):
        fitted([RobustValidation(VALIDATION)], learns_from="nobody", attack=None)
    with pytest.raises(ValueError, match="an empty dataset"):
        fitted([RobustValidation(VALIDATION.take(0))])
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"is for satm_tf.CoTraining. Received: Sequential"):
        model.fit(np.zeros([2, 2]), np.zeros([2]), verbose=0, callbacks=[RobustValidation(VALIDATION)])
