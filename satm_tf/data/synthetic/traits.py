"""What faces are made of: cues of age, traits of the person, nuisances of the photograph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from satm_tf.data.adience import AGE_GROUPS

Traits = dict[str, npt.NDArray[np.float64]]

# A stage is an age on a scale where every group is one wide: group k reaches from k - 0.4 to k + 0.4, so that noise of
# a given size blurs all neighbouring groups alike, which in years it would not.
_STAGE_AGES = tuple(float(age) for low, high in AGE_GROUPS for age in (low, min(high, 85)))
_STAGES = tuple(group + side for group in range(len(AGE_GROUPS)) for side in (-0.4, 0.4))

# Each cue of age, at the middle of each of the eight groups.
CUES: dict[str, tuple[float, ...]] = {
    "head_width": (0.675, 0.642, 0.610, 0.580, 0.570, 0.580, 0.592, 0.590),
    "head_height": (0.665, 0.695, 0.728, 0.762, 0.790, 0.800, 0.806, 0.815),
    "jaw": (0.80, 0.76, 0.73, 0.74, 0.80, 0.85, 0.89, 0.92),
    "eye_y": (0.20, 0.135, 0.07, 0.01, -0.04, -0.065, -0.085, -0.10),
    "eye_size": (0.174, 0.156, 0.139, 0.124, 0.112, 0.105, 0.099, 0.090),
    "eye_open": (0.68, 0.63, 0.58, 0.53, 0.47, 0.42, 0.37, 0.30),
    "iris": (0.62, 0.58, 0.53, 0.50, 0.48, 0.48, 0.48, 0.48),
    "brow": (0.08, 0.22, 0.40, 0.62, 0.82, 0.88, 0.84, 0.70),
    "nose_length": (0.145, 0.185, 0.23, 0.28, 0.32, 0.345, 0.37, 0.405),
    "nose_width": (0.070, 0.077, 0.084, 0.093, 0.100, 0.106, 0.114, 0.128),
    "mouth_width": (0.115, 0.145, 0.172, 0.198, 0.214, 0.220, 0.224, 0.228),
    "lips": (0.036, 0.038, 0.041, 0.048, 0.043, 0.036, 0.029, 0.019),
    "ears": (0.10, 0.11, 0.115, 0.12, 0.125, 0.13, 0.14, 0.16),
    "hair_density": (0.22, 0.85, 1.0, 1.0, 1.0, 0.97, 0.92, 0.80),
    "forehead": (0.38, 0.38, 0.35, 0.34, 0.38, 0.43, 0.49, 0.58),
    "recession": (0.00, 0.00, 0.00, 0.00, 0.18, 0.42, 0.68, 1.05),
    "grey": (0.00, 0.00, 0.00, 0.00, 0.02, 0.26, 0.60, 0.97),
    "neck": (0.40, 0.44, 0.49, 0.56, 0.62, 0.64, 0.65, 0.62),
    "blush": (1.00, 0.78, 0.55, 0.35, 0.12, 0.05, 0.03, 0.03),
    "forehead_lines": (0.00, 0.00, 0.00, 0.00, 0.20, 0.50, 0.80, 1.15),
    "crows_feet": (0.00, 0.00, 0.00, 0.00, 0.16, 0.48, 0.80, 1.15),
    "folds": (0.00, 0.00, 0.04, 0.08, 0.36, 0.62, 0.86, 1.15),
    "eye_bags": (0.00, 0.00, 0.04, 0.08, 0.32, 0.58, 0.82, 1.10),
    "jowls": (0.00, 0.00, 0.00, 0.00, 0.06, 0.28, 0.62, 1.10),
    "texture": (0.00, 0.02, 0.05, 0.16, 0.22, 0.40, 0.65, 1.00),
    "glasses": (-9.0, -2.6, -1.9, -1.6, -1.4, -1.3, -0.9, -0.6),
    "beard": (-9.0, -9.0, -9.0, -1.6, -0.2, -0.2, -0.3, -0.3),
    "adult": (0.10, 0.20, 0.35, 0.85, 1.00, 1.00, 1.00, 1.00),
}

# How far, in stages, a subject's whole face and each single cue are ahead of or behind the subject's age.
_FACE_NOISE = 0.10
_CUE_NOISE = 0.30

# Traits of the person: mean of men, mean of women, standard deviation. Means apply in full to adults, less to children.
IDENTITY: dict[str, tuple[float, float, float]] = {
    "wide": (1.02, 0.98, 0.040),
    "tall": (1.01, 0.99, 0.020),
    "jaw_shape": (0.06, -0.06, 0.05),
    "eye_gap": (0.00, 0.00, 0.018),
    "eye_scale": (0.97, 1.04, 0.045),
    "eye_slant": (0.00, 0.05, 0.09),
    "brow_scale": (1.25, 0.75, 0.20),
    "brow_lift": (0.00, 0.025, 0.015),
    "nose_scale": (1.05, 0.96, 0.07),
    "mouth_scale": (1.02, 0.98, 0.06),
    "mouth_shift": (0.00, 0.00, 0.02),
    "lip_scale": (0.88, 1.15, 0.14),
    "lip_red": (0.15, 0.60, 0.18),
    "lashes": (0.20, 0.75, 0.18),
    "hair_length": (-0.05, 0.75, 0.38),
    "hair_volume": (0.07, 0.11, 0.035),
    "hair_curve": (0.50, 0.50, 0.35),
    "hair_part": (0.00, 0.00, 0.20),
    "hair_shade": (0.00, 0.00, 1.00),
    "hair_wave": (0.00, 0.00, 1.00),
    "eye_shade": (0.00, 0.00, 1.00),
    "skin_shade": (0.00, 0.00, 1.00),
    "balding": (1.00, 0.22, 0.28),
    "beard_wish": (0.00, -9.0, 1.00),
    "glasses_wish": (0.00, 0.00, 0.80),
}

# Traits of the photograph: mean and standard deviation.
NUISANCES: dict[str, tuple[float, float]] = {
    "tilt": (0.0, 0.045),
    "yaw": (0.0, 0.11),
    "nod": (0.0, 0.016),
    "scale": (1.04, 0.030),
    "shift_x": (0.0, 0.025),
    "shift_y": (0.02, 0.020),
    "light_x": (0.0, 0.18),
    "light_y": (-0.08, 0.10),
    "exposure": (1.0, 0.10),
    "warmth": (0.0, 0.05),
    "contrast": (1.0, 0.10),
    "smile": (0.42, 0.40),
    "squint": (1.0, 0.08),
    "gaze": (0.0, 0.12),
    "glasses_today": (0.0, 0.6),
    "blur": (0.15, 0.25),
    "noise": (0.008, 0.006),
    "jpeg_quality": (82.0, 9.0),
}


def stage_of_age(age: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Places ages in years on the scale on which all of Adience's groups are equally wide: group k is around k."""
    return np.interp(np.asarray(age, np.float64), _STAGE_AGES, _STAGES)


