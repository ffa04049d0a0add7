"""The names of a run's files and stages, and that a folder of another layout is refused."""

import json

import pytest
import yaml

from satm_tf import export, train
from satm_tf.evaluation.names import NetworkName
from satm_tf.experiment import RunFolder, Stage, config
from satm_tf.experiment.card import facts_from_run


@pytest.mark.parametrize("text", ["fine_tune/a", "co_train/satm"])
def test_a_stage_is_written_and_read(text):
    assert str(Stage.parse(text)) == text


@pytest.mark.parametrize("text", ["a", "co_train/", "train/a", ""])
def test_what_is_no_stage_is_refused(text):
    with pytest.raises(ValueError, match="A stage must be fine_tune/<network> or co_train/<scheme>"):
        Stage.parse(text)


def test_the_stage_of_a_network_in_results():
    assert Stage.of(NetworkName("satm", "a")) == Stage("co_train", "satm")
    assert Stage.of(NetworkName("holdout", "c")) == Stage("fine_tune", "c")


@pytest.fixture
def of_the_first_release(tmp_path):
    """A finished run as the first release wrote it: its files are few here, but are as they were."""
    run = tmp_path / "old"
    stage = run / "networks" / "co_train" / "satm"
    stage.mkdir(parents=True)
    (stage / "compact_vgg.keras").write_bytes(b"")
    described = yaml.safe_load(config.PRESETS["quickstart"].read_text())
    described["evaluation_attacks"]["r+fgsm"] = {"name": "randomised_step", "label_source": "true"}
    (run / "config.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    (run / "environment.json").write_text(json.dumps({"python": "3.11.7", "tensorflow": "2.21.0", "satm_tf": "0.1.0"}))
    (run / "results.csv").write_text(
        "fold,scheme,attack,epsilon,source,target,images,classification_rate,classification_rate_low,"
        "classification_rate_high,one_off_rate,one_off_rate_low,one_off_rate_high\n"
        "0,satm,clean,0.0,,satm/compact_vgg,480,0.7,0.6,0.8,0.9,0.8,0.95\n"
    )
    return run


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_a_run_of_the_first_release_is_not_resumed(of_the_first_release, arguments, capsys):
    before = {path: path.read_bytes() for path in of_the_first_release.rglob("*") if path.is_file()}
    few = ["--data.num_subjects", "40", "--data.images_per_subject", "1"]
    assert train.main(["--run_dir", str(of_the_first_release), *few, *arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {of_the_first_release} was written by another release of satm_tf")
    assert len(printed.splitlines()) == 1
    assert {path: path.read_bytes() for path in before} == before


def test_nor_is_it_exported_or_described(of_the_first_release, capsys):
    with pytest.raises(ValueError, match="another release of satm_tf"):
        facts_from_run(of_the_first_release, "satm", "compact_vgg")
    assert export.main([str(of_the_first_release), "--scheme", "satm", "--labels", "[a, b]"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_run_of_this_release_says_its_layout(tmp_path):
    from satm_tf import storage

    storage.claim(tmp_path, {"name": "x"})
    assert json.loads(RunFolder(tmp_path).environment.read_text())["layout"] == storage.LAYOUT
    storage.claim(tmp_path, {"name": "x"})
