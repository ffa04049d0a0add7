"""The number formats in which networks compute."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from satm_tf.configurable import unknown_name

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16", "auto")

# Processor instructions that multiply bfloat16 matrices.
_MATRIX_UNITS = ("amx_bf16", "avx512_bf16", "bf16")


def resolve_precision(precision: str) -> str:
    """The Keras dtype policy for an option on this machine.

    Args:
        precision: "float32", "mixed_bfloat16", "mixed_float16", or "auto": bfloat16 if the GPUs (compute capability 8.0
            or more) or, without a GPU, the processor support it in hardware, float16 on GPUs that support only that
            (7.0 or more), and float32 otherwise.

    Raises:
        ValueError: If the option is unknown.

    Example:
        >>> keras.config.set_dtype_policy(resolve_precision("auto"))
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision != "auto":
        return precision
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = min(
            tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus
        )
        return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else "float32"
    return "mixed_bfloat16" if _processor_has(_MATRIX_UNITS) else "float32"


def _processor_has(flags: tuple[str, ...], source: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor lists one of these features; False if the system does not say."""
    try:
        text = source.read_text()
    except OSError:
        return False
    words = {word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()}
    return bool(words & set(flags))
