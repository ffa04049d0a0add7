"""SATM's train step on an accelerator: milliseconds, images per second, share of the chip's peak, peak memory.

    python benchmarks/gpu.py                                                # the paper's pair, 224 pixels
    python benchmarks/gpu.py --networks compact_vgg compact_resnet --size 32 --batch 8          # a try on a CPU

If TensorFlow sees a GPU, TensorFlow runs the step. If not, it only lowers the step, optimizers and metrics included, to
one HLO program, which JAX's PJRT client compiles and runs on the device that JAX has. For that, install JAX beside this
package: `pip install jax` for the CPU, `pip install "jax[cuda13]"` for an NVIDIA GPU; nothing else here needs it.

Each row is a process of its own, so that memory peaks are its own and a row that does not fit is only reported. TFLOP/s
count two operations for each multiply-add of convolutions and dense layers: per image, a forward pass and the gradient
on the pixels to craft, and three passes of two images to train. The time is the median step; only the last of several
is awaited, as in training. Peaks are those of NVIDIA's data sheets for dense matrices, TF32 for float32.

`--check` compares the weights that the lowered step gives with those of TensorFlow's own step on the CPU.
`--profile` prints the operations that take the most time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from satm_tf import CoTraining, ImageClassifier
from satm_tf.attacks import RandomisedStep

CLASSES, EPSILON = 8, 16 / 256
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
# TFLOP/s by a part of the device's name; the first that fits counts.
PEAKS = {
    "H100 PCIe": {"float32": 378, "bfloat16": 756},
    "H100": {"float32": 495, "bfloat16": 989},
    "H200": {"float32": 495, "bfloat16": 989},
    "A100": {"float32": 156, "bfloat16": 312},
    "L40S": {"float32": 183, "bfloat16": 362},
    "L4": {"float32": 60, "bfloat16": 121},
}
# Forward passes' worth of multiply-adds per image and network: 2 to craft, 3 for each of two images to train.
PASSES = 8
# The relative error of a network's update, by which a lowered step may differ from TensorFlow's. Rounding alone gives
# some 1e-6 in float32, but a pixel whose gradient is nearly zero may get the other sign, and so a step of epsilon the
# other way; in bfloat16, 2^-8 is rounded away in each layer.
TOLERANCES = {"float32": 1e-3, "bfloat16": 2e-1}
Step = Callable[[], Any]


def make_trainer(backbones: Sequence[str], size: int, policy: str, alpha: float | None = None) -> CoTraining:
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(POLICIES[policy])
    networks = {
        name: ImageClassifier.from_backbone(name, num_classes=CLASSES, image_shape=(size, size, 3))
        for name in backbones
    }
    keras.config.set_dtype_policy("float32")
    attack = RandomisedStep(epsilon=EPSILON, alpha=alpha)
    trainer = CoTraining(networks, learns_from="others", attack=attack)
    trainer.compile(keras.optimizers.SGD(1e-4, momentum=0.9))
    return trainer


def make_batch(size: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(batch, size, size, 3)).astype(np.float32)
    return images, rng.integers(0, CLASSES, batch).astype(np.int32)


def multiply_adds(network: ImageClassifier) -> int:
    """Of one image's forward pass, in convolutions and dense layers."""
    body = [layer for layer in network.backbone.layers if hasattr(layer, "kernel")]
    head = math.prod(network.get_layer("classification").kernel.shape)
    return head + sum(math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1]) for layer in body)


@contextlib.contextmanager
def without_checks() -> Iterator[None]:
    """XLA drops assertions, but refuses to compile the strings of their messages."""
    with (
        mock.patch.object(tf.debugging, "Assert", side_effect=lambda condition, data: tf.no_op()),
        mock.patch.object(tf.strings, "format", return_value=""),
    ):
        yield


