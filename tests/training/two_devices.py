"""What `test_distribution.py` runs in a process of its own, in which the processor counts as two devices.

Figures of one and of two replicas are equal up to the order in which float32 numbers are added. The networks are smooth
and so is the attack: a rectifier, or a gradient's sign, would make much of such an error now and then.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining, DomainAdversarial
from satm_tf.attacks import FGSM, PGD, RandomisedStep
from satm_tf.data import batches
from satm_tf.models.normalization import BatchNormalization
from satm_tf.training import ClassificationLoss, devices_for, get_strategy
from satm_tf.training.crafting import Batch
from satm_tf.training.optimization import NetworkOptimizer
from satm_tf.training.passes import _distinct_dropout, _remembering
from tests.training.small_training import BATCH, NETWORKS, SHAPE, data, make_network, make_trainer, train

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
ONE = tf.distribute.get_strategy()
# Seen after 8 steps: 2e-6 on two threads and 1e-5 on one, where two replicas take a variance from the mean square and
# one does not, and 2e-7 in networks that learn without batch normalisation. Statistics of one replica alone are tested
# to differ by 1e-3.
TOLERANCE = 3e-5


@pytest.fixture(scope="module")
def mirrored():
    return get_strategy("mirrored")


def weighted(images, labels):
    return images, labels, 0.5 + tf.cast(labels % 3, tf.float32)


def on_replicas(trainer, variable):
    """The values of a variable on each replica."""
    return [np.asarray(each) for each in trainer.distribute_strategy.experimental_local_results(variable.value)]


def of_network(trainer, name):
    head = trainer.domain_heads.get(name)
    slots = trainer.optimizers[name].optimizer.variables
    return [*trainer.networks[name].variables, *(head.variables if head else ()), *slots]


def assert_equal_training(two, one):
    """Weights, batch statistics, domain heads, optimizers and metrics; the replicas' values to the bit."""
    (trainer, figures), (reference, expected) = two, one
    for name in reference.networks:
        for variable, other in zip(*(of_network(each, name) for each in (trainer, reference)), strict=True):
            first, second = on_replicas(trainer, variable)
            np.testing.assert_array_equal(first, second, err_msg=variable.path)
            np.testing.assert_allclose(first, other, rtol=0, atol=TOLERANCE, err_msg=variable.path)
    assert list(figures) == list(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(figures[key], values, rtol=TOLERANCE, atol=TOLERANCE, err_msg=key)


def test_two_replicas_equal_one_with_a_gradient_penalty(mirrored):
    """A gradient's gradient through batch statistics of both replicas; the penalty's kinks are rarely met."""
    options = {"scheme": "undefended", "gradient_penalty": 0.02, "epochs": 1, "norms": {"own": BatchNormalization}}
    optimizer = lambda: keras.optimizers.SGD(0.01)  # noqa: E731
    one = train(ONE, optimizer, **options)
    two = train(mirrored, optimizer, **options)
    assert one[1]["own_gradient_loss"][0] > 0.1
    assert_equal_training(two, one)


def test_two_replicas_equal_one_with_momentum_turns_weights_and_domains(mirrored):
    """All at once: three networks that take turns, class weights, sample weights, regularisation, Ganin's schedule."""
    options = {
        "loss": ClassificationLoss(class_weights=[0.5, 1.0, 2.0, 0.7]),
        "domain_adaptation": DomainAdversarial(hidden=5),
        "data_set": batches(data(), image_size=16, batch_size=BATCH).map(weighted),
    }
    optimizer = lambda: keras.optimizers.SGD(0.1, momentum=0.9)  # noqa: E731
    one = train(ONE, optimizer, **options)
    two = train(mirrored, optimizer, **options)
    assert_equal_training(two, one)
    counters = (two[0].step, two[0].optimizer.iterations, two[0].planned_steps)
    assert [int(np.asarray(counter)) for counter in counters] == [8, 8, 8]


def test_two_replicas_equal_one_with_adam_all_sources_and_the_signs_of_gradients(mirrored):
    options = {
        "norms": {name: NETWORKS[name] for name in ("plain", "own")},
        "attack": FGSM(epsilon=0.05),
        "learns_from": ["others", "before_itself", "sparring_itself"],
        "mixing": "all",
        "crafting_mode": "training",
    }
    optimizer = lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.01, 2, 0.5))  # noqa: E731
    one = train(ONE, optimizer, **options)
    two = train(mirrored, optimizer, **options)
    assert_equal_training(two, one)


