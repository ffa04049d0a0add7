"""The files next to the models that a server starts with, updated by every export."""

from __future__ import annotations

import json
from pathlib import Path

from satm_tf.storage import atomic_file, write_text

_HEADER = "# Every model of this folder. Rewritten by every export; a server that polls it loads what is new.\n"

_BATCHING = """\
# How the server groups requests into batches. Written once; edit it as you like.
max_batch_size { value: 32 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 100 }
"""

_SERVE = """\
#!/bin/sh
# Serves every model of this folder: gRPC on port 8500, REST on port 8501. Written once; edit it as you like.
exec docker run --rm -p 8500:8500 -p 8501:8501 -v "$(cd "$(dirname "$0")" && pwd):/models:ro" tensorflow/serving \\
    --model_config_file=/models/models.config --model_config_file_poll_wait_seconds=60 \\
    --enable_batching --batching_parameters_file=/models/batching.config
"""


def write_configuration(folder: str | Path) -> None:
    """Writes `models.config`, `batching.config` and `serve.sh`, a `docker run` line, into a folder of models.

    `models.config` names every sub-folder that holds a version; inside the server's container the folder is
    `/models`. The other two are written only if they are missing. Each file is written atomically.

    Source:
        https://www.tensorflow.org/tfx/serving/serving_config
    """
    folder = Path(folder)
    for name, text, mode in (("batching.config", _BATCHING, 0o666), ("serve.sh", _SERVE, 0o777)):
        if not (folder / name).exists():
            with atomic_file(folder / name, mode=mode) as temporary:
                temporary.write_text(text)
    models = None
    # Another export may finish between listing the folder and writing the file, so list it again.
    while models != (models := exported_models(folder)):
        write_text(folder / "models.config", _HEADER + _model_configurations(models))


def exported_models(folder: str | Path) -> list[str]:
    """The names of the models in a folder, sorted: the sub-folders that hold a version."""
    versions = Path(folder).glob("*/*/saved_model.pb")
    return sorted({path.parts[-3] for path in versions if path.parts[-2].isdigit() and path.parts[-3][0] != "."})


def _model_configurations(models: list[str]) -> str:
    entries = [
        f"  config {{ name: {json.dumps(name)} base_path: {json.dumps(f'/models/{name}')} "
        'model_platform: "tensorflow" }\n'
        for name in models
    ]
    return f"model_config_list {{\n{''.join(entries)}}}\n"
