import os
import subprocess
import sys

import pytest

import satm_tf


def test_public_names_exist():
    missing = [name for name in satm_tf.__all__ if not hasattr(satm_tf, name)]
    assert not missing


# numpy is a backend that is installed; torch and jax are not, and Keras itself then fails to import.
@pytest.mark.parametrize("backend", ["numpy", "jax", "nonsense"])
def test_another_backend_is_refused_with_the_way_out(backend):
    finished = subprocess.run(
        [sys.executable, "-c", "import satm_tf"],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: satm_tf runs on Keras's TensorFlow backend.")
    assert "KERAS_BACKEND=tensorflow" in last
    assert repr(backend) in last