def test_batch_statistics_of_one_replica_alone_would_be_seen(mirrored):
    """As a check of the tolerance: with half the batch the moving statistics move elsewhere, and apart."""
    with mirrored.scope():
        network = make_network("own", BatchNormalization)
    images = np.random.default_rng(0).uniform(size=(8, *SHAPE)).astype(np.float32)
    halves = replicas_apart(mirrored, np.split(images, 2))
    mirrored.run(tf.function(lambda half: network(half, training=True)), args=(halves,))
    layer = next(layer for layer in network.backbone.layers if isinstance(layer, BatchNormalization))
    first, second = mirrored.experimental_local_results(layer.moving_mean.value)
    assert np.abs(np.asarray(first) - np.asarray(second)).max() > 1e-3


def replicas_apart(strategy, shares):
    """A value for each replica."""
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(shares[context.replica_id_in_sync_group])
    )


def applied(strategy, original, shares, half_precision=False, steps=3):
    """Variables after some steps of a `NetworkOptimizer`, each replica with gradients of its own."""
    with strategy.scope():
        variables = [keras.Variable([1.0, 2.0]), keras.Variable([[3.0], [4.0], [5.0]]), keras.Variable([6.0])]
        base = original()
        base.build([])
        optimizer = NetworkOptimizer(base, variables, half_precision, "network")

    @tf.function
    def step(gradients):
        strategy.run(lambda own: optimizer.apply([*own, None]), args=(gradients,))

    per_replica = [replicas_apart(strategy, [share[index] for share in shares]) for index in range(2)]
    for _ in range(steps):
        step(per_replica)
    optimizer.finalize()
    return [
        np.stack([np.asarray(v) for v in strategy.experimental_local_results(each.value)]) for each in variables
    ], optimizer


SHARES = [
    [np.float32([3.0, -0.1]), np.float32([[0.5], [-2.0], [0.0]])],
    [np.float32([-1.0, 0.3]), np.float32([[0.5], [1.0], [4.0]])],
]
WHOLE = [[np.float32(a + b) for a, b in zip(*SHARES, strict=True)]]


@pytest.mark.parametrize(
    "fields",
    [{"clipnorm": 0.7}, {"global_clipnorm": 0.7}, {"clipvalue": 0.4}, {"use_ema": True, "weight_decay": 0.1}],
    ids=lambda fields: next(iter(fields)),
)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_the_whole_gradient_is_clipped_and_not_each_replicas_share(mirrored, fields):
    one, _ = applied(ONE, lambda: keras.optimizers.Adam(0.1, **fields), WHOLE)
    two, _ = applied(mirrored, lambda: keras.optimizers.Adam(0.1, **fields), SHARES)
    for mine, expected in zip(two, one, strict=True):
        np.testing.assert_array_equal(mine[0], mine[1])
        np.testing.assert_allclose(mine[:1], expected, rtol=1e-6)  # a few roundings


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_an_overflow_on_one_replica_skips_the_step_on_both(mirrored):
    sgd = lambda: keras.optimizers.SGD(0.5, momentum=0.9)  # noqa: E731
    scale = 2.0**15  # where Keras begins
    scaled = [[each * np.float32(scale) for each in share] for share in SHARES]
    whole = [[each * np.float32(scale) for each in WHOLE[0]]]
    one, _ = applied(ONE, sgd, whole, half_precision=True)
    two, _ = applied(mirrored, sgd, scaled, half_precision=True)
    for mine, expected in zip(two, one, strict=True):
        np.testing.assert_allclose(mine, np.repeat(expected, 2, 0), rtol=1e-6)
    for where in range(2):
        overflowing = [list(share) for share in scaled]
        overflowing[where][0] = np.float32([np.inf, 0.0])
        skipped, optimizer = applied(mirrored, sgd, overflowing, half_precision=True, steps=2)
        np.testing.assert_array_equal(skipped[0], [[1.0, 2.0]] * 2)
        np.testing.assert_array_equal(skipped[1], [[[3.0], [4.0], [5.0]]] * 2)
        results = mirrored.experimental_local_results
        assert [float(value) for value in results(optimizer.optimizer.dynamic_scale.value)] == [scale / 4] * 2, "halved"
        assert [int(value) for value in results(optimizer.optimizer.iterations.value)] == [0, 0]


