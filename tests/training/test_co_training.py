"""What `CoTraining` does around its steps: fitting, validating, its figures, and what must stay as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining, DomainAdversarial, ImageClassifier
from satm_tf.attacks import FGSM, RandomisedStep
from satm_tf.training import ClassificationLoss

EPSILON, RATE, WEIGHT = 0.05, 0.1, 0.7
# No random step, so that the reference needs no random numbers of the attack's.
ATTACK = RandomisedStep(epsilon=EPSILON, alpha=0.0)
# Float32 sums over 12 images in another order.
TOLERANCE = 2e-6


def craft(network, images):
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        probabilities = tf.nn.softmax(network(images, training=False))
        least_likely = tf.argmin(probabilities, -1)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(least_likely, probabilities))
    return np.clip(images - EPSILON * np.sign(tape.gradient(loss, images)), 0.0, 1.0)


def twin(make_network, network, **options):
    """A second network with the same weights."""
    other = make_network("twin", **options)
    other.set_weights(network.get_weights())
    return other


def assert_weights(network, expected, tolerance=TOLERANCE):
    for variable, value in zip(network.weights, expected.weights, strict=True):
        np.testing.assert_allclose(variable, value, rtol=0, atol=tolerance, err_msg=variable.path)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_learning_from_nobody_equals_plain_fit(make_network, images, labels, optimizer):
    a, plain = make_network("a", batch_norm=True), make_network("plain", batch_norm=True)
    plain.set_weights(a.get_weights())
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(5)
    trainer = CoTraining({"a": a}, learns_from="nobody")
    trainer.compile(keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": 0.01}}))
    plain.compile(
        keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": 0.01}}),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    ours = trainer.fit(dataset, epochs=3, verbose=0, shuffle=False, validation_data=dataset)
    theirs = plain.fit(dataset, epochs=3, verbose=0, shuffle=False, validation_data=dataset)
    assert_weights(a, plain)
    np.testing.assert_allclose(ours.history["val_loss"], theirs.history["val_loss"], rtol=1e-5)
    np.testing.assert_allclose(ours.history["loss"], theirs.history["loss"], rtol=1e-5)


def test_class_weights_are_those_of_plain_fit(make_network, images, labels):
    a, plain = make_network("a"), make_network("plain")
    plain.set_weights(a.get_weights())
    trainer = CoTraining({"a": a}, learns_from="nobody")
    trainer.compile(keras.optimizers.SGD(RATE))
    plain.compile(keras.optimizers.SGD(RATE), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for model in (trainer, plain):
        model.fit(images, labels, batch_size=4, shuffle=False, verbose=0, class_weight={0: 0.1, 1: 2.0, 2: 1.0, 3: 3.0})
    assert_weights(a, plain)


def test_crafting_and_validating_leave_no_trace(make_network, images, labels, arrays):
    networks = {"a": make_network("a", batch_norm=True, dropout=0.5), "b": make_network("b", dropout=0.5)}
    trainer = CoTraining(
        networks, attack=RandomisedStep(epsilon=EPSILON), domain_adaptation=DomainAdversarial(hidden=4)
    )
    trainer.compile("sgd")
    state = [arrays(network) for network in networks.values()]
    first = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    second = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    assert first == second
    for network, before in zip(networks.values(), state, strict=True):
        for old, new in zip(before, arrays(network), strict=True):
            np.testing.assert_array_equal(old, new)


def test_validation_loss_is_the_sum_over_the_networks(make_network, images, labels):
    networks = {"a": make_network("a"), "b": make_network("b", width=4)}
    trainer = CoTraining(networks, attack=ATTACK, adversarial_weight=WEIGHT)
    trainer.compile("sgd")
    logs = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    expected = {}
    for name, source in (("a", "b"), ("b", "a")):
        losses = [
            keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, networks[name](x, training=False))
            for x in (images, craft(networks[source], images))
        ]
        expected[name] = float(losses[0] + WEIGHT * losses[1])
        assert logs[f"{name}_clean_loss"] == pytest.approx(float(losses[0]), rel=1e-5)
        assert logs[f"{name}_adversarial_loss"] == pytest.approx(float(losses[1]), rel=1e-5)
        assert logs[f"{name}_loss"] == pytest.approx(expected[name], rel=1e-5)
    assert logs["loss"] == pytest.approx(sum(expected.values()), rel=1e-5)


def test_validation_takes_every_source_at_once(make_network, images, labels):
    """Also where they take turns in training; each part is the mean over them."""
    networks = {name: make_network(name, width=3 + index) for index, name in enumerate("abc")}
    trainer = CoTraining(networks, attack=ATTACK, peer_weight=0.5, epsilon_schedule="uniform")
    trainer.compile("sgd")
    logs = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    crafted = [craft(networks[source], images) for source in "bc"]
    answers = {name: [tf.nn.softmax(networks[name](x, training=False)).numpy() for x in crafted] for name in "abc"}
    losses = [-np.log(answer[np.arange(12), labels]) for answer in answers["a"]]
    assert logs["a_adversarial_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    peers = [(p * np.log(p / q)).sum(-1) for peer in "bc" for p, q in zip(answers[peer], answers["a"], strict=True)]
    assert logs["a_peer_loss"] == pytest.approx(np.mean(peers), rel=1e-4)
    hits = np.mean([answer.argmax(-1) == labels for answer in answers["a"]])
    assert logs["a_adversarial_accuracy"] == pytest.approx(hits)
    near = np.mean([np.abs(answer.argmax(-1) - labels) <= 1 for answer in answers["a"]])
    assert logs["a_adversarial_one_off_accuracy"] == pytest.approx(near)


def test_sample_weights_scale_the_clean_and_the_adversarial_loss(make_network, images, labels):
    weights = np.linspace(0.0, 2.0, 12).astype("float32")
    network = make_network("a")
    adversarial = craft(network, images)
    trainer = CoTraining({"a": network}, learns_from="itself", attack=ATTACK)
    trainer.compile(keras.optimizers.SGD(0.0))
    logs = trainer.train_on_batch(images, labels, sample_weight=weights, return_dict=True)
    for part, x in (("clean", images), ("adversarial", adversarial)):
        losses = keras.losses.sparse_categorical_crossentropy(labels, network(x), from_logits=True)
        assert logs[f"a_{part}_loss"] == pytest.approx(np.mean(weights * losses), rel=1e-5)


def test_a_loss_of_its_own_is_that_of_clean_and_of_adversarial_images(make_network, images, labels):
    loss = ClassificationLoss(label_smoothing=0.2, class_weights=[1.0, 0.5, 2.0, 1.5], order_temperature=0.7)
    network = make_network("a")
    adversarial = craft(network, images)
    trainer = CoTraining({"a": network}, learns_from="itself", attack=ATTACK, loss=loss)
    trainer.compile(keras.optimizers.SGD(0.0))
    logs = trainer.train_on_batch(images, labels, return_dict=True)
    for part, x in (("clean", images), ("adversarial", adversarial)):
        assert logs[f"a_{part}_loss"] == pytest.approx(float(tf.reduce_mean(loss(labels, network(x)))), rel=1e-5)


CLEAN = {"loss", "clean_loss", "accuracy", "one_off_accuracy"}
BOTH = CLEAN | {"adversarial_loss", "adversarial_accuracy", "adversarial_one_off_accuracy"}


@pytest.mark.parametrize(
    ("scheme", "figures", "ordered"),
    [
        ("undefended", CLEAN, True),
        ("satm", BOTH | {"domain_loss", "domain_accuracy"}, True),
        ("mutual", BOTH | {"peer_loss"}, True),
        ("trades", {figure for figure in BOTH if "one_off" not in figure}, False),
    ],
)
def test_every_part_is_a_figure_of_its_own(make_network, images, labels, scheme, figures, ordered):
    networks = {"a": make_network("a"), "b": make_network("b", width=4)}
    trainer = CoTraining(networks, scheme, ordered=ordered)
    trainer.compile("sgd")
    expected = {"loss", *(f"{name}_{figure}" for name in networks for figure in figures)}
    history = trainer.fit(images, labels, validation_data=(images, labels), verbose=0).history
    assert set(history) == expected | {f"val_{figure}" for figure in expected}
    assert all(np.isfinite(value).all() for value in history.values())


class TestNotANumber:
    @pytest.fixture
    def trainer(self, make_network):
        networks = {"a": make_network("a", batch_norm=True, dropout=0.5), "b": make_network("b", width=4)}
        trainer = CoTraining(networks, "satm")
        trainer.compile(keras.optimizers.SGD(RATE, momentum=0.9))
        return trainer

    @pytest.fixture
    def state(self, arrays):
        """All of the networks' state, that of batch normalisation, dropout and domain heads included."""
        return lambda trainer: [
            array for model in [*trainer.networks.values(), *trainer.domain_heads.values()] for array in arrays(model)
        ]

    def assert_unchanged(self, before, after):
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old, new)

    def test_an_image_stops_the_run_in_its_step_and_changes_nothing(self, trainer, images, labels, state):
        images[9, 3, 3, 0] = np.nan
        seen = []
        watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(state(trainer)))
        with pytest.raises(FloatingPointError, match=r"^clean_loss of a is not a finite number at step 2; nothing was"):
            trainer.fit(images, labels, batch_size=4, shuffle=False, verbose=0, callbacks=[watch])
        assert len(seen) == 2
        self.assert_unchanged(seen[-1], state(trainer))
        assert int(trainer.step) == 2

    def test_a_learning_rate_that_explodes(self, trainer, images, labels, state):
        trainer.optimizer.learning_rate = 1e38
        seen = []
        watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(state(trainer)))
        with pytest.raises(
            FloatingPointError, match=r"^clean_loss of \w is not a finite number at step 1; nothing was"
        ):
            trainer.fit(images, labels, batch_size=4, shuffle=False, verbose=0, callbacks=[watch])
        assert len(seen) == 1
        self.assert_unchanged(seen[-1], state(trainer))

    @pytest.mark.parametrize("run_eagerly", [False, True])
    def test_the_part_and_the_network_are_those_where_it_began(self, trainer, images, labels, state, run_eagerly):
        trainer.compile(keras.optimizers.SGD(RATE), run_eagerly=run_eagerly)
        kernel = trainer.domain_heads["b"].second.kernel
        kernel.assign(np.full(kernel.shape, np.inf))
        before = state(trainer)
        with pytest.raises(FloatingPointError, match=r"^domain_loss of b is not a finite number at step 0"):
            trainer.fit(images, labels, verbose=0)
        self.assert_unchanged(before, state(trainer))


