"""Forms of a depthwise convolution on a CPU, at the sizes of MobileNet: time, ratios and multiply-adds per second.

    python benchmarks/depthwise.py [--size 64] [--batch 64] [--rounds 5] [--layers 0 6] [--network]

- depthwise: TensorFlow's depthwise kernel, which `keras.layers.DepthwiseConv2D` calls.
- grouped: a convolution with a group for each channel.
- shifted: nine shifted images, each multiplied by its weights, and their sum.
- fused: the same, compiled by XLA to one loop.
- dense: a plain convolution with a diagonal kernel, which does as many times the work as there are channels.

Each is measured forward, and forward with the gradients on images and kernel; in float32 and bfloat16; with and without
oneDNN, in a process each. `plain` is what a plain convolution reaches: the multiply-adds of `dense`, all counted.
`--network` measures the whole network's gradients, with each form in place of Keras's layers.

Forms take turns on one thread, and the least processor time counts, which other work on the machine affects little.

Measured on one core of an AMD EPYC with AVX-512 and bfloat16 instructions, oneDNN on, three of the nine sizes
(`--layers 0 4 6`): `grouped` is 1.6 times as fast as `depthwise` forward in float32, and equal with the gradients; in
bfloat16 it is 1.3 and 1.36 times as fast. With the gradients, `depthwise` does 8 (float32) and 11 (bfloat16) times 10^9
multiply-adds per second, a plain convolution 53 and 91. The other forms are slower than `depthwise` throughout.
The gradients of the whole network take as long with `grouped` (0.99 and 1.01), so the backbones keep Keras's layer.
Without oneDNN, `depthwise` with the gradients takes 1.8 times as long in float32 and 6.5 times in bfloat16, and
TensorFlow has no gradient of `grouped` on a CPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from satm_tf import ImageClassifier

# Channels, stride and height of the input, relative to the network's, of MobileNet's depthwise convolutions; how many.
LAYERS = (
    (32, 1, 2, 1), (64, 2, 2, 1), (128, 1, 4, 1), (128, 2, 4, 1), (256, 1, 8, 1), (256, 2, 8, 1),
    (512, 1, 16, 5), (512, 2, 16, 1), (1024, 1, 32, 1),
)  # fmt: skip
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
Form = Callable[[tf.Tensor, tf.Tensor, int], tf.Tensor]


def depthwise(images: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """The convolution, padded to "same", of `[batch, height, width, channels]` with `[3, 3, channels, 1]`."""
    return tf.nn.depthwise_conv2d(images, kernel, [1, stride, stride, 1], "SAME")


def grouped(images: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    return tf.nn.conv2d(images, tf.transpose(kernel, [0, 1, 3, 2]), stride, "SAME")


def shifted(images: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    height, width = images.shape[1:3]
    (rows, *above_below), (columns, *left_right) = (_same(side, stride) for side in (height, width))
    padded = tf.pad(images, [[0, 0], above_below, left_right, [0, 0]])
    return tf.add_n(
        [
            padded[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
            * kernel[i, j, :, 0]
            for i in range(3)
            for j in range(3)
        ]
    )


def _same(side: int, stride: int) -> tuple[int, int, int]:
    """The size of the output, and TensorFlow's padding before and after."""
    outputs = -(-side // stride)
    padding = max((outputs - 1) * stride + 3 - side, 0)
    return outputs, padding // 2, padding - padding // 2


def dense(images: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    return tf.nn.conv2d(images, kernel * tf.eye(kernel.shape[2], dtype=kernel.dtype), stride, "SAME")


FORMS: dict[str, Form] = {
    "depthwise": depthwise,
    "grouped": grouped,
    "shifted": shifted,
    "fused": tf.function(shifted, jit_compile=True),
    "dense": dense,
}


def forward_of(form: Form, images: tf.Tensor, kernel: tf.Tensor, stride: int) -> Callable[[], Any]:
    return tf.function(lambda: form(images, kernel, stride))


def gradients_of(form: Form, images: tf.Tensor, kernel: tf.Tensor, stride: int) -> Callable[[], Any]:
    @tf.function
    def gradients() -> Any:
        with tf.GradientTape() as tape:
            tape.watch((images, kernel))
            outputs = form(images, kernel, stride)
        return tape.gradient(outputs, (images, kernel), output_gradients=outputs)

    return gradients


PASSES = {"forward": forward_of, "gradients": gradients_of}


def network_of(form: Form, size: int, batch: int, policy: str) -> Callable[[], Any]:
    """The gradients on the weights of MobileNet in training, with this form."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    network = ImageClassifier.from_backbone("mobilenet_face", num_classes=8, image_shape=(size, size, 3))
    images, labels = tf.random.stateless_uniform([batch, size, size, 3], [0, 1]), tf.range(batch) % 8
    own_call = keras.layers.DepthwiseConv2D.call

    @tf.function(autograph=False)
    def gradients() -> Any:
        # Only while this is traced.
        keras.layers.DepthwiseConv2D.call = lambda layer, inputs: form(
            inputs, tf.convert_to_tensor(layer.kernel), layer.strides[0]
        )
        try:
            with tf.GradientTape() as tape:
                logits = network(images, training=True)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            return tape.gradient(loss, network.trainable_variables)
        finally:
            keras.layers.DepthwiseConv2D.call = own_call

    return gradients


def measure(functions: dict[str, Callable[[], Any]], rounds: int, tolerance: float) -> dict[str, float]:
    """The least processor time of each in seconds, without those that fail or give other answers than the first."""
    times: dict[str, list[float]] = {}
    expected: Any = None
    for name, function in functions.items():
        try:
            answers = tf.nest.flatten(function())
        except tf.errors.OpError as error:
            print(f"  {name} is left out: {type(error).__name__}: {error.message.splitlines()[0][:100]}")
            continue
        expected = expected or answers
        error = max(_relative_error(one, other) for one, other in zip(answers, expected, strict=True))
        if error > tolerance:
            print(f"  {name} is left out: its answers differ by {error:.0e} of their length")
            continue
        times[name] = []
    for _ in range(rounds):
        for name, own in times.items():
            began = time.process_time()
            functions[name]()
            own.append(time.process_time() - began)
    return {name: min(own) for name, own in times.items()}


def _relative_error(given: tf.Tensor, expected: tf.Tensor) -> float:
    given, expected = tf.cast(given, tf.float32), tf.cast(expected, tf.float32)
    return float(tf.norm(given - expected) / tf.norm(expected))


def row(label: str, seconds: dict[str, float]) -> str:
    cells = "".join(
        f"{1e3 * seconds[name]:9.2f} ({seconds['depthwise'] / seconds[name]:4.2f})" if name in seconds else f"{'-':>16}"
        for name in FORMS
    )
    return f"{label:32}{cells}"


def compare(given: argparse.Namespace) -> None:
    """Prints the figures of this process."""
    size, batch, rounds = given.size, given.batch, given.rounds
    forms = {name: form for name, form in FORMS.items() if name in {"depthwise", *given.forms}}
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(f"{'milliseconds (times as fast)':32}" + "".join(f"{name:>16}" for name in FORMS))
    # Relative to the length of the answers: sums in another order are rounded differently. bfloat16 has 8 bits, and
    # `shifted` rounds each of its nine terms.
    tolerances = {"float32": 1e-5, "bfloat16": 5e-2}
    if given.network:
        for dtype in given.policy:
            functions = {name: network_of(form, size, batch, POLICIES[dtype]) for name, form in forms.items()}
            # Batch normalisation and depth amplify rounding.
            print(row(f"{dtype} network", measure(functions, rounds, 100 * tolerances[dtype])), flush=True)
        return
    for dtype in given.policy:
        for which, make in PASSES.items():
            totals: dict[str, float] = dict.fromkeys(forms, 0.0)
            counted = plain = plain_seconds = 0.0
            for layer in given.layers:
                channels, stride, shrunk, repeats = LAYERS[layer]
                side = size // shrunk
                images = tf.cast(tf.random.stateless_normal([batch, side, side, channels], [0, layer]), dtype)
                kernel = tf.cast(tf.random.stateless_normal([3, 3, channels, 1], [1, layer]), dtype)
                functions = {name: make(form, images, kernel, stride) for name, form in forms.items()}
                seconds = measure(functions, rounds, tolerances[dtype])
                print(row(f"{dtype} {which} {side}x{side}x{channels}/{stride}", seconds), flush=True)
                work = 9 * channels * batch * _same(side, stride)[0] ** 2 * (1 if which == "forward" else 3)
                counted += repeats * work
                if "dense" in seconds:
                    plain, plain_seconds = plain + channels * work, plain_seconds + seconds["dense"]
                totals = {name: totals[name] + repeats * seconds[name] for name in totals if name in seconds}
            rates = [f"{name} {counted / total / 1e9:.2f}" for name, total in totals.items()]
            if plain_seconds:
                rates.append(f"plain {plain / plain_seconds / 1e9:.1f}")
            print(row(f"{dtype} {which} in all", totals))
            print(f"  10^9 multiply-adds a second: {', '.join(rates)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="height and width of the network's images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    every = range(len(LAYERS))
    parser.add_argument("--layers", type=int, nargs="+", choices=every, default=list(every), help="rows of LAYERS")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="to compare with depthwise")
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--network", action="store_true", help="measure the whole network instead of layers")
    parser.add_argument("--here", action="store_true", help="measure here, with oneDNN as it is set")
    given = parser.parse_args()
    if given.here:
        compare(given)
        return
    for one_dnn in ("1", "0"):
        print(f"\noneDNN {'on' if one_dnn == '1' else 'off'}", flush=True)
        environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": one_dnn}
        subprocess.run([sys.executable, __file__, "--here", *sys.argv[1:]], check=True, env=environment)


if __name__ == "__main__":
    main()