def test_half_precision_trains_on_two_replicas_through_overflows(mirrored):
    """Scales that overflow at first: the steps are skipped, counted, and after them the networks learn."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with mirrored.scope():
            networks = {name: make_network(name, NETWORKS[name]) for name in ("plain", "own")}
            trainer = CoTraining(networks, attack=FGSM(epsilon=0.05))
            trainer.compile(keras.optimizers.SGD(0.05))
    finally:
        keras.config.set_dtype_policy("float32")
    before = [np.asarray(variable) for variable in networks["plain"].trainable_variables]
    for each in trainer.optimizers.values():
        each.optimizer.dynamic_scale.assign(2.0**40)
    train_data = batches(data(), image_size=16, batch_size=BATCH)
    trainer.fit(train_data, epochs=1, verbose=0)
    for variable, value in zip(networks["plain"].trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    for each in trainer.optimizers.values():
        each.optimizer.dynamic_scale.assign(2.0**10)
    figures = trainer.fit(train_data, epochs=4, verbose=0).history
    assert figures["loss"][-1] < figures["loss"][0]
    assert int(np.asarray(trainer.step)) == 20
    for network in networks.values():
        for variable in network.variables:
            first, second = on_replicas(trainer, variable)
            np.testing.assert_array_equal(first, second)
            assert np.isfinite(first).all()


def test_dropout_differs_between_replicas_and_counts_as_on_one(mirrored):
    def masks_and_seeds(strategy, copies):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            network = make_network("network", dropout=0.5)

        @tf.function
        def step():
            def masks():
                written = {}
                with _distinct_dropout(network, written), _remembering(network, written, ()):
                    dropped = network._dropout(tf.ones([4, 100]), training=True)
                for variable, value in written.values():
                    variable.assign(value)
                return dropped

            return strategy.run(masks)

        masks = [strategy.experimental_local_results(step()) for _ in range(2)]
        seeds = next(v for v in network.variables if v.name == "seed_generator_state")
        return np.array(masks), [np.asarray(v) for v in strategy.experimental_local_results(seeds.value)]

    one, [seed] = masks_and_seeds(ONE, 1)
    two, seeds = masks_and_seeds(mirrored, 2)
    # The first replica's are one device's own; of 400 places some 200 differ between independent masks.
    np.testing.assert_array_equal(two[:, 0], one[:, 0])
    assert np.mean(two[:, 0] != two[:, 1]) == pytest.approx(0.5, abs=0.1)
    assert np.mean(two[0] != two[1]) == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(seeds, [seed, seed])


def test_a_step_with_dropout_leaves_the_seeds_that_one_device_leaves(mirrored):
    def seeds(strategy):
        options = {"norms": {"plain": None}, "learns_from": "itself", "dropout": 0.5, "crafting_mode": "training"}
        trainer = make_trainer(strategy, lambda: keras.optimizers.SGD(0.1), **options)
        trainer.fit(batches(data(), image_size=16, batch_size=BATCH), verbose=0)
        names = [v for n in trainer.networks.values() for v in n.variables if v.name == "seed_generator_state"]
        return [[np.asarray(v) for v in strategy.experimental_local_results(seed.value)] for seed in names]

    for [expected], mine in zip(seeds(ONE), seeds(mirrored), strict=True):
        np.testing.assert_array_equal(mine, [expected, expected])


def test_random_starts_differ_between_replicas_in_training_alone(mirrored):
    with mirrored.scope():
        networks = {name: make_network(name) for name in "ab"}
        trainer = CoTraining(networks, attack=RandomisedStep(epsilon=0.1, alpha=0.1))
    images, labels = tf.fill([4, *SHAPE], 0.5), tf.zeros([4], tf.int32)

    @tf.function
    def crafted(training):
        def craft():
            return trainer._crafting.craft([("a", "b")], Batch(images, labels), tf.constant(0, tf.int64), training)[
                "a", "b"
            ]

        return mirrored.run(craft)

    first, second = mirrored.experimental_local_results(crafted(True))
    assert np.mean(np.asarray(first) != np.asarray(second)) == pytest.approx(0.5, abs=0.1)  # signs of a coin
    first, second = mirrored.experimental_local_results(crafted(False))
    np.testing.assert_array_equal(first, second)


def test_the_work_of_each_replica_is_on_its_own_device(mirrored):
    with mirrored.scope():
        trainer = CoTraining({"a": make_network("a")}, learns_from="itself", attack=FGSM(epsilon=0.1))
        trainer.compile("sgd")
    images, labels = tf.fill([4, *SHAPE], 0.5), tf.zeros([4], tf.int32)
    graph = (
        tf.function(lambda: mirrored.run(trainer.train_step, args=((images, labels),))).get_concrete_function().graph
    )
    convolutions = [op for op in graph.get_operations() if op.type == "Conv2D"]
    placed = {(op.name.startswith("replica_1/"), op.device[-5:]) for op in convolutions}
    assert placed == {(False, "CPU:0"), (True, "CPU:1")}


def test_what_several_replicas_cannot_do_is_refused(mirrored):
    with mirrored.scope():
        trainer = CoTraining({name: make_network(name) for name in "ab"}, attack=FGSM(epsilon=0.1))
        for options, message in (
            ({"learns_from": "past"}, "Snapshots work on one device only"),
            ({"learns_from": ["others", "itself"], "crafting_mode": "training"}, "cannot craft in training mode"),
        ):
            with pytest.raises(ValueError, match=message):
                CoTraining({name: make_network(name) for name in "ab"}, attack=FGSM(epsilon=0.1), **options)
    with pytest.raises(ValueError, match="jit_compile"):
        trainer.compile("sgd", jit_compile=True)
    with mirrored.scope():
        accumulating = keras.optimizers.SGD(gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        trainer.compile(accumulating)
    with pytest.raises(ValueError, match="scope"):
        trainer.compile(keras.optimizers.SGD())
    trainer.compile("sgd")  # is made in the scope
    lonely, enough = (batches(data(n), image_size=16, batch_size=BATCH) for n in (17, 16))
    with pytest.raises(ValueError, match="Received: 1 images in the last batch for 2 replicas"):
        trainer.fit(lonely)
    with pytest.raises(ValueError, match="Received: 1 images in the last batch for 2 replicas"):
        trainer.fit(enough, validation_data=lonely)


def test_a_network_on_each_device_equals_one_device_to_the_bit():
    options = {"domain_adaptation": DomainAdversarial(hidden=5), "batch_norm": {"own": "auxiliary"}}

    def run(devices):
        keras.utils.set_random_seed(0)
        networks = {}
        for name, norm in {"plain": None, "own": BatchNormalization}.items():
            with tf.device(devices.get(name, "CPU:0")):
                networks[name] = make_network(name, norm, dropout=0.3)
        trainer = CoTraining(networks, attack=PGD(epsilon=0.05, steps=2), devices=devices, **options)
        trainer.compile(keras.optimizers.Adam(0.01))
        train_data = batches(data(), image_size=16, batch_size=BATCH, shuffle=True)
        history = trainer.fit(train_data, validation_data=train_data, epochs=2, verbose=0)
        return trainer, history.history

    devices = devices_for(["plain", "own"])
    one, expected = run({})
    two, figures = run(devices)
    assert figures == expected
    for variable, other in zip(two.state(), one.state(), strict=True):
        np.testing.assert_array_equal(variable, other, err_msg=variable.path)
    for name, device in devices.items():
        slots = two.optimizers[name].optimizer.variables
        auxiliary = [copy for _, copy in two._objectives[name].auxiliary]
        for variable in (*two.networks[name].variables, *two.domain_heads[name].variables, *slots, *auxiliary):
            assert variable.value.device.endswith(device), variable.path

    images, labels = tf.fill([4, *SHAPE], 0.5), tf.zeros([4], tf.int32)
    for step in (two.train_step, two.test_step):
        graph = tf.function(lambda step=step: step((images, labels))).get_concrete_function().graph
        for name, device in devices.items():
            kernels = {id(v.value.handle) for v in two.networks[name].variables if "conv2d" in v.path}
            captured = {id(inner) for outer, inner in graph.captures if id(outer) in kernels}
            reads = [
                op for op in graph.get_operations() if op.type == "ReadVariableOp" and id(op.inputs[0]) in captured
            ]
            users = [
                user for op in reads for out in op.outputs for user in out.consumers() if user.type.startswith("Conv2D")
            ]
            assert users
            assert {user.device[-5:] for user in users} == {device[-5:]}


def test_a_network_each_needs_devices():
    names = list(devices_for(["a", "b", "c"]).values())
    assert [name[-5:] for name in names] == ["CPU:0", "CPU:1", "CPU:0"]
