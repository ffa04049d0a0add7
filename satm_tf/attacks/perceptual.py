"""Measures of a perturbation, and adversarial images as 8-bit images."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from satm_tf.attacks.norms import NORMS

# Float images of 8-bit origin differ from the levels only by rounding.
_ON_A_LEVEL = 1e-3


def distortion(adversarial: Any, images: Any) -> dict[str, np.ndarray]:
    """How far adversarial images are from the clean ones, by four measures.

    Args:
        adversarial: Floats `[images, height, width, channels]` in [0, 1].
        images: Floats like `adversarial`, the clean images.

    Returns:
        float32 `[images]` under "linf", "l2", "l0" (pixels that differ in any channel) and "ssim" (1 is identical).

    Example:
        >>> distortion(adversarial, images)["linf"].max() <= 16 / 256 + 1e-6
        True

    Source:
        SSIM: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004. Its window
        of 11 pixels shrinks to fit smaller images.
    """
    adversarial, images = tf.cast(adversarial, tf.float32), tf.cast(images, tf.float32)
    lengths = {name: norm.length(adversarial - images).numpy().ravel() for name, norm in NORMS.items()}
    window = min(11, *images.shape[1:3])
    return {**lengths, "ssim": tf.image.ssim(adversarial, images, max_val=1.0, filter_size=window).numpy()}


def as_uint8(adversarial: Any, images: Any) -> np.ndarray:
    """8-bit images that are no further from the clean ones than the adversarial ones are, in any norm.

    Each pixel is rounded toward the clean pixel, so that the image stays in its ball; up to one level of 255 is lost.

    Args:
        adversarial: Floats `[images, height, width, channels]` in [0, 1].
        images: Floats like `adversarial`, the clean images, whose values must be 8-bit levels: `quantise` them before
            the attack.

    Returns:
        uint8 like `adversarial`.

    Raises:
        ValueError: If the clean images are not 8-bit images, because a ball around them may hold no 8-bit image.

    Example:
        >>> images = quantise(images)
        >>> written = as_uint8(attack(network, images, labels), images)
    """
    clean = 255.0 * np.asarray(images, "float64")
    levels = np.round(clean)
    if np.abs(clean - levels).max(initial=0.0) > _ON_A_LEVEL:
        raise ValueError(
            "The clean images must be 8-bit for the result to stay inside the ball; call attacks.quantise on them "
            f"before the attack. Received images up to {np.abs(clean - levels).max():.3f} off a level"
        )
    difference = 255.0 * np.asarray(adversarial, "float64") - levels
    return (levels + np.trunc(difference + np.copysign(_ON_A_LEVEL, difference))).astype("uint8")


def quantise(images: Any) -> np.ndarray:
    """The nearest images with 8-bit levels, as floats in [0, 1]."""
    return (np.round(255.0 * np.asarray(images, "float64")) / 255.0).astype("float32")
