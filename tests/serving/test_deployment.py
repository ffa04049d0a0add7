import os
import stat
import subprocess

import pytest
from google.protobuf import text_format

from satm_tf.serving.deployment import exported_models, write_configuration


def add_model(folder, name, version="1", whole=True):
    (folder / name / version).mkdir(parents=True)
    if whole:
        (folder / name / version / "saved_model.pb").touch()


@pytest.fixture
def models(tmp_path):
    for name in ("vgg", "resnet"):
        add_model(tmp_path, name)
    add_model(tmp_path, "vgg", ".2-unfinished")
    add_model(tmp_path, "unfinished", ".1-abc")
    add_model(tmp_path, "empty", "1", whole=False)
    return tmp_path


def test_every_model_with_a_version_is_named(models):
    assert exported_models(models) == ["resnet", "vgg"]
    write_configuration(models)
    server = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2", reason="needs the client extra")
    parsed = text_format.Parse((models / "models.config").read_text(), server.ModelServerConfig())
    configured = {entry.name: (entry.base_path, entry.model_platform) for entry in parsed.model_config_list.config}
    assert configured == {name: (f"/models/{name}", "tensorflow") for name in ("vgg", "resnet")}


def test_what_belongs_to_the_user_is_left_and_the_rest_follows(models):
    write_configuration(models)
    (models / "batching.config").write_text("max_batch_size { value: 8 }\n")
    add_model(models, "densenet")
    write_configuration(models)
    assert (models / "batching.config").read_text() == "max_batch_size { value: 8 }\n"
    assert '"densenet"' in (models / "models.config").read_text()
    assert not [path for path in models.iterdir() if path.is_file() and path.name.startswith(".")]
    # A server in a container runs as another user.
    assert stat.S_IMODE((models / "models.config").stat().st_mode) == 0o644


def test_the_docker_line_mounts_the_folder_wherever_it_is_called_from(models, tmp_path):
    write_configuration(models)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "docker").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (programs / "docker").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    called = subprocess.run([models / "serve.sh"], env=environment, cwd="/", check=True, capture_output=True, text=True)
    arguments = called.stdout.splitlines()
    assert f"{models}:/models:ro" in arguments
    assert "tensorflow/serving" in arguments
    assert "--model_config_file=/models/models.config" in arguments
    assert "--batching_parameters_file=/models/batching.config" in arguments
