"""Reading TensorFlow.js graph models: what is whole is read, what is not is refused before anything is cut out."""

import copy
import hashlib
import json

import numpy as np
import pytest

from satm_tf.models.tfjs import read_graph_model

WEIGHTS = {
    "first/kernel": np.arange(6, dtype="<f4").reshape(2, 3),
    "axes": np.array([1, 2], "<i4"),
    "first/bias": np.array([7.5, 8.5, 9.5], "<f4"),
    "limit": np.array(6.0, "<f4"),
}


def write(folder, weights=WEIGHTS, change=lambda model: None, content=None, shards=(0,)):
    """A graph model; its bytes are cut at `shards`, and `change` edits its `.json`."""
    content = b"".join(array.tobytes() for array in weights.values()) if content is None else content
    parts = [content[start:end] for start, end in zip(shards, [*shards[1:], len(content)], strict=True)]
    manifest = [
        {"name": name, "shape": list(array.shape), "dtype": array.dtype.name} for name, array in weights.items()
    ]
    model = {
        "format": "graph-model",
        "modelTopology": {"node": [{"name": name, "op": "Const"} for name in weights] + [{"name": "x", "op": "Mean"}]},
        "weightsManifest": [{"paths": [f"part{index}.bin" for index in range(len(parts))], "weights": manifest}],
    }
    change(model)
    for index, part in enumerate(parts):
        (folder / f"part{index}.bin").write_bytes(part)
    path = folder / "model.json"
    path.write_text(json.dumps(model))
    return path


def entries(model):
    return model["weightsManifest"][0]["weights"]


@pytest.mark.parametrize("shards", [(0,), (0, 10, 20)])  # a cut may fall within a number
def test_every_weight_is_read_in_order(tmp_path, shards):
    read = read_graph_model(write(tmp_path, shards=shards))
    assert list(read) == list(WEIGHTS)
    for name, array in WEIGHTS.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("content", [b"", bytes(39), bytes(47), bytes(49)])
def test_files_of_another_size_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match=rf"describes 48 bytes of weights in part0.bin.*Received: {len(content)} "):
        read_graph_model(write(tmp_path, content=content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.pop("weightsManifest"), "not a TensorFlow.js graph model"),
        (lambda model: model["modelTopology"]["node"][0].pop("name"), "not a TensorFlow.js graph model"),
        (lambda model: entries(model)[0].update(shape=[2, -3]), r"whole numbers. Received: \[2, -3\]"),
        (lambda model: entries(model)[0].update(shape=[2, 4]), "describes 56 bytes"),
        (lambda model: entries(model)[0].update(dtype="float16"), "Received: float16 for 'first/kernel'"),
        (lambda model: entries(model)[0].update(quantization={"dtype": "uint8"}), "not quantised"),
        (lambda model: entries(model)[0].update(name="other"), "the same weights, each once.*'first/kernel'"),
        (lambda model: entries(model).append(copy.deepcopy(entries(model)[0])), "each once: 5 there, 4 here"),
        (lambda model: entries(model).pop(), "each once: 3 there, 4 here.*'limit'"),
        (lambda model: model["weightsManifest"][0].update(paths=["../part0.bin"]), r"Missing: '../part0.bin'"),
        (lambda model: model["weightsManifest"][0].update(paths=["absent.bin"]), "Missing: 'absent.bin'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_graph_model(write(tmp_path, change=change))


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_checksums_are_verified_before_anything_is_read(tmp_path):
    path = write(tmp_path)
    checksums = digests(tmp_path)
    assert list(read_graph_model(path, checksums)) == list(WEIGHTS)
    with pytest.raises(ValueError, match=r"refers to a file whose checksum is not known. Received: 'part0.bin'"):
        read_graph_model(path, {"model.json": checksums["model.json"]})
    for name, content in ((("part0.bin", bytes(48))), ("model.json", b"{ not JSON")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not the published file.*Expected SHA-256: {checksums[name]}"):
            read_graph_model(path, checksums)
