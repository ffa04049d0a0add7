"""Several devices: of one process, in a process that has two; and of two processes, that stand for two machines."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from satm_tf.training import devices_for, get_strategy, is_chief
from tests.training.small_training import fit
from tests.training.worker import arrays, make_small

ROOT = Path(__file__).parents[2]
# Several times what is needed on two slow cores; a deadlock takes as long.
SECONDS = 300


@pytest.mark.slow
def test_two_devices_of_one_process():
    """Replicas and networks on two logical devices, which have to be there before TensorFlow looks."""
    checks = Path(__file__).with_name("two_devices.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-20_000:]


def run_workers(*folders, die_at=(0, 0)):
    """Exit codes and errors of two workers on free ports of this machine, which train in these folders one by one.

    `die_at` gives each a step of the last training to die at.
    """
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("localhost", 0))
        addresses = [f"localhost:{each.getsockname()[1]}" for each in (first, second)]
    processes, deadline = [], time.monotonic() + SECONDS
    try:
        for index in range(2):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            command = [sys.executable, "-m", "tests.training.worker", str(die_at[index]), *map(str, folders)]
            environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
            with (folders[-1] / f"{index}.err").open("w") as errors:
                processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=errors))
        for each in processes:
            each.wait(max(1.0, deadline - time.monotonic()))
    finally:
        for each in processes:
            each.kill()
    return [each.returncode for each in processes], [
        (folders[-1] / f"{index}.err").read_text()[-5000:] for index in range(2)
    ]


@pytest.mark.slow
def test_two_workers_equal_one_process_also_after_one_was_killed(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    codes, errors = run_workers(whole, broken, die_at=(0, 6))  # in the second epoch of four steps
    assert codes[1] == -9, errors[1]
    assert codes[0] == 1, errors[0]
    assert "ConnectionError: Another worker has stopped" in errors[0]
    assert (broken / "last.ckpt").exists()

    workers = [dict(np.load(whole / f"{index}.npz")) for index in range(2)]
    trainer = make_small(tf.distribute.get_strategy())
    expected = arrays(trainer, fit(trainer))
    for worker in workers:
        assert worker.keys() == expected.keys()
        for key, value in expected.items():
            # As between replicas of one process.
            np.testing.assert_allclose(worker[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
            np.testing.assert_array_equal(worker[key], workers[0][key], err_msg=key)

    codes, errors = run_workers(broken)
    assert codes == [0, 0], errors
    for index, worker in enumerate(workers):
        resumed = np.load(broken / f"{index}.npz")
        for key, value in worker.items():
            # Weights and the like to the bit. Of what each worker had counted for its figures, the sum was kept, of
            # which each has got an equal part back: one rounding.
            np.testing.assert_allclose(resumed[key], value, rtol=0 if key.isdigit() else 1e-6, atol=0, err_msg=key)


def test_no_strategy_is_the_default_one():
    for name in ("none", "network_per_device"):
        strategy = get_strategy(name)
        assert strategy is tf.distribute.get_strategy()
        assert is_chief(strategy)


def test_unknown_strategies_give_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'mirrored'"):
        get_strategy("mirorred")


WORKERS = {"worker": ["host1:1", "host2:1"]}


@pytest.mark.parametrize(
    "config",
    [
        None,
        "",
        "{",
        "[]",
        {"task": {"type": "worker", "index": 0}},
        {"cluster": WORKERS},
        {"cluster": WORKERS, "task": {"type": "worker", "index": 2}},
        {"cluster": WORKERS, "task": {"type": "worker", "index": -1}},
        {"cluster": WORKERS, "task": {"type": "chief", "index": 0}},
        {"cluster": WORKERS, "task": {"type": "ps", "index": 0}},
        {"cluster": WORKERS, "task": {"type": "worker"}},
        {"cluster": {"worker": ["host1:1"]}, "task": {"type": "worker", "index": 0}},
    ],
    ids=str,
)
def test_a_cluster_is_refused_before_it_is_waited_for(monkeypatch, config):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ValueError, match=r"(?s)needs TF_CONFIG.*such as.*Received: "):
        get_strategy("multi_worker")


def test_a_worker_has_one_gpu(monkeypatch):
    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{index}", "GPU") for index in range(2)]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    with pytest.raises(ValueError, match=r"CUDA_VISIBLE_DEVICES.*GPU:1"):
        get_strategy("multi_worker")


@pytest.mark.parametrize(
    ("jobs", "task", "expected"),
    [
        (("worker",), ("worker", 0), True),
        (("worker",), ("worker", 1), False),
        (("chief", "worker"), ("chief", 0), True),
        (("chief", "worker"), ("worker", 0), False),
    ],
)
def test_the_chief_is_the_chief_or_the_first_worker(jobs, task, expected):
    class Strategy(tf.distribute.MultiWorkerMirroredStrategy):
        def __init__(self):
            """Waits for nobody."""

        cluster_resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({job: [f"{job}:1", f"{job}:2"] for job in jobs}), task_type=task[0], task_id=task[1]
        )

    assert is_chief(Strategy()) is expected


def test_a_network_each_needs_two_devices():
    with pytest.raises(ValueError, match=r"at least two devices\. Received: .*CPU:0"):
        devices_for(["a", "b"])