class Lowered:
    """A train step on JAX's device.

    Args:
        trainer: The trainer, of which this holds a copy of all variables.
        batch: Images and labels.
    """

    def __init__(self, trainer: CoTraining, batch: Sequence[np.ndarray]):
        try:
            import jax
            from jax.extend.backend import get_compile_options
            from jax.extend.mlir import hlo_to_stablehlo, ir
            from jax.interpreters.mlir import make_ir_context
            from jaxlib import xla_client
            from jaxlib._hlo import XlaComputation
        except ImportError as missing:
            raise SystemExit(f"TensorFlow sees no GPU, and JAX is not installed: pip install jax ({missing})") from None
        jax.config.update("jax_enable_x64", True)  # for the counter of steps
        self.device = jax.devices()[0]
        specs = [tf.TensorSpec(each.shape, each.dtype) for each in batch]

        @tf.function(jit_compile=True, autograph=False)
        def step(images: tf.Tensor, labels: tf.Tensor) -> Any:
            return trainer.train_step((images, labels))

        with without_checks():
            concrete = step.get_concrete_function(*specs)
            program = step.experimental_get_compiler_ir(*specs)(stage="hlo_serialized")
        # The program takes the batch, then what the step captured, and gives the results, then the changed variables.
        # Which of the latter replaces which argument stands in the first line: `{output}: (argument, {}, may-alias)`.
        header = XlaComputation(program).as_hlo_text().partition("\n")[0]
        self.updates = {int(new): int(old) for new, old in re.findall(r"\{(\d+)\}: \((\d+), \{\}", header)}
        by_handle = {id(variable.handle): variable for variable in concrete.variables}
        self.variables = {
            place: by_handle[id(captured)]
            for place, captured in enumerate(concrete.captured_inputs, start=len(batch))
            if id(captured) in by_handle
        }
        captures = [by_handle.get(id(captured), captured).numpy() for captured in concrete.captured_inputs]
        self.arguments = [jax.device_put(each, self.device) for each in (*batch, *captures)]
        with make_ir_context():
            self.executable = self.device.client.compile_and_load(
                ir.Module.parse(hlo_to_stablehlo(program)),
                executable_devices=xla_client.DeviceList((self.device,)),
                compile_options=get_compile_options(num_replicas=1, num_partitions=1),
            )

    def __call__(self) -> Any:
        """Takes a step, and returns an array that is ready when it is done."""
        results = self.executable.execute_sharded(self.arguments).disassemble_into_single_device_arrays()
        for new, old in self.updates.items():
            self.arguments[old] = results[new][0]
        return self.arguments[max(self.updates.values())]

    def values(self) -> dict[int, np.ndarray]:
        """The variables' values, by the identity of their handles."""
        return {id(own.handle): np.asarray(self.arguments[place]) for place, own in self.variables.items()}

    def peak_bytes(self) -> int:
        stats = self.device.memory_stats()  # None on a CPU, where XLA's plan is all there is
        if stats:
            return stats["peak_bytes_in_use"]
        plan = self.executable.get_compiled_memory_stats()
        kept = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        return kept + plan.temp_size_in_bytes


def check(backbones: Sequence[str], size: int, batch: int, policy: str) -> str:
    """Compares a lowered step with TensorFlow's own; without the random step, which XLA draws from other numbers."""
    trainer = make_trainer(backbones, size, policy, alpha=0.0)
    data = make_batch(size, batch)
    lowered = Lowered(trainer, data)
    before = {name: network.get_weights() for name, network in trainer.networks.items()}
    lowered().block_until_ready()
    after = lowered.values()
    with tf.device("CPU"):
        tf.function(trainer.train_step, autograph=False)(tuple(map(tf.constant, data)))
    errors = {}
    for name, network in trainer.networks.items():
        wanted = [own - old for own, old in zip(network.get_weights(), before[name], strict=True)]
        given = [after[id(own.value.handle)] - old for own, old in zip(network.weights, before[name], strict=True)]
        errors[name] = _length([a - b for a, b in zip(given, wanted, strict=True)]) / _length(wanted)
    verdict = "agrees" if max(errors.values()) <= TOLERANCES[policy] else "DIFFERS"
    listed = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    return f"{policy}: {verdict} with TensorFlow's step; relative error of the update: {listed}"


def _length(arrays: Sequence[np.ndarray]) -> float:
    return math.sqrt(sum(float(np.sum(np.square(each, dtype=np.float64))) for each in arrays))


def tensorflow_step(trainer: CoTraining, batch: Sequence[np.ndarray]) -> Step:
    trainer.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(tuple(map(tf.constant, batch))).repeat())
    return lambda: trainer.train_function(batches)["loss"]


def ready(result: Any) -> None:
    np.asarray(result)


