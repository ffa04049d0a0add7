import itertools
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf

from satm_tf.data import Account, Augmentation, Batches, Examples, ImageData, batches
from satm_tf.data.pipeline import order


@pytest.fixture
def files(tmp_path, write_image):
    paths = [str(write_image(tmp_path / f"{number}.jpg", number)) for number in range(20)]
    return Examples(labels=np.arange(20), paths=paths)


@pytest.fixture
def pixels(picture):
    return Examples(labels=np.arange(20), images=np.stack([picture(number) for number in range(20)]))


def _labels(dataset) -> list[list[int]]:
    return [labels.numpy().tolist() for _, labels in dataset]


def _flat(lists) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


@pytest.mark.parametrize("kind", ["files", "pixels"])
def test_contract(request, kind, picture):
    dataset = batches(request.getfixturevalue(kind), image_size=32, batch_size=8)
    assert len(dataset) == 3
    assert dataset.element_spec[0].shape.as_list() == [None, 32, 32, 3]
    (images, labels), *_, last = list(dataset)
    assert (images.dtype, labels.dtype, images.shape) == (tf.float32, tf.int32, (8, 32, 32, 3))
    assert labels.numpy().tolist() == list(range(8))
    assert last[0].shape == (4, 32, 32, 3)
    expected = np.stack([picture(number) for number in range(8)]) / 255
    assert np.abs(images - expected).mean() < 0.006  # JPEG is near; pixels are exact
    if kind == "pixels":
        np.testing.assert_array_equal(images, expected.astype(np.float32))


@pytest.mark.parametrize(("kind", "drop_remainder"), [("files", False), ("pixels", False), ("pixels", True)])
def test_a_position_within_an_epoch(request, kind, drop_remainder, noise):
    examples = request.getfixturevalue(kind)
    options = {"batch_size": 6, "shuffle": True, "augmentation": noise, "drop_remainder": drop_remainder}
    dataset = batches(examples, image_size=8, **options)
    epochs = [list(dataset) for _ in range(3)]
    moved = dataset.from_position(1, 2)
    assert moved.element_spec == dataset.element_spec
    for found, expected in ((moved, epochs[1][2:]), (moved, epochs[2]), (dataset.from_position(2, 0), epochs[2])):
        batches_found = list(found)
        assert len(batches_found) == len(expected)
        for (images, labels), (true_images, true_labels) in zip(batches_found, expected, strict=True):
            np.testing.assert_array_equal(labels, true_labels)
            np.testing.assert_array_equal(images, true_images)


def test_map_keeps_what_batches_know(pixels):
    options = {"image_size": 8, "batch_size": 6, "shuffle": True, "drop_remainder": True}
    dataset = batches(Examples(labels=pixels.labels, images=pixels.images, ordered=True), **options)
    mapped = dataset.map(lambda images, labels: (1 - images, labels), num_parallel_calls=2).map(
        lambda *both: both[::-1]
    )
    for one in (dataset, mapped, mapped.from_position(1, 0)):
        assert isinstance(one, Batches)
        assert (one.ordered, one.num_examples, len(one)) == (True, 18, 3)
        assert one.options().deterministic
    whole, moved = [list(dataset) for _ in range(3)], mapped.from_position(1, 2)
    for expected in (whole[1][2:], whole[2]):
        for (images, labels), (true_labels, true_images) in zip(expected, moved, strict=True):
            np.testing.assert_array_equal(true_labels, labels)
            np.testing.assert_array_equal(true_images, 1 - images)
    assert mapped.element_spec[1].shape.as_list() == [6, 8, 8, 3]
    assert [len(labels) for labels, _ in mapped.take(1)] == [6]


def test_batches_with_the_numbers_of_their_images(pixels, noise):
    options = {"image_size": 8, "batch_size": 6, "shuffle": True, "drop_remainder": True, "seed": 4}
    dataset = batches(Examples(labels=pixels.labels, images=pixels.images, ordered=True), **options)
    numbered, plain = dataset.numbered, list(dataset)
    assert numbered is dataset.numbered, "the next epoch follows"
    assert (numbered.ordered, numbered.num_examples, len(numbered)) == (True, 18, 3)
    expected = order(20, seed=4, epoch=0)
    for step, (((images, rows), labels), (true_images, true_labels)) in enumerate(zip(numbered, plain, strict=True)):
        assert rows.numpy().tolist() == expected[6 * step :][:6].tolist()
        np.testing.assert_array_equal(images, true_images)
        np.testing.assert_array_equal(labels, true_labels)
    ((_, rows), _), *_ = numbered.from_position(1, 2)
    assert rows.numpy().tolist() == order(20, seed=4, epoch=1)[12:18].tolist()
    in_order = list(dataset.in_order())
    assert _flat([rows.numpy().tolist() for (_, rows), _ in in_order]) == list(range(20))
    assert [len(labels) for _, labels in in_order] == [6, 6, 6, 2]
    for changed in (batches(pixels, **options, augmentation=noise), dataset.map(lambda *both: both)):
        with pytest.raises(ValueError, match="Numbered images cannot be augmented"):
            changed.in_order()


