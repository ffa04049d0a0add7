"""What is refused before a step and within it, and that a refused step changes nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining, ImageClassifier
from satm_tf.models.normalization import BatchNormalization
from satm_tf.training.guards import checked_batch
from tests.training import small_training
from tests.training.by_hand import ATTACK

RATE = 0.1


def twin(make_network, network, **options):
    """A second network with the same weights."""
    other = make_network("twin", **options)
    other.set_weights(network.get_weights())
    return other


class TestNotANumber:
    def make(self, make_network, **options):
        networks = {"a": make_network("a", batch_norm=True, dropout=0.5), "b": make_network("b", width=4)}
        trainer = CoTraining(networks, "satm")
        trainer.compile(keras.optimizers.SGD(RATE, momentum=0.9), **options)
        return trainer

    @pytest.fixture(scope="class")
    def traced(self, make_network):
        trainer = self.make(make_network)
        return trainer, [variable.numpy().copy() for variable in trainer.state()]

    @pytest.fixture
    def trainer(self, traced):
        """A trainer at its start; the tests share its graph."""
        trainer, start = traced
        for variable, value in zip(trainer.state(), start, strict=True):
            variable.assign(value.copy())
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

    def test_a_weight_stops_the_run_in_its_step_and_changes_nothing(self, trainer, images, labels, state):
        weights = np.ones(12, "float32")
        weights[9] = np.nan
        seen = []
        watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(state(trainer)))
        with pytest.raises(
            FloatingPointError, match=r"^clean_loss of a is not a finite number at step 2; that step updated nothing"
        ):
            trainer.fit(
                images, labels, batch_size=4, sample_weight=weights, shuffle=False, verbose=0, callbacks=[watch]
            )
        assert len(seen) == 2
        self.assert_unchanged(seen[-1], state(trainer))
        assert int(trainer.step) == 2

    def test_a_learning_rate_that_explodes(self, trainer, images, labels, state):
        trainer.optimizer.learning_rate = 1e38
        seen = []
        watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(state(trainer)))
        with pytest.raises(
            FloatingPointError, match=r"^clean_loss of \w is not a finite number at step 1; that step updated nothing"
        ):
            trainer.fit(images, labels, batch_size=4, shuffle=False, verbose=0, callbacks=[watch])
        assert len(seen) == 1
        self.assert_unchanged(seen[-1], state(trainer))

    @pytest.mark.parametrize("run_eagerly", [False, True])
    def test_the_part_and_the_network_are_those_where_it_began(
        self, make_network, trainer, images, labels, state, run_eagerly
    ):
        trainer = self.make(make_network, run_eagerly=True) if run_eagerly else trainer
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


@pytest.fixture(scope="module")
def learner():
    """One trainer for all bad batches, which leave it as it was: it is traced once."""
    trainer = CoTraining({"a": small_training.make_network("a", BatchNormalization, dropout=0.5)}, "adversarial")
    trainer.compile("sgd")
    return trainer


class TestBadInput:
    """Images and labels that no network can learn from."""

    def assert_refused(self, trainer, images, labels, message):
        before = [np.array(keras.ops.convert_to_numpy(v)) for v in [*trainer.networks["a"].variables, trainer.step]]
        with pytest.raises(ValueError, match=message):
            trainer.fit(images, labels, verbose=0)
        with pytest.raises(ValueError, match=message):
            trainer.evaluate(images, labels, verbose=0)
        for variable, old in zip([*trainer.networks["a"].variables, trainer.step], before, strict=True):
            np.testing.assert_array_equal(variable, old)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (255.0, r"numbers in \[0, 1\]; divide 8-bit images by 255\. Received values from 0\.1\S* to 255$"),
            (-0.5, r"Received values from -0\.5 to 0\.\S+$"),
            (1.00001, r"Received values from 0\.\S+ to 1\.0000\S+$"),
            (np.nan, "numbers in"),
            (np.inf, "numbers in"),
        ],
    )
    def test_images_out_of_range_change_nothing(self, learner, images, labels, value, message):
        images[9, 3, 3, 0] = value
        self.assert_refused(learner, images, labels, f"^Images must be .*{message}")

    @pytest.mark.parametrize(("label", "ends"), [(4, "0 to 4"), (-1, "-1 to 3")])
    def test_labels_out_of_range_change_nothing(self, learner, images, labels, label, ends):
        labels[5] = label
        self.assert_refused(learner, images, labels, rf"^Labels must be in \[0, 4\)\. Received values from {ends}$")

    def test_an_eager_step_says_the_same(self, make_network, images, labels):
        trainer = CoTraining({"a": make_network("a")}, "adversarial")
        trainer.compile("sgd", run_eagerly=True)
        self.assert_refused(
            trainer, images * 255, labels, r"^Images must be .* divide .* Received values from .* to 2\S+$"
        )
        self.assert_refused(trainer, images, labels + 2, r"^Labels must be .* Received values from 2 to 5$")

    def test_bad_validation_images_are_named_too(self, learner, images, labels):
        with pytest.raises(ValueError, match=r"^Images must .* to 2\d\d"):
            learner.fit(images, labels, validation_data=(images * 255, labels), verbose=0)

    def test_what_rounding_adds_passes(self, learner, images, labels):
        images[0, 0, 0] = [-1e-7, 1 + 2e-7, 1.0]
        before = int(learner.step)
        learner.fit(images, labels, validation_data=(images, labels), verbose=0)
        assert int(learner.step) == before + 1

    @pytest.mark.parametrize(
        ("change", "received"),
        [
            (lambda labels: np.eye(4, dtype="float32")[labels], r"float32 of shape \(.+, 4\)"),
            (lambda labels: np.eye(4, dtype="int32")[labels], r"int\S+ of shape .\S+, ?4"),
            (lambda labels: labels[:, None], r"int\S+ of shape .\S+, ?1"),
            (lambda labels: labels.astype("float32"), "float32 of shape"),
            (lambda labels: None, "none"),
        ],
        ids=["one-hot", "one-hot integers", "column", "floats", "none"],
    )
    def test_labels_of_another_kind(self, learner, images, labels, change, received):
        self.assert_refused(learner, images, change(labels), rf"one integer for each image.*Received: {received}")

    def test_8_bit_images(self, learner, images, labels):
        message = r"divide them by 255\. Received: uint8 of shape"
        self.assert_refused(learner, (images * 255).astype("uint8"), labels, message)

    @pytest.mark.parametrize("dtype", ["int64", "uint8"])
    def test_any_integers_are_labels(self, dtype, images, labels):
        batch = checked_batch(images.astype("float64"), labels.astype(dtype), 4)
        assert [each.dtype for each in batch] == [tf.float32, tf.int32]
        np.testing.assert_array_equal(batch[0], images)
        np.testing.assert_array_equal(batch[1], labels)


class TestNetworks:
    def test_one_network_trained_and_frozen(self, make_network):
        a = make_network("a")
        with pytest.raises(ValueError, match="exactly one of these: trained, frozen"):
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