def measure(
    backbones: Sequence[str], size: int, batch: int, policy: str, *, steps: int, rounds: int, profile: bool
) -> dict[str, Any]:
    """One row of the table, in this process."""
    trainer = make_trainer(backbones, size, policy)
    gpus = tf.config.list_physical_devices("GPU")
    data = make_batch(size, batch)
    began = time.perf_counter()
    lowered = None if gpus else Lowered(trainer, data)
    step: Step = lowered or tensorflow_step(trainer, data)
    ready(step())
    compiled = time.perf_counter() - began
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(steps - 1):
            step()
        ready(step())
        seconds.append((time.perf_counter() - began) / steps)
    if lowered:
        chip, peak_bytes = lowered.device.device_kind, lowered.peak_bytes()
    else:
        chip = tf.config.experimental.get_device_details(gpus[0])["device_name"]
        peak_bytes = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    forward = sum(multiply_adds(network) for network in trainer.networks.values())
    return {
        "chip": chip,
        "by": "JAX" if lowered else "TensorFlow",
        "seconds": statistics.median(seconds),
        "operations": 2 * PASSES * batch * forward,
        "bytes": peak_bytes,
        "compiled": compiled,
        "slow": slowest(step, traced_by_jax=lowered is not None) if profile else [],
    }


def slowest(step: Step, *, traced_by_jax: bool, count: int = 12) -> list[tuple[str, float]]:
    """The operations that take the most time in a step, with their shares of the time of all."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        if traced_by_jax:
            import jax

            with jax.profiler.trace(folder):
                ready(step())
        else:
            with tf.profiler.experimental.Profile(folder):
                ready(step())
        space = xplane_pb2.XSpace.FromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    on_device = [plane for plane in space.planes if plane.name.startswith("/device:GPU")]
    planes = on_device or [plane for plane in space.planes if plane.name == "/host:CPU"]
    # Kernels on a GPU are in streams; XLA's operations on a CPU have "hlo_op" among their facts.
    totals: Counter[str] = Counter()
    for plane in planes:
        hlo = [key for key, fact in plane.stat_metadata.items() if fact.name == "hlo_op"]
        for line in plane.lines:
            for event in line.events:
                if line.name.startswith("Stream") or (
                    not on_device and any(fact.metadata_id in hlo for fact in event.stats)
                ):
                    name = plane.event_metadata[event.metadata_id].name
                    totals[re.sub(r"[.\d]+$", "", name)] += event.duration_ps
    everything = sum(totals.values())
    return [(name, time_ / everything) for name, time_ in totals.most_common(count)]


def peak_of(chip: str, policy: str) -> float:
    return next((peaks[policy] for name, peaks in PEAKS.items() if name in chip), math.nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vgg16_face", "resnet50_face"], help="names of backbones")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--steps", type=int, default=10, help="steps per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", type=float, help="the chip's TFLOP/s, for a chip that is not in the table")
    parser.add_argument("--check", action="store_true", help="only compare the lowered step with TensorFlow's")
    parser.add_argument("--profile", action="store_true", help="print the slowest operations too")
    parser.add_argument("--json", action="store_true", help="measure one row here and print JSON")
    given = parser.parse_args()
    rows = [(batch, policy) for policy in given.policy for batch in given.batch]
    if given.check:
        for batch, policy in rows:
            print(check(given.networks, given.size, batch, policy), flush=True)
        return
    if given.json:
        ((batch, policy),) = rows
        options = {"steps": given.steps, "rounds": given.rounds, "profile": given.profile}
        row = measure(given.networks, given.size, batch, policy, **options)
        print(json.dumps(row))
        return
    print(f"{' and '.join(given.networks)}, {given.size} pixels")
    print(f"{'policy':10}{'batch':>6}{'ms':>10}{'images/s':>10}{'TFLOP/s':>9}{'of peak':>9}{'peak MiB':>10}  on")
    for batch, policy in rows:
        flags = [f"--{name}={getattr(given, name)}" for name in ("size", "steps", "rounds")]
        flags += ["--profile"] if given.profile else []
        command = [sys.executable, __file__, "--json", "--batch", str(batch), "--policy", policy, *flags]
        command += ["--networks", *given.networks]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{policy:10}{batch:6}  failed: {done.stderr.strip().splitlines()[-1][:160]}", flush=True)
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        rate = row["operations"] / row["seconds"] / 1e12
        share = rate / (given.peak or peak_of(row["chip"], policy))
        print(
            f"{policy:10}{batch:6}{1e3 * row['seconds']:10.1f}{batch / row['seconds']:10.1f}{rate:9.3f}"
            f"{'-' if math.isnan(share) else f'{share:.1%}':>9}{row['bytes'] / 2**20:10.0f}  {row['chip']} by"
            f" {row['by']}, compiled in {row['compiled']:.0f} s",
            flush=True,
        )
        for name, part in row["slow"]:
            print(f"{part:26.1%}  {name[:90]}")


if __name__ == "__main__":
    main()