def test_a_gradient_that_is_no_number_changes_nothing_either(images, labels):
    inputs = keras.Input(images.shape[1:])
    # The square root of nothing is nothing, and infinitely steep.
    features = keras.ops.sqrt(keras.layers.Dense(4, kernel_initializer="zeros")(keras.layers.Flatten()(inputs)))
    network = ImageClassifier(keras.Model(inputs, features), 4, image_shape=images.shape[1:], pooling=None)
    trainer = CoTraining({"a": network}, "undefended")
    trainer.compile("sgd")
    before = [variable.numpy().copy() for variable in network.variables]
    with pytest.raises(FloatingPointError, match=r"^gradient of a is not a finite number at step 0"):
        trainer.fit(images, labels, verbose=0)
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_the_same_seed_gives_the_same_networks(make_network, images, labels):
    def train(seed):
        keras.utils.set_random_seed(5)
        networks = {"a": make_network("a", dropout=0.3), "b": make_network("b", batch_norm=True)}
        trainer = CoTraining(networks, attack=RandomisedStep(epsilon=EPSILON), seed=seed)
        trainer.compile("adam")
        trainer.fit(images, labels, epochs=2, batch_size=6, verbose=0, shuffle=False)
        return np.concatenate([np.ravel(w) for n in networks.values() for w in n.get_weights()])

    first = train(1)
    np.testing.assert_array_equal(first, train(1))
    assert np.abs(first - train(2)).max() > 0


