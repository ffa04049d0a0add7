import functools
import io
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining
from satm_tf.attacks import FGSM
from satm_tf.training import Pictures, Progress, callbacks
from tests.training.resumable import STEPS, At, train


@pytest.fixture
def terminal(monkeypatch):
    """What is shown on a terminal 80 columns wide, figures at every step."""
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(callbacks, "_SECONDS_BETWEEN_FIGURES", 0.0)
    shape = {"dynamic_ncols": False, "file": stream, "ncols": 80, "mininterval": 0}
    monkeypatch.setattr(callbacks, "Bar", functools.partial(callbacks.Bar, **shape))
    return stream


def test_the_bar_shows_the_stage_the_time_left_and_the_figures_within_an_epoch(terminal, tmp_path):
    train(tmp_path, callbacks=[Progress("co-train", {"clean": "val_a_accuracy", "loss": "loss"})], epochs=2)
    figure = r"\d?\.\d\d"
    assert re.search(rf"co-train 1/2 +25%\|.*\| \d\d:\d\d, loss {figure}\r", terminal.getvalue() + "\r")
    assert re.search(rf"co-train 2/2 100%\|.*\| 00:00, clean {figure}  loss {figure}", terminal.getvalue())


def test_a_log_has_a_line_for_each_epoch(tmp_path, capsys):
    train(tmp_path, callbacks=[Progress("co-train", {"loss": "loss"})], epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"\d?\.\d\d", "#", line) for line in lines] == [
        "co-train: epoch 1/2  loss #",
        "co-train: epoch 2/2  loss #",
    ]


NAMES = [f"efficientnet_v2_b{index}_imagenet_fine_tuned" for index in range(3)]
FIGURES = {
    "loss": "loss",
    "clean": [f"val_{name}_accuracy" for name in NAMES],
    "adv": [f"val_{name}_adversarial_accuracy" for name in NAMES],
}
LOGS = {
    "loss": 12.341,
    **{f"val_{name}_accuracy": value for name, value in zip(NAMES, (0.5, 0.75, 1.0), strict=True)},
    # The third network learns from nobody.
    **{f"val_{name}_adversarial_accuracy": value for name, value in zip(NAMES, (0.25, 0.5), strict=False)},
}


def one_epoch(stage):
    progress = Progress(stage, FIGURES)
    progress.set_params({"epochs": 60, "steps": 1000})
    progress.on_train_begin()
    progress.on_epoch_begin(58)
    progress.on_train_batch_end(999, LOGS)
    progress.on_epoch_end(58, LOGS)
    progress.on_train_end()


def test_figures_of_networks_with_long_names_fit_into_a_line(terminal, capsys):
    """The means of three networks, in a log and in a terminal of 80 columns."""
    one_epoch("co_train/satm")
    assert "loss 12.34  clean .75  adv .38" in terminal.getvalue()
    assert max(len(line) for line in re.split(r"[\r\n]", terminal.getvalue())) <= 80
    terminal.isatty = lambda: False
    one_epoch("co_train/satm")
    assert capsys.readouterr().out == "co_train/satm: epoch 59/60  loss 12.34  clean .75  adv .38\n"
    one_epoch(f"fine_tune/{NAMES[0]}_on_the_attackers_own_images_of_another_seed")
    line = capsys.readouterr().out.removesuffix("\n")
    assert len(line) == 80
    assert line.startswith("fine_tune/effici...")
    assert line.endswith("_seed: epoch 59/60  loss 12.34  clean .75  adv .38")


def test_a_resumed_bar_begins_where_the_training_does(terminal, tmp_path):
    def stop():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        train(tmp_path, callbacks=[At(STEPS + 2, stop)])
    train(tmp_path, callbacks=[Progress("co-train", {"loss": "loss"})])
    shown = [int(share) for share in re.findall(r"(\d+)%", terminal.getvalue())]
    assert (shown[0], shown[-1]) == (33, 100), "one of three epochs was done"


def test_a_strip_is_clean_over_adversarial_over_their_difference_around_grey():
    images = tf.constant([0.2, 0.6], shape=(2, 1, 1, 1)) * tf.ones((1, 4, 5, 3))
    adversarial = images + tf.constant([0.1, -0.05], shape=(2, 1, 1, 1))
    picture = callbacks.strip(images, adversarial)
    assert picture.shape == (12, 10, 3)
    rows = picture.numpy()[::4, ::5, 0]
    np.testing.assert_allclose(rows, [[0.2, 0.6], [0.3, 0.55], [1.0, 0.25]], atol=1e-6)


def test_no_difference_is_grey():
    images = tf.fill((1, 2, 2, 3), 0.3)
    np.testing.assert_array_equal(callbacks.strip(images, images)[4:], np.full((2, 2, 3), 0.5))


def test_pictures_of_every_source_reach_tensorboard_and_leave_no_trace(make_network, images, labels, tmp_path):
    def fit(*extra):
        keras.utils.set_random_seed(0)
        networks = {"a": make_network("a", dropout=0.3), "b": make_network("b", batch_norm=True)}
        trainer = CoTraining(networks, attack=FGSM(epsilon=0.1))
        trainer.compile("sgd")
        trainer.fit(images, labels, batch_size=6, epochs=2, shuffle=False, verbose=0, callbacks=list(extra))
        return [variable.numpy().copy() for variable in trainer.state()], trainer

    without, _ = fit()
    shown, trainer = fit(Pictures(tmp_path, tf.data.Dataset.from_tensors((images, labels)), most=3))
    for found, expected in zip(shown, without, strict=True):
        np.testing.assert_array_equal(found, expected)

    (path,) = tmp_path.iterdir()
    pictures = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            pictures[event.step, value.tag] = tf.io.decode_png(value.tensor.string_val[2])
    assert sorted(pictures) == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    crafted = trainer.craft(images[:3], labels[:3])["b"]
    expected = callbacks.strip(images[:3], crafted)
    # A PNG keeps 256 levels.
    np.testing.assert_allclose(pictures[1, "b"].numpy() / 255, expected, atol=1 / 255)