def age_of_stage(stage: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The inverse of `stage_of_age`, for stages of -0.4 to 7.4."""
    return np.interp(np.asarray(stage, np.float64), _STAGES, _STAGE_AGES)


def face_traits(
    age: npt.ArrayLike, gender: Sequence[str], *, identity: npt.ArrayLike | None = None, seed: int = 0
) -> Traits:
    """Draws the traits of each face, by name, each `[n]`; arguments are as for `render`.

    A cue of age is seen through the noise of the subject's face and of the cue.
    """
    ages = np.asarray(age, dtype=np.float64)
    people = np.arange(ages.size) if identity is None else np.asarray(identity)
    if ages.ndim != 1 or not ages.size or not np.all(ages >= 0):
        raise ValueError(f"`age` must be a vector of ages in years, 0 or more. Received: age={age!r}")
    if len(gender) != len(ages) or not set(gender) <= {"m", "f"}:
        raise ValueError(f"`gender` must hold 'm' or 'f' for each of the {len(ages)} ages. Received: gender={gender!r}")
    if people.shape != ages.shape or not np.issubdtype(people.dtype, np.integer) or people.min() < 0:
        raise ValueError(
            f"`identity` must hold an integer of 0 or more for each of the {len(ages)} ages. Received: "
            f"identity={identity!r}"
        )

    # One row of the stream for each subject number, so that a person does not depend on who else is in the batch.
    person_rng, photo_rng = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    person = person_rng.standard_normal((int(people.max()) + 1, 1 + len(CUES) + len(IDENTITY)))[people]
    photo = photo_rng.standard_normal((len(ages), len(NUISANCES)))
    face_noise, cue_noise, own = person[:, 0], person[:, 1 : 1 + len(CUES)], person[:, 1 + len(CUES) :]

    stage = stage_of_age(ages) + _FACE_NOISE * face_noise
    groups = np.arange(len(AGE_GROUPS))
    t = {
        name: np.interp(stage + _CUE_NOISE * noise, groups, values)
        for (name, values), noise in zip(CUES.items(), cue_noise.T, strict=True)
    }
    sway = np.where(np.asarray(list(gender)) == "m", 0.5, -0.5) * t["adult"]
    for (name, (man, woman, deviation)), noise in zip(IDENTITY.items(), own.T, strict=True):
        t[name] = (man + woman) / 2 + (man - woman) * sway + deviation * noise
    for (name, (mean, deviation)), noise in zip(NUISANCES.items(), photo.T, strict=True):
        t[name] = mean + deviation * np.clip(noise, -2.5, 2.5)
    return t