def test_batches_know_whether_their_classes_are_ordered(pixels):
    options = {"image_size": 8, "batch_size": 6}
    assert batches(pixels, **options).ordered is None
    for ordered in (True, False):
        data = ImageData(pixels, pixels, pixels, ("a",) * 20, ordered, Account(20, 20))
        for examples in (data.train, data.limit(9).test, data.validation.select([0, 3])):
            assert batches(examples, **options).ordered is ordered
    assert batches(data.train, **options).num_examples == 20


def test_the_range_is_zero_to_one_to_the_bit():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    ((images, _),) = batches(Examples(labels=[0], images=levels), image_size=16, batch_size=1)
    assert (float(tf.reduce_min(images)), float(tf.reduce_max(images))) == (0.0, 1.0)
    np.testing.assert_array_equal(np.round(images * 255), levels)


def test_order_follows_from_seed_and_epoch(pixels):
    options = {"image_size": 8, "batch_size": 6, "shuffle": True, "seed": 4}
    dataset = batches(pixels, **options)
    epochs = [_labels(dataset) for _ in range(4)]
    for number, epoch in enumerate(epochs):
        assert _flat(epoch) == order(20, seed=4, epoch=number).tolist()
    assert len({str(epoch) for epoch in epochs}) == 4
    resumed = batches(pixels, **options, first_epoch=2)
    assert [_labels(resumed) for _ in range(2)] == epochs[2:]
    assert _labels(batches(pixels, **{**options, "seed": 5})) != epochs[0]
    next(iter(dataset))  # an epoch that is broken off counts
    assert _flat(_labels(dataset)) == order(20, seed=4, epoch=5).tolist()


def test_order_is_this_one_for_good():
    """A run that resumes after an upgrade of NumPy must not find another order."""
    assert order(8, seed=0, epoch=0).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]
    assert order(8, seed=7, epoch=3).tolist() == [3, 5, 0, 4, 2, 7, 1, 6]


def test_drop_remainder(files):
    dataset = batches(files, image_size=8, batch_size=6, shuffle=True, drop_remainder=True)
    assert len(dataset) == 3
    assert dataset.element_spec[0].shape.as_list() == [6, 8, 8, 3]
    # The rows left over are other ones each epoch.
    left = [set(range(20)) - set(_flat(_labels(dataset))) for _ in range(5)]
    assert {len(rows) for rows in left} == {2}
    assert len({tuple(rows) for rows in left}) > 1


def test_cache_gives_the_same_batches_and_reads_the_files_once(files, noise, tmp_path):
    options = {
        "image_size": (20, 24),
        "batch_size": 6,
        "shuffle": True,
        "augmentation": noise,
    }
    straight, cached = (batches(files, **options, cache=cache) for cache in (False, True))
    for _ in range(2):
        for one, other in zip(straight, cached, strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])
    for path in files.paths:
        (tmp_path / path).unlink()
    assert sum(map(len, _labels(cached))) == 20


def test_augmentation_follows_from_seed_epoch_and_step(pixels):
    options = {"image_size": 32, "batch_size": 5, "augmentation": Augmentation(), "seed": 3}
    dataset = batches(pixels, **options)
    epochs = [np.concatenate([images for images, _ in dataset]) for _ in range(3)]
    assert np.abs(epochs[0] - epochs[1]).mean() > 0.02
    resumed = batches(pixels, **options, first_epoch=1)
    for epoch in epochs[1:]:
        np.testing.assert_array_equal(np.concatenate([images for images, _ in resumed]), epoch)
    same = Examples(labels=np.zeros(10), images=np.stack([pixels.images[0]] * 10))
    first, second = (images.numpy() for images, _ in batches(same, **options))
    assert np.abs(first - second).mean() > 0.01  # another step
    assert np.abs(first[0] - first[1]).mean() > 0.01  # another image of the batch