def test_the_schedule_knows_how_many_steps_are_planned(make_network, images, labels):
    trainer = CoTraining(
        {"a": make_network("a"), "b": make_network("b", width=4)},
        attack=FGSM(epsilon=EPSILON),
        domain_adaptation=DomainAdversarial(hidden=4),
    )
    trainer.compile("sgd")
    trainer.fit(images, labels, epochs=2, batch_size=6, verbose=0)
    assert (int(trainer.planned_steps), int(trainer.step)) == (4, 4)


def test_early_stopping_watches_the_sum_and_restores_the_best(make_network, images, labels):
    networks = {"a": make_network("a"), "b": make_network("b", width=4)}
    trainer = CoTraining(networks, attack=ATTACK)
    trainer.compile(keras.optimizers.SGD(50.0))  # diverges, so the first epoch is the best
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    history = trainer.fit(images, labels, validation_data=(images, labels), epochs=20, verbose=0, callbacks=[stop])
    assert len(history.history["loss"]) < 20
    best = min(history.history["val_loss"])
    assert trainer.evaluate(images, labels, verbose=0, return_dict=True)["loss"] == pytest.approx(best, rel=1e-5)


class TestBadInput:
    def test_one_network_trained_and_frozen(self, make_network):
        a = make_network("a")
        with pytest.raises(ValueError, match="either trained or frozen"):
            CoTraining({"a": a}, frozen={"b": a}, learns_from="frozen", attack=ATTACK)

    def test_no_network(self):
        with pytest.raises(ValueError, match="at least one network"):
            CoTraining({}, learns_from="nobody")

    def test_different_numbers_of_classes(self, make_network):
        with pytest.raises(ValueError, match="same num_classes"):
            CoTraining({"a": make_network("a"), "b": make_network("b", num_classes=3)}, attack=ATTACK)

    def test_identical_twins_warn(self, make_network):
        a = make_network("a")
        with pytest.warns(UserWarning, match="diverges"):
            CoTraining({"a": a, "b": twin(make_network, a)}, attack=ATTACK)
