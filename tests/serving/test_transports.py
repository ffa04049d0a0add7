"""Exports on this disk as a client asks them; `test_client.py` has the servers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from satm_tf.serving.transports import local


def test_a_version_and_the_newest_of_a_model_answer_alike(exported, pixels):
    images = pixels / np.float32(255)
    for folder in (exported.folder, exported.folder.parent):
        answer = local(folder)("serving_default", {"images": images})
        np.testing.assert_allclose(answer["probabilities"], exported.probabilities(images), rtol=0, atol=1e-5)


def test_an_unknown_signature_is_refused_with_the_nearest(exported):
    with pytest.raises(ValueError, match=r"Unknown signature\. Did you mean 'features'"):
        local(exported.folder)("feature", {})


def test_a_missing_and_a_damaged_export_are_named(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a folder with a saved_model\.pb"):
        local(tmp_path)
    shutil.copytree(exported.folder, tmp_path / "7")
    (tmp_path / "7" / "saved_model.pb").write_bytes(b"not this one")
    with pytest.raises(ValueError, match=r"7 cannot be loaded\. If it is damaged"):
        local(tmp_path)