def test_each_pipeline_reads_its_part_of_the_very_same_batches(pixels):
    options = {"image_size": 8, "batch_size": 8, "shuffle": True, "drop_remainder": True}
    whole = [sorted(labels) for labels in _labels(batches(pixels, **options))]
    for pipelines, replicas in ((2, 4), (4, 4)):
        parts = [
            _labels(batches(pixels, **options, input_context=tf.distribute.InputContext(pipelines, number, replicas)))
            for number in range(pipelines)
        ]
        local = replicas // pipelines
        steps = [sorted(_flat(_flat(part[step * local : (step + 1) * local]) for part in parts)) for step in range(2)]
        assert steps == whole
        assert {len(labels) for part in parts for labels in part} == {8 // replicas}


def test_only_the_own_part_is_decoded(files, tmp_path):
    mine = order(20, seed=0, epoch=0)[::2]
    for row in set(range(20)) - set(mine):
        (tmp_path / f"{row}.jpg").unlink()
    context = tf.distribute.InputContext(2, 0, 2)
    labels = _labels(batches(files, image_size=8, batch_size=4, shuffle=True, input_context=context))
    assert _flat(labels) == mine.tolist()


def test_an_image_gone_bad_stops_with_its_name(files, tmp_path):
    dataset = batches(files, image_size=8, batch_size=4)
    whole = (tmp_path / "9.jpg").read_bytes()
    for contents in (b"", b"text", whole[:400]):
        (tmp_path / "9.jpg").write_bytes(contents)
        iterator = iter(dataset)
        assert _flat(next(iterator)[1].numpy().tolist() for _ in range(2)) == list(range(8))
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"whole when it was loaded.*[/\\]9\.jpg"):
            next(iterator)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"must be positive. Received: image_size=\(8, 8\), batch_size=0"),
        ({"image_size": (8, -1)}, r"must be positive. Received: image_size=\(8, -1\)"),
        ({"batch_size": 21, "drop_remainder": True}, "not enough examples.* Received: 20 examples, batch_size=21"),
        ({"crop": 1.5}, "`crop` is for image files.* Received: 1.5 for files"),
        ({"seed": -1}, "non-negative. Received: seed=-1"),
        ({"first_epoch": -1}, "non-negative. Received: .*first_epoch=-1"),
        ({"first_step": -1}, "non-negative. Received: .*first_step=-1"),
    ],
)
def test_refuses(files, options, message):
    with pytest.raises(ValueError, match=message):
        batches(files, **{"image_size": 8, "batch_size": 4, **options})


def test_refuses_no_examples_and_crop_of_pixels(files, pixels):
    with pytest.raises(ValueError, match=r"not enough examples.* Received: 0 examples"):
        batches(files.select([]), image_size=8, batch_size=4)
    with pytest.raises(ValueError, match=r"`crop` is for image files.* Received: 0.5 for decoded images"):
        batches(pixels, image_size=8, batch_size=4, crop=0.5)


def test_keras_fit_and_mirrored_strategy_see_each_epoch_once():
    """In a process of its own: the number of devices must be set before TensorFlow starts."""
    script = textwrap.dedent("""
        import keras, numpy as np, tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        from satm_tf.data import Augmentation, Examples, batches
        from satm_tf.data.pipeline import order

        images = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1) * np.ones((4, 4, 3), np.uint8)
        examples = Examples(labels=np.arange(20), images=images)
        options = dict(image_size=4, batch_size=4, shuffle=True)

        strategy = tf.distribute.MirroredStrategy(
            ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
        )
        def flat(batch):
            return np.concatenate([part.numpy() for part in strategy.experimental_local_results(batch[1])]).tolist()
        with strategy.scope():
            # The layers of an augmentation make variables, here within the strategy's scope.
            flip = Augmentation(shift=0, rotation=0, zoom=0, colour=0)
            dataset = batches(examples, **options, augmentation=flip).map(lambda *batch: batch)
        shared = strategy.experimental_distribute_dataset(dataset)
        own = strategy.distribute_datasets_from_function(lambda c: dataset.from_position(0, 0, c))
        for distributed in (shared, own):
            for epoch in range(2):
                assert sum(map(flat, distributed), []) == order(20, seed=0, epoch=epoch).tolist()

        class Recorder(keras.Model):
            def __init__(self):
                super().__init__()
                self.bias = self.add_weight(shape=())
            def call(self, x):
                tf.py_function(lambda seen: epochs.append(seen.numpy().tolist()), [tf.round(x[:, 0, 0, 0] * 255)], [])
                return x[:, 0, 0, :1] + self.bias
        epochs = []
        model = Recorder()
        model.compile(optimizer="sgd", loss="mse")
        train = batches(examples, **options, first_epoch=3)
        history = model.fit(train, validation_data=train.from_position(0, 0), epochs=2, verbose=0)
        assert len(history.history["val_loss"]) == 2
        # Each epoch's training images, and then its validation images.
        expected = [order(20, seed=0, epoch=epoch).tolist() for epoch in (3, 0, 4, 1)]
        assert sum(epochs, []) == sum(expected, []), (epochs, expected)
        print("all batches were as they should be")
    """)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert "all batches were as they should be" in run.stdout, run.stderr[-3000:]
