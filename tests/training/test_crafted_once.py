"""Examples that are crafted once: equal to those crafted afresh, used by the steps, and whole whatever happens."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining
from satm_tf.attacks import BIM, PGD
from satm_tf.data import Augmentation, Examples, batches
from satm_tf.data.pipeline import order
from satm_tf.training import Checkpoint, crafted_once
from tests.training import reference
from tests.training.resumable import At
from tests.training.test_steps import by_image

EPSILON, RATE, COUNT, BATCH = 16 / 256, 0.1, 20, 8
ATTACK = PGD(epsilon=EPSILON, steps=3)
fold_in = tf.random.experimental.stateless_fold_in


class StoppedError(Exception):
    pass


@pytest.fixture
def examples():
    """Black and white among them, so that [0, 1] cuts balls off."""
    pixels = np.random.default_rng(3).choice([0, 100, 255], (COUNT, 16, 16, 3)).astype(np.uint8)
    return Examples(labels=np.arange(COUNT) % 4, images=pixels)


@pytest.fixture
def make_trainer(make_network, tmp_path):
    """A function that makes a trainer of a, with the frozen f and g."""

    def make(folder=tmp_path / "crafted", **options):
        keras.utils.set_random_seed(1)
        frozen = {"f": make_network("f", width=4), "g": make_network("g", batch_norm=True, width=5)}
        options = {"learns_from": "frozen", "frozen": frozen, "attack": ATTACK, "crafted_once": 2, **options}
        return CoTraining({"a": make_network("a")}, crafted_folder=folder, mixing="images", seed=5, **options)

    return make


@pytest.fixture
def craft(make_trainer, examples):
    """A function that does what `fit` does before its first step."""

    def run(*arguments, data=None, **options):
        data = data or batches(examples, image_size=16, batch_size=BATCH, shuffle=True, drop_remainder=True)
        trainer = make_trainer(*arguments, **options)
        return trainer, trainer.crafts_once(data, "training", quiet=True)

    return run


@pytest.fixture
def train(make_trainer, examples):
    """A function that trains, and gives the trainer and its history."""

    def run(*arguments, callbacks=(), epochs=1, **options):
        trainer = make_trainer(*arguments, **options)
        trainer.compile(keras.optimizers.SGD(RATE))
        data = batches(examples, image_size=16, batch_size=BATCH, shuffle=True, drop_remainder=True)
        validation = batches(examples.select(np.arange(6)), image_size=16, batch_size=4)
        history = trainer.fit(
            data, validation_data=validation, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
        )
        return trainer, history.history

    return run


def images_and_labels(examples):
    return np.float32(examples.images) / np.float32(255), examples.labels


def crafted_afresh(network, examples, copy, attack=ATTACK, seed=5):
    """What the attack gives for all images, batch by batch."""
    images, labels = images_and_labels(examples)
    made = [
        attack(network, images[i : i + BATCH], labels[i : i + BATCH], seed=fold_in([seed, copy], number))
        for number, i in enumerate(range(0, COUNT, BATCH))
    ]
    return np.concatenate(made)


def files(folder, count):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*.npy") if len(np.load(path)) == count}


def kept(folder, examples):
    """The examples in the files of a folder."""
    images, _ = images_and_labels(examples)
    differences = [np.load(path) for path in files(folder, COUNT)]
    assert all(each.dtype == np.int8 for each in differences)
    return [np.clip(images + each * np.float32(EPSILON / 127), 0, 1) for each in differences]


def test_crafted_once_equals_crafted_afresh_image_by_image(craft, examples, tmp_path):
    trainer, _ = craft()
    images, _ = images_and_labels(examples)
    found = kept(tmp_path / "crafted", examples)
    assert len(found) == 4, "two sources, two copies"
    assert min(each.min() for each in found) == 0.0
    assert max(each.max() for each in found) == 1.0
    used = set()
    for network in trainer.frozen.values():
        for copy in range(2):
            expected = crafted_afresh(network, examples, copy)
            errors = [np.abs(each - expected).max() for each in found]
            index = int(np.argmin(errors))
            assert errors[index] <= EPSILON / 254 + 1e-6 < 1 / 255, "half a step of 8-bit rounding"
            assert sorted(errors)[1] > EPSILON / 2, "the other files are of another source, or random start"
            assert np.abs(found[index] - images).max() <= EPSILON + 1e-7
            used.add(index)
    assert len(used) == 4


def test_the_steps_use_what_is_kept(train, make_network, examples):
    """Two steps of plain gradient descent by hand: shares of sources as ever, a copy of each image at random."""
    trainer, history = train()
    keras.utils.set_random_seed(1)
    frozen = {"f": make_network("f", width=4), "g": make_network("g", batch_norm=True, width=5)}
    a, (images, labels) = make_network("a"), images_and_labels(examples)
    stored = {name: [crafted_afresh(each, examples, copy) for copy in range(2)] for name, each in frozen.items()}
    rows, losses, drawn = order(COUNT, seed=0, epoch=0), [], []
    for step in range(2):
        mine = rows[step * BATCH :][:BATCH]

        def look_up(copies, clean, labels, seed, mine=mine):
            """In the place of an attack: the kept examples of the images that it is given."""
            places = [np.flatnonzero((images[mine] == each).all((1, 2, 3)))[0] for each in clean]
            chosen = tf.random.stateless_uniform([len(clean)], seed, maxval=2, dtype=tf.int32).numpy()
            drawn.extend(chosen)
            kept = np.stack([copies[copy][mine[place]] for copy, place in zip(chosen, places, strict=True)])
            steps = np.round((kept - clean) * 127 / EPSILON)
            return tf.constant(np.clip(clean + steps * np.float32(EPSILON / 127), 0, 1), tf.float32)

        makers, adversarial = by_image(
            ["f", "g"], look_up, stored, images[mine], labels[mine], step, 5, ["a", "f", "g"], [1.0, 1.0]
        )
        assert set(makers) == {"f", "g"}
        gradients, parts = reference._learn(
            reference.Case([], ATTACK), a, None, images[mine], labels[mine], [adversarial], [], [1]
        )
        losses.append(float(parts["adversarial_loss"]))
        for variable, gradient in gradients:
            variable.assign_sub(RATE * gradient)
    assert set(drawn) == {0, 1}, "both copies"
    assert history["a_adversarial_loss"][0] == pytest.approx(np.mean(losses), rel=1e-5)
    for ours, expected in zip(trainer.networks["a"].weights, a.weights, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5, err_msg=expected.path)


def test_validation_is_that_of_examples_crafted_afresh(train, tmp_path):
    """An attack without random numbers: the loss differs by what 8-bit rounding does to it."""
    options = {"attack": BIM(epsilon=EPSILON, steps=2), "adversarial_weight": 0.0}
    _, once = train(tmp_path, **options)
    assert len(files(tmp_path, 6)) == 2, "one copy for each source"
    _, afresh = train(None, crafted_once=0, **options)
    assert once["val_a_adversarial_loss"] == pytest.approx(afresh["val_a_adversarial_loss"], rel=1e-3)
    assert once["val_a_adversarial_loss"] != once["val_a_clean_loss"]


def test_a_run_that_was_stopped_ends_as_one_that_was_not_and_crafts_nothing_again(train, monkeypatch, tmp_path):
    whole, _ = train(tmp_path / "whole", epochs=2)
    craft, made = crafted_once._quantised, []

    def fail(*arguments):
        made.append(arguments)
        if len(made) == 5:  # the second batch of the second file
            raise StoppedError
        return craft(*arguments)

    def stop():
        raise StoppedError

    folder, run = tmp_path / "stopped", [Checkpoint(tmp_path / "run", every_seconds=0.0)]
    monkeypatch.setattr(crafted_once, "_quantised", fail)
    with pytest.raises(StoppedError):
        train(folder, epochs=2, callbacks=run)
    first = files(folder, COUNT)
    assert len(first) == 1
    (folder / ".0123.npy-killed.npy").write_bytes(b"left by SIGKILL")
    with pytest.raises(StoppedError):
        train(folder, epochs=2, callbacks=[At(3, stop), *run])
    second = files(folder, COUNT)
    assert len(second) == 4
    assert first.items() < second.items(), "the one that was finished is used as it is"
    assert [path.name for path in folder.glob(".*")] == [".lock"]
    resumed, _ = train(folder, epochs=2, callbacks=[Checkpoint(tmp_path / "run")])
    assert files(folder, COUNT) == second
    for ours, expected in zip(resumed.state(), whole.state(), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_damaged_file_is_made_again_and_other_schemes_use_those_that_are_whole(craft, tmp_path):
    folder = tmp_path / "crafted"
    craft()
    path, *others = files(folder, COUNT)
    before, content = files(folder, COUNT), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    others[0].with_suffix(".sha256").unlink()  # as where a run was killed between the two
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged; its examples are crafted again"):
        craft(clean_weight=0.5, learns_from=["g", "f"])
    after = files(folder, COUNT)
    assert path.read_bytes() == content
    assert {each for each in after if after[each] != before[each]} == {path, others[0]}
    craft(learns_from="f", attack=PGD(epsilon=EPSILON, steps=4), crafted_once=1)
    assert len(files(folder, COUNT)) == 5, "another attack is another file"


def test_the_network_as_it_was_is_crafted_from_once(make_trainer, examples, tmp_path):
    """Whatever it is now, as after a resume: the weights are those of the start."""
    trainer = make_trainer(learns_from="before", crafted_once=1)
    expected = crafted_afresh(trainer.networks["a"], examples, 0)
    for weight in trainer.networks["a"].weights:
        weight.assign(weight + 0.1)
    trainer.crafts_once(batches(examples, image_size=16, batch_size=BATCH), "training", quiet=True)
    (found,) = kept(tmp_path / "crafted", examples)
    assert np.abs(found - expected).max() <= EPSILON / 254 + 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": {"f": lambda images, training: tf.zeros([8, 4])}}, r"known not to change.*Received: function"),
        ({"data": "augmented"}, r"Numbered images cannot be augmented or mapped"),
        ({"data": "mapped"}, r"Numbered images cannot be augmented or mapped"),
        ({"data": "other"}, r"satm_tf.data.batches; .*Received: _TakeDataset"),
    ],
)
def test_what_cannot_be_crafted_once_is_refused(craft, examples, options, message):
    data = {
        "augmented": lambda: batches(examples, image_size=16, batch_size=BATCH, augmentation=Augmentation()),
        "mapped": lambda: batches(examples, image_size=16, batch_size=BATCH).map(lambda *both: both),
        "other": lambda: batches(examples, image_size=16, batch_size=BATCH).take(1),
    }
    if "data" in options:
        options = {"data": data[options["data"]]()}
    with pytest.raises(ValueError, match=message):
        craft(**options)


def test_a_step_without_numbers_and_several_replicas_are_refused(make_network, images, labels, monkeypatch):
    trainer = CoTraining({"a": make_network("a")}, learns_from="before", attack=ATTACK, crafted_once=1)
    trainer.compile("sgd")
    with pytest.raises(ValueError, match="by image number, which only `fit` provides"):
        trainer.train_on_batch(images, labels)
    monkeypatch.setattr(CoTraining, "_several_replicas", lambda self: True)
    with pytest.raises(ValueError, match="crafted_once works on one device only"):
        CoTraining({"a": make_network("a")}, learns_from="before", attack=ATTACK, crafted_once=1)


def test_too_little_room_is_found_before_any_crafting(craft, monkeypatch, tmp_path):
    free = SimpleNamespace(free=4 * COUNT * 16 * 16 * 3 - 1)  # two sources, two copies
    monkeypatch.setattr(crafted_once.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(ValueError, match=r"choose fewer copies, or another folder. Received: 0.0 GB to craft"):
        craft()
    assert files(tmp_path / "crafted", COUNT) == {}


def test_a_fingerprint_is_of_weights_and_layers_and_not_of_names(make_network):
    keras.utils.set_random_seed(0)
    first, second = make_network("a"), make_network("b", dropout=0.5)
    second.set_weights(first.get_weights())
    third = make_network("c")
    third.set_weights(first.get_weights())
    assert crafted_once.fingerprint(first, "") == crafted_once.fingerprint(third, "")
    assert crafted_once.fingerprint(first, "") != crafted_once.fingerprint(second, "")
    third.weights[0].assign(third.weights[0] + 1e-6)
    assert crafted_once.fingerprint(first, "") != crafted_once.fingerprint(third, "")
    assert crafted_once.fingerprint(SimpleNamespace(fingerprint="of a file"), "") == "of a file"
