import functools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from satm_tf import attacks, detection
from satm_tf.models import load_model
from satm_tf.serving import export_saved_model

from .conftest import LABELS, SHAPE, build_network

WITHOUT_SATM_TF = """
import sys
sys.modules.update(keras=None, satm_tf=None)  # an attempt to import either fails
import numpy as np, tensorflow as tf
from tensorflow.python.tools import saved_model_cli
folder, images, answers, *program = sys.argv[1:]
signatures = tf.saved_model.load(folder).signatures
images = np.load(images)
files = [tf.io.encode_png(image).numpy() for image in images]
asked = {
    "serving_default": {"images": tf.constant(images / np.float32(255))},
    "serving_bytes": {"image_bytes": tf.constant(files)},
    "features": {"images": tf.constant(images / np.float32(255))},
}
kinds = {tf.string: "S"}
np.savez(answers, **{
    f"{signature}/{name}": np.asarray(value.numpy(), kinds.get(value.dtype))
    for signature, inputs in asked.items()
    for name, value in signatures[signature](**inputs).items()
})
sys.argv = ["saved_model_cli", *program]
saved_model_cli.main()  # which ends the process
"""


def test_a_process_without_satm_tf_and_keras_gives_the_same_answers_and_so_does_saved_model_cli(
    exported, pixels, tmp_path
):
    np.save(tmp_path / "images.npy", pixels)
    np.save(tmp_path / "floats.npy", pixels / np.float32(255))
    program = ["run", "--dir", exported.folder, "--tag_set", "serve", "--signature_def", "serving_default"]
    program += ["--inputs", f"images={tmp_path / 'floats.npy'}", "--outdir", tmp_path]
    files = [tmp_path / "images.npy", tmp_path / "answers.npz"]
    subprocess.run(
        [sys.executable, "-c", WITHOUT_SATM_TF, exported.folder, *files, *program],
        check=True,
        capture_output=True,
        cwd=tmp_path,  # where satm_tf cannot be imported by accident from the checkout
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    answers = np.load(tmp_path / "answers.npz")
    expected = exported.probabilities(pixels / np.float32(255))
    assert len(set(expected.argmax(-1))) > 1
    for signature in ("serving_default", "serving_bytes"):
        np.testing.assert_allclose(answers[f"{signature}/probabilities"], expected, rtol=0, atol=1e-5)
        assert answers[f"{signature}/class_id"].tolist() == expected.argmax(-1).tolist()
        assert answers[f"{signature}/label"].tolist() == [LABELS[index].encode() for index in expected.argmax(-1)]
        assert answers[f"{signature}/valid"].all()
    features = exported.network.features(pixels / np.float32(255))
    np.testing.assert_allclose(answers["features/features"], features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, rtol=0, atol=1e-5)


def test_what_lies_in_a_version(exported):
    assert (exported.folder / "assets" / "labels.txt").read_text(encoding="utf-8").splitlines() == LABELS
    beside = {path.name for path in (exported.folder / "assets.extra").iterdir()}
    assert beside == {"model_card.md", "model_card.json", "tf_serving_warmup_requests"}
    # A server in a container runs as another user.
    assert exported.folder.stat().st_mode & 0o555 == 0o555


@pytest.mark.parametrize("count", [0, 1, 5])
def test_batches_of_none_one_and_many(exported, served, pixels, count):
    images = pixels[:count] / np.float32(255)
    files = tf.constant([tf.io.encode_png(image).numpy() for image in pixels[:count]], tf.string)
    expected = exported.probabilities(images) if count else np.zeros([0, 4])
    for answer in (served["serving_default"](images=images), served["serving_bytes"](image_bytes=files)):
        np.testing.assert_allclose(answer["probabilities"], expected, rtol=0, atol=1e-5)
        assert [answer[name].shape for name in ("class_id", "label", "valid")] == [[count]] * 3
    assert served["features"](images=images)["features"].shape == (count, exported.network.feature_size)


def test_an_image_with_invalid_pixels_fails_alone(exported, served, pixels):
    images = np.repeat(pixels[:1] / np.float32(255), 6, 0)
    images[1, 3, 3, 0], images[2, 0, 0, 1], images[3], images[4, 5, 5, 2] = np.nan, np.inf, pixels[0], -0.5
    images[5, 0, 0, 0] = 1 + 1e-6  # rounding somewhere on the way
    answer = {name: value.numpy() for name, value in served["serving_default"](images=images).items()}
    assert answer["valid"].tolist() == [True, False, False, False, False, True]
    np.testing.assert_allclose(answer["probabilities"][0], exported.probabilities(images[:1])[0], atol=1e-5)
    bad = ~answer["valid"]
    assert not answer["probabilities"][bad].any()
    assert set(answer["class_id"][bad]) == {-1}
    assert set(answer["label"][bad]) == {b""}
    features = served["features"](images=images)
    assert features["valid"].numpy().tolist() == answer["valid"].tolist()
    assert not features["features"].numpy()[bad].any()


def test_a_bad_file_fails_alone(exported, served, pixels):
    png = tf.io.encode_png(pixels[0]).numpy()
    answer = served["serving_bytes"](image_bytes=tf.constant([b"", png, png[:60], b"text", png]))
    assert answer["valid"].numpy().tolist() == [False, True, False, False, True]
    expected = exported.probabilities(pixels[:1] / np.float32(255))[0]
    np.testing.assert_allclose(answer["probabilities"][1], expected, rtol=0, atol=1e-5)
    assert answer["label"].numpy()[[0, 2, 3]].tolist() == [b"", b"", b""]


def test_a_detector_answers_in_every_signature_as_it_does_in_python(detected, detector, pixels):
    loaded = tf.saved_model.load(str(detected.folder))
    pixels = np.concatenate([pixels // 3, pixels // 3 + 160])
    images = pixels / np.float32(255)
    expected = detector.score(detected.network, images).numpy()
    suspicious = expected > float(detector.threshold)
    assert 0 < suspicious.sum() < 12
    files = tf.constant([tf.io.encode_png(image).numpy() for image in pixels])
    for answer in (
        loaded.signatures["serving_default"](images=images),
        loaded.signatures["features"](images=images),
        loaded.signatures["serving_bytes"](image_bytes=files),
    ):
        np.testing.assert_allclose(answer["adversarial_score"], expected, rtol=1e-5, atol=1e-5)
        assert answer["suspicious"].numpy().tolist() == suspicious.tolist()
    images[1] = np.nan
    answer = loaded.signatures["serving_default"](images=images)
    assert (float(answer["adversarial_score"][1]), bool(answer["suspicious"][1])) == (0, False)
    np.testing.assert_allclose(answer["adversarial_score"][2:], expected[2:], rtol=1e-5, atol=1e-5)
    assert loaded.signatures["serving_default"](images=images[:0])["suspicious"].shape == [0]


def test_the_card_has_the_threshold_and_its_rates(detected, detector):
    beside = detected.folder / "assets.extra"
    facts = json.loads((beside / "model_card.json").read_text())
    found = facts["detector"]
    assert (found["name"], found["hidden"], found["clean_images"]) == ("feature_classifier", 4, 20)
    assert (found["threshold"], found["clean_rejected"]) == (float(detector.threshold), 0.05)
    assert facts["signatures"]["features"] == ["features", "valid", "adversarial_score", "suspicious"]
    page = (beside / "model_card.md").read_text()
    assert "\n## The detector\n" in page
    assert "20 clean validation images it was set to reject 5.0%." in page
    assert "| a \\| b | 9 | 0.500 | 10.0% | 20.0% | 70.0% | 25.0% |\n" in page
    assert "an alarm, not a defence" in page
    assert "\n- hidden: 4\n" in page
    assert "\n\n\n" not in page


def test_images_of_another_size_are_refused(served):
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
        served["serving_default"](images=tf.zeros([1, 20, 16, 3]))


def test_an_export_can_be_attacked(exported, pixels):
    """The mask of valid images and the room made for an empty batch let the gradient through."""
    saved = load_model(exported.folder)
    images, labels = tf.constant(pixels / np.float32(255)), tf.zeros([6], tf.int32)
    attack = attacks.FGSM(epsilon=0.1)
    # The logarithm of a saturated probability loses the gradient's sign in a few pixels.
    same = np.isclose(attack(saved, images, labels), attack(exported.network, images, labels), atol=1e-6)
    assert same.mean() > 0.99


@pytest.fixture
def export(exported, tmp_path, monkeypatch):
    """A function that exports that network again; verifying it is seen to elsewhere."""
    monkeypatch.setattr("satm_tf.serving.export.verify", lambda *arguments: {})
    return functools.partial(export_saved_model, exported.network, tmp_path / "model", labels=LABELS)


def test_versions_count_up_and_are_never_overwritten(export, tmp_path):
    root = tmp_path / "model"
    (root / "10").mkdir(parents=True)
    assert export() == root / "11"
    assert export(version=3) == root / "3"
    with pytest.raises(FileExistsError, match="choose another version"):
        export(version=10)
    assert sorted(path.name for path in root.iterdir()) == ["10", "11", "3"]
    assert '"model"' in (tmp_path / "models.config").read_text()


def test_of_two_exports_at_once_one_gives_way(export, tmp_path, monkeypatch):
    def meanwhile(*arguments):
        (tmp_path / "model" / "1").mkdir()
        (tmp_path / "model" / "1" / "saved_model.pb").write_text("another's")
        return {}

    monkeypatch.setattr("satm_tf.serving.export.verify", meanwhile)
    with pytest.raises(FileExistsError, match="exists; choose another version"):
        export()
    assert (tmp_path / "model" / "1" / "saved_model.pb").read_text() == "another's"
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["1"]


def test_a_failed_export_leaves_nothing(export, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("tensorflow.saved_model.save", fail)
    with pytest.raises(OSError, match="disk full"):
        export()
    assert list((tmp_path / "model").iterdir()) == []


def test_what_is_no_detector_of_this_model_is_refused_before_any_work(tmp_path, exported, detector):
    def attempt(model, **options):
        export_saved_model(model, tmp_path / "model", labels=LABELS, **options)

    with pytest.raises(ValueError, match=r"must be fitted.*Received: str"):
        attempt(exported.network, detector="feature_classifier")
    # Its features have the same size.
    with pytest.raises(ValueError, match=r"fitted to this model\. Received: 'feature_classifier', fitted to other"):
        attempt(build_network(seed=1), detector=detector)
    with pytest.raises(ValueError, match=r"detector=guarded\.detector"):
        attempt(detection.Guarded(exported.network, detector))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["one"]}, "a label for each of 4 classes"),
        ({"labels": ["a", "b", "c", "d\ne"]}, "Each class needs its own label"),
        ({"labels": ["a", "b", "c", ""]}, "Each class needs its own label"),
        ({"labels": ["a", "b", "c", "c"]}, "Each class needs its own label"),
        ({"version": 0}, "positive"),
        ({"samples": np.zeros([2, 8, 8, 3])}, r"shape \(16, 16, 3\)"),
        ({"samples": np.zeros([0, *SHAPE])}, "at least one image"),
        ({"samples": np.full([1, *SHAPE], 255)}, "values from 255.0 to 255.0"),
        ({"samples": np.full([1, *SHAPE], np.nan)}, "in \\[0, 1\\]"),
    ],
)
def test_bad_input_is_refused_before_any_work(export, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(**options)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.serving.conftest import LABELS, build_network
from satm_tf.serving import export, export_saved_model
import tensorflow as tf

def start(root):
    # A copy of this process, which has not used TensorFlow yet: the import is paid for once.
    child = os.fork()
    if child == 0:
        export.verify = lambda *arguments: {}  # which reads only, for more than half of the time
        export_saved_model(build_network(), root, labels=LABELS)
        os._exit(0)
    return child

root, shares = Path(sys.argv[1]), [float(share) for share in sys.argv[2:]]
began = time.monotonic()
assert os.waitpid(start(root), 0)[1] == 0
whole = time.monotonic() - began
for share in shares:
    child = start(root)
    time.sleep(share * whole)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.stat().st_size}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_no_part_of_a_version_is_seen(tmp_path):
    """As a server sees it, that looks at the folder again and again, while exports are killed and after that."""
    root, generator = tmp_path / "model", random.Random(time.time_ns())
    shares = [generator.uniform(0.1, 1.0) for _ in range(4)]
    checkout = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", KILLED, root, *map(str, shares)], cwd=checkout)
    seen: dict[str, set[str]] = {}
    while process.poll() is None:
        for version in root.glob("[0-9]*"):
            seen.setdefault(version.name, contents(version))
        time.sleep(0.002)
    assert process.returncode == 0, f"killed at {shares}"
    assert "1" in seen
    whole = contents(root / "1")
    assert {"saved_model.pb", "assets.extra/model_card.md", "variables/variables.index"} < whole
    for version in root.glob("[0-9]*"):
        assert seen.get(version.name, whole) == contents(version) == whole, f"killed at {shares}"
        answer = tf.saved_model.load(str(version)).signatures["serving_default"](images=tf.zeros([1, *SHAPE]))
        assert answer["valid"].numpy().all()
