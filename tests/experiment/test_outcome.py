"""What comes of a run: that an export is made once, whenever a kill comes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from satm_tf.experiment import RunFolder, Stage, outcome


class StoppedError(Exception):
    pass


@pytest.fixture
def finished(config, monkeypatch):
    """A run of which the networks are there, and an export that is a card in a folder."""
    for name in "ab":
        file = config.folder.network(Stage("co_train", "satm"), name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    monkeypatch.setattr(RunFolder, "load", lambda self, stage, name: None)
    monkeypatch.setattr(outcome, "facts_from_run", lambda folder, scheme, name: {})
    return config


IMAGES = SimpleNamespace(class_names=("x",))


def export(network, place, *, labels, card, detector=None):
    versions = len(list(place.glob("*"))) + 1
    written = place / str(versions) / "assets.extra" / "model_card.json"
    written.parent.mkdir(parents=True)
    written.write_text(json.dumps(card))
    return place / str(versions)


@pytest.mark.parametrize("killed", ["before the record", "before the second export"])
def test_a_kill_during_exports_leaves_one_version_of_each(finished, monkeypatch, killed):
    def stop(*arguments, **options):
        raise StoppedError

    monkeypatch.setattr(outcome.serving, "export_saved_model", export)
    with monkeypatch.context() as patched:
        if killed == "before the record":
            patched.setattr(outcome, "write_json", stop)
        else:
            exports = iter([export, stop])
            patched.setattr(outcome.serving, "export_saved_model", lambda *a, **o: next(exports)(*a, **o))
        with pytest.raises(StoppedError):
            outcome._export(finished, IMAGES)
    for _ in range(2):
        outcome._export(finished, IMAGES)
    recorded = json.loads(finished.folder.exports.read_text())
    assert recorded == {name: str(Path(finished.export.folder) / name / "1") for name in "ab"}
    assert all(len(list((Path(finished.export.folder) / name).iterdir())) == 1 for name in "ab")


def test_another_network_of_this_name_is_a_version_of_its_own(finished, monkeypatch):
    monkeypatch.setattr(outcome.serving, "export_saved_model", export)
    outcome._export(finished, IMAGES)
    finished.folder.exports.unlink()
    finished.folder.network(Stage("co_train", "satm"), "a").write_text("trained again")
    outcome._export(finished, IMAGES)
    recorded = json.loads(finished.folder.exports.read_text())
    assert [Path(recorded[name]).name for name in "ab"] == ["2", "1"]
