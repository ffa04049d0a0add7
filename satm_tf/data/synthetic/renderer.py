"""Procedural faces of every age, painted by NumPy for whole batches at once.

All is painted from the background to the glasses, as soft-edged implicit shapes, in two frames. `u`, `v` are fixed to
the head: its centre is the origin, `v` points down, and the unit is half the image's side before the pose's scale. `a`,
`b` are fixed to the features, which yaw and nodding move across the head; `a` is folded at the nose, so that everything
that comes in pairs is drawn once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt

from satm_tf.data.synthetic.traits import Traits

Floats = npt.NDArray[np.float32]

_SKIN = ((1.00, 0.86, 0.76), (0.94, 0.76, 0.62), (0.82, 0.61, 0.46), (0.64, 0.44, 0.31), (0.43, 0.28, 0.20))
_HAIR = ((0.86, 0.70, 0.42), (0.62, 0.42, 0.22), (0.40, 0.25, 0.14), (0.24, 0.15, 0.10), (0.09, 0.07, 0.07))
_EYES = ((0.35, 0.55, 0.75), (0.38, 0.52, 0.36), (0.45, 0.30, 0.16), (0.30, 0.19, 0.10), (0.18, 0.11, 0.07))

VERSION = 1  # Version of the drawing code, so that data sets of another version are recognised.
_CHUNK = 8  # Faces painted together: more of them do not fit the processor's cache, which is slower.


def draw_faces(traits: Traits, *, image_size: int = 96, seed: int | Sequence[int] = 0) -> npt.NDArray[np.uint8]:
    """Paints the faces that `face_traits` describes, uint8 RGB `[n, image_size, image_size, 3]`.

    The seed is that of the background, the skin's and hair's grain and the sensor noise.
    """
    rng = np.random.default_rng(seed)
    count = len(traits["scale"])
    images = np.empty((count, image_size, image_size, 3), np.uint8)
    for start in range(0, count, _CHUNK):
        part = {name: values[start : start + _CHUNK] for name, values in traits.items()}
        images[start : start + _CHUNK] = _draw_chunk(part, image_size, rng)
    return images


@dataclasses.dataclass
class _Canvas:
    """What the brushes share. `image` is `[3, n, h, w]`, the maps are `[n, h, w]`, traits and `edge` `[n, 1, 1]`."""

    image: Floats
    u: Floats
    v: Floats
    a: Floats
    b: Floats
    side: Floats
    head: Floats
    skin: Floats
    shadow: Floats
    grain: Floats
    edge: Floats
    rng: np.random.Generator

    def rows(self, top: float, bottom: float) -> _Canvas:
        """The rows between two heights of the image, so that a small feature does not cost a whole image."""
        height = self.image.shape[2]
        cut = slice(max(0, int((top + 1) / 2 * height)), min(height, int(np.ceil((bottom + 1) / 2 * height))))
        maps = {name: value for name, value in vars(self).items() if name not in ("edge", "rng")}
        return dataclasses.replace(self, **{name: value[..., cut, :] for name, value in maps.items()})

    def paint(self, mask: Floats, colour: Floats) -> None:
        self.image += mask * (colour - self.image)

    def inside(self, distance: Floats, softness: Floats | float = 1.0) -> Floats:
        """1 where a signed distance is negative, 0 where it is positive, a ramp of `softness` pixels between them."""
        return np.clip(0.5 - distance / (softness * self.edge), 0, 1)

    def line(self, distance: Floats, width: Floats | float) -> Floats:
        """A soft line where a distance is near 0; never thinner than a pixel, lest it break up into dots."""
        return np.clip(1 - np.abs(distance) / np.maximum(width, self.edge), 0, 1)


def _between(x: Floats, low: Floats | float, high: Floats | float, ramp: float) -> Floats:
    """1 between two bounds, falling to 0 within `ramp` outside them."""
    return np.clip(1 + np.minimum(x - low, high - x) / ramp, 0, 1)


def _length(x: Floats, y: Floats) -> Floats:
    """As `np.hypot`, which is several times slower because it guards against overflow."""
    return np.sqrt(x * x + y * y)


def _palette(colours: Sequence[Sequence[float]], position: Floats) -> Floats:
    """Colours `[3, n, 1, 1]` between the palette's entries; `position` is standard normal."""
    knots = np.linspace(-1.6, 1.6, len(colours))
    return np.stack([np.interp(position, knots, channel) for channel in zip(*colours, strict=True)]).astype(np.float32)


def _rgb(red: float, green: float, blue: float) -> Floats:
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1, 1)


def _smooth_noise(rng: np.random.Generator, count: int, size: int, cells: int) -> Floats:
    """Noise of unit variance at the knots, bilinear between them, `[count, size, size]`."""
    knots = rng.standard_normal((count, cells + 1, cells + 1), dtype=np.float32)
    position = np.linspace(0, cells, size, endpoint=False, dtype=np.float32)
    low = position.astype(int)
    part = position - np.floor(position)
    tall = knots[:, low] + part[:, None] * (knots[:, low + 1] - knots[:, low])
    return np.asarray(tall[..., low] + part * (tall[..., low + 1] - tall[..., low]))


def _draw_chunk(traits: Traits, size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    t = SimpleNamespace(**{name: values.astype(np.float32).reshape(-1, 1, 1) for name, values in traits.items()})
    count = len(t.scale)
    t.head_width, t.head_height = t.head_width * t.wide, t.head_height * t.tall
    t.jaw = np.clip(t.jaw + t.jaw_shape, 0.55, 1.0)
    t.eye_x, t.eye_size = 0.44 * t.head_width + t.eye_gap, t.eye_size * t.eye_scale
    t.eye_open = t.eye_size * t.eye_open * np.clip(t.squint - 0.15 * np.maximum(t.smile - 0.6, 0), 0.6, 1.2)
    t.nose_y, t.nose_width = t.eye_y + t.nose_length, t.nose_width * t.nose_scale
    t.mouth_y = t.nose_y + 0.42 * (t.head_height - t.nose_y) + t.mouth_shift
    t.mouth_width = t.mouth_width * t.mouth_scale * (1 + 0.12 * np.maximum(t.smile, 0))
    t.hairline = -t.head_height * (1 - t.forehead - 0.30 * np.clip(t.recession * t.balding - 0.6, 0, 1))
    t.lips = t.lips * t.lip_scale
    t.skin_colour = _palette(_SKIN, t.skin_shade)
    # Dark skin goes with dark hair and eyes more often than chance.
    t.hair_colour = _palette(_HAIR, t.hair_shade + 0.7 * np.maximum(t.skin_shade, -0.5))
    t.hair_colour += t.grey * (_rgb(0.80, 0.80, 0.81) - t.hair_colour)
    t.eye_colour = _palette(_EYES, t.eye_shade + 0.8 * np.maximum(t.skin_shade, -0.5))

    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    x, y = axis[None, None, :] - t.shift_x, axis[None, :, None] - t.shift_y
    u = (x * np.cos(t.tilt) + y * np.sin(t.tilt)) / t.scale
    v = (y * np.cos(t.tilt) - x * np.sin(t.tilt)) / t.scale
    down = np.maximum(v, 0) / t.head_height
    taper = t.head_width * (1 - (1 - t.jaw) * down * down)
    head = np.sqrt((u / taper) ** 2 + (v / t.head_height) ** 2)
    # Features lie on a cylinder that yaw turns, so that the far half of the face is narrower than the near one.
    side = u * np.cos(t.yaw) - np.sqrt(np.maximum(0, t.head_width**2 - u * u)) * np.sin(t.yaw)
    edge = np.float32(2 / size) / t.scale
    c = _Canvas(
        image=np.empty((3, count, size, size), np.float32),
        u=u,
        v=v,
        a=np.abs(side),
        b=v - t.nod,
        side=side,
        head=head,
        skin=np.clip(0.5 - (head - 1) * t.head_width / edge, 0, 1),
        shadow=np.zeros_like(u),
        grain=_smooth_noise(rng, count, size, size // 3),
        edge=edge,
        rng=rng,
    )
    for brush in _BRUSHES:
        brush(c, t)
    return _photograph(c, t)


def _background(c: _Canvas, t: SimpleNamespace) -> None:
    count, size = len(t.scale), c.image.shape[-1]
    base = c.rng.uniform(0.15, 0.85, (1, count, 1, 1)) + 0.09 * c.rng.standard_normal((3, count, 1, 1))
    for channel in range(3):
        c.image[channel] = 0.07 * _smooth_noise(c.rng, count, size, 2)
    c.image += base.astype(np.float32) + 0.12 * _smooth_noise(c.rng, count, size, 4)


def _hair_behind(c: _Canvas, t: SimpleNamespace) -> None:
    grown = t.head_width * (1.0 + t.hair_volume)
    above = np.minimum(c.v + 0.05, 0) / (t.head_height * (1 + t.hair_volume))
    outline = (np.sqrt((c.u / grown) ** 2 + above * above) - 1) * grown
    mask = c.inside(np.maximum(outline, c.v - t.hair_length)) * np.clip(1.6 * t.hair_density - 0.6, 0, 1)
    c.paint(mask * np.clip(t.hair_length * 6, 0, 1), t.hair_colour * (0.75 + 0.08 * c.grain))


def _shoulders(c: _Canvas, t: SimpleNamespace) -> None:
    c = c.rows(0.2, 1)
    neck = np.maximum(np.abs(c.u) - t.head_width * (t.neck + t.jaw_shape), 0.1 - c.v)
    c.paint(c.inside(neck), t.skin_colour * 0.78)
    top = t.head_height + 0.06 + (1.3 - 1.4 * t.neck) * np.maximum(np.abs(c.u) - 0.2, 0) ** 2
    cloth = c.rng.uniform(0.08, 0.9, (3, len(t.scale), 1, 1)).astype(np.float32)
    c.paint(c.inside(top - c.v), cloth)


def _ears(c: _Canvas, t: SimpleNamespace) -> None:
    c = c.rows(-0.5, 0.7)
    ear = _length((np.abs(c.u) - t.head_width * 0.99) / 0.55, c.b - t.eye_y - 0.09) - t.ears
    c.paint(c.inside(ear), t.skin_colour * 0.86)
    c.shadow += 0.25 * c.line(ear + 0.05, 0.03)


def _head(c: _Canvas, t: SimpleNamespace) -> None:
    pink = _rgb(0.10, -0.06, -0.05) * t.blush
    cheek = np.clip(1 - _length(c.a - t.eye_x * 1.15, c.b - t.nose_y) / 0.22, 0, 1)
    c.paint(c.skin, t.skin_colour + pink * cheek - _rgb(0.0, 0.01, 0.03) * t.texture)


def _skin_texture(c: _Canvas, t: SimpleNamespace) -> None:
    blotches = _smooth_noise(c.rng, len(t.scale), c.image.shape[-1], 13)
    spots = np.clip(blotches - 0.9, 0, 0.6) * 0.32
    c.shadow += c.skin * t.texture * (0.045 * blotches + 0.03 * c.grain + spots)


def _forehead_lines(c: _Canvas, t: SimpleNamespace) -> None:
    c = c.rows(-0.9, 0.15)
    brow = t.eye_y - t.eye_open - 0.10
    height = (brow - 0.02 - c.b) / 0.105 + 2.5 * c.a**2
    wave = np.clip(1 - np.abs(height - np.floor(height) - 0.5) / 0.22, 0, 1)
    c.shadow += 0.34 * t.forehead_lines * wave * _between(height, 0.2, 2.6, 0.2) * _between(c.a, 0, 0.20, 0.14)
    frown = c.line(c.a - 0.035, 0.022) * _between(c.b, brow - 0.03, brow + 0.09, 0.04)
    c.shadow += 0.24 * np.maximum(t.forehead_lines - 0.2, 0) * frown


def _crows_feet(c: _Canvas, t: SimpleNamespace) -> None:
    c = c.rows(-0.5, 0.5)
    out = c.a - t.eye_x - t.eye_size * 1.05
    fan = (c.b - t.eye_y) / np.maximum(out + 0.05, 0.02) * 1.4 + 0.5
    rays = np.clip(1 - np.abs(fan - np.floor(fan) - 0.5) / 0.32, 0, 1)
    c.shadow += 0.42 * t.crows_feet * rays * _between(fan, -0.8, 1.8, 0.3) * _between(out, 0.01, 0.07, 0.03)


def _eye_bags(c: _Canvas, t: SimpleNamespace) -> None:
    c = c.rows(-0.45, 0.6)
    across = (c.a - t.eye_x) / (t.eye_size * 1.15)
    arc = c.b - t.eye_y - (t.eye_open + 0.075) * np.maximum(0, 1 - 0.55 * across**2)
    c.shadow += 0.42 * t.eye_bags * c.line(arc, 0.028) * np.clip(1.6 - 1.6 * np.abs(across), 0, 1)
    c.shadow += 0.12 * t.eye_bags * _between(arc, -0.05, 0, 0.02) * np.clip(1.6 - 1.6 * np.abs(across), 0, 1)


def _folds(c: _Canvas, t: SimpleNamespace) -> None:
    c = c.rows(-0.2, 1)
    along = (c.b - t.nose_y + 0.02) / (t.mouth_y - t.nose_y + 0.06)
    fold = c.a - t.nose_width - 0.02 - (t.mouth_width * 1.12 - t.nose_width) * along
    c.shadow += (0.42 + 0.08 * np.maximum(t.smile, 0)) * t.folds * c.line(fold, 0.030) * _between(along, 0, 1, 0.15)
    puppet = c.a - t.mouth_width * 1.08 - 0.15 * (c.b - t.mouth_y)
    c.shadow += 0.28 * t.jowls * c.line(puppet, 0.028) * _between(c.b - t.mouth_y, 0.03, 0.15, 0.04)
    hollow = _length((c.a - 0.78 * t.head_width) / 0.6, (c.b - t.mouth_y + 0.06) / 1.3)
    c.shadow += 0.20 * t.jowls * np.clip(1 - hollow / 0.20, 0, 1)


def _nose(c: _Canvas, t: SimpleNamespace) -> None:
    c = c.rows(-0.4, 0.75)
    along = np.clip((c.b - t.eye_y) / t.nose_length, 0, 1)
    flank = c.a - t.nose_width * (0.45 + 0.55 * along * along)
    c.shadow += (0.10 + 0.08 * t.adult) * c.line(flank, 0.035) * _between(c.b, t.eye_y - 0.02, t.nose_y, 0.03)
    c.shadow -= 0.10 * c.line(c.a, 0.6 * t.nose_width) * _between(c.b, t.eye_y, t.nose_y - 0.03, 0.05)
    wing = _length(c.a / 1.15, (c.b - t.nose_y) * 2.2) - t.nose_width
    c.shadow += 0.22 * c.line(wing, 0.035) * (c.b > t.nose_y - 0.02)
    nostril = _length(c.a - 0.5 * t.nose_width, (c.b - t.nose_y - 0.005) * 1.7) - 0.26 * t.nose_width
    c.shadow += 0.50 * c.inside(nostril, 1.5)


def _shade_skin(c: _Canvas, t: SimpleNamespace) -> None:
    side = t.light_x * c.u / t.head_width + t.light_y * c.v / t.head_height
    rim = 0.75 * np.clip(c.head - 0.45, 0, 0.6) ** 2
    c.image *= 1 - np.clip(c.shadow, -0.15, 0.72) + (side - rim) * c.skin


def _eyes(c: _Canvas, t: SimpleNamespace) -> None:
    c = c.rows(-0.5, 0.6)
    across = (c.a - t.eye_x) / t.eye_size
    down = c.b - t.eye_y + t.eye_slant * (c.a - t.eye_x)
    lid = t.eye_open * np.maximum(0, 1 - across * across)
    beyond = np.clip(np.abs(across) - 1, 0, 1) * t.eye_size
    white = c.inside(np.abs(down) - lid + beyond)
    c.paint(white, _rgb(0.93, 0.92, 0.90) - 0.10 * t.texture)
    look = _length(c.a - t.eye_x - np.sign(c.side) * t.gaze * t.eye_size, down + 0.1 * t.eye_open)
    radius = t.iris * t.eye_size
    c.paint(white * c.inside(look - radius), t.eye_colour)
    c.paint(white * c.inside(look - 0.5 * radius), _rgb(0.04, 0.03, 0.03))
    glint = _length(c.a - t.eye_x - 0.2 * radius, down + 0.45 * radius) - 0.22 * radius
    c.paint(white * c.inside(glint), _rgb(1, 1, 1))
    reach = np.clip(1.25 - np.abs(across), 0, 0.2) * 5
    lash = c.line(down + lid, 0.018 + 0.022 * t.lashes) * reach
    c.paint(lash * (0.55 + 0.35 * t.lashes), t.skin_colour * 0.25)
    # The crease sinks onto the lid with age.
    crease = c.line(down + lid + 0.045 - 0.02 * t.eye_bags, 0.02) * reach
    c.paint(crease * 0.30, t.skin_colour * 0.5)
    c.paint(c.line(down - lid, 0.015) * reach * 0.35, t.skin_colour * 0.5)


def _brows(c: _Canvas, t: SimpleNamespace) -> None:
    c = c.rows(-0.7, 0.4)
    across = (c.a - t.eye_x) / (t.eye_size * 0.5 + 0.085)
    arch = c.b - t.eye_y + t.eye_open + 0.085 + t.brow_lift + 0.03 * (1 - across * across) - 0.02 * across
    thick = (0.012 + 0.026 * t.brow * np.clip(t.brow_scale, 0.35, 1.8)) * np.clip(1.15 - 0.35 * across, 0.4, 1.5)
    mask = c.inside(np.abs(arch) - thick, 2) * np.clip(6 * (1.08 - np.abs(across)), 0, 1)
    c.paint(mask * (0.30 + 0.60 * t.brow), t.hair_colour * (0.65 + 0.2 * t.grey))


def _mouth(c: _Canvas, t: SimpleNamespace) -> None:
    c = c.rows(0, 1)
    across = c.a / t.mouth_width
    bow = np.maximum(0, 1 - across * across)
    down = c.b - t.mouth_y + 0.075 * t.smile * (across * across - 0.4)
    gap = 0.085 * np.clip(t.smile - 0.55, 0, 0.6) * bow
    beyond = np.clip(across - 1, 0, 1) * t.mouth_width
    upper = np.maximum(-down - gap - t.lips * 0.8 * bow * (1 - 0.35 * np.clip(1 - 4 * across, 0, 1)), down)
    lower = np.maximum(down - gap - t.lips * 1.15 * bow, -down)
    red = t.skin_colour * (1 - 0.10 - 0.1 * t.lip_red) * (_rgb(1, 0.72, 0.74) + 0.14 * t.lip_red * _rgb(0.3, -1, -0.8))
    c.paint(c.inside(lower + beyond, 1.5), red)
    c.paint(c.inside(upper + beyond, 1.5), red * 0.88)
    open_mouth = c.inside(np.abs(down) - gap + beyond) * np.clip(t.smile * 20 - 11, 0, 1)
    c.paint(open_mouth, _rgb(0.93, 0.91, 0.87) - 0.12 * t.texture * _rgb(0.6, 0.8, 1.4))
    c.paint(c.line(np.abs(down) - gap, 0.016) * (across < 1.04) * 0.65, t.skin_colour * _rgb(0.35, 0.22, 0.22))
    c.paint(0.22 * c.line(down - gap - t.lips * 1.2 - 0.035, 0.03) * bow, t.skin_colour * 0.45)


def _beard(c: _Canvas, t: SimpleNamespace) -> None:
    c = c.rows(-0.1, 1)
    grown = np.clip(1.2 * (t.beard_wish + t.beard), 0, 1)
    cheek_line = t.mouth_y - 0.02 - 0.85 * np.maximum(c.a - t.mouth_width, 0) ** 1.5 * 2
    chin = c.inside(cheek_line - c.b + 0.05 * (c.a < t.mouth_width), 5) * c.skin
    moustache = _between(c.b, t.nose_y + 0.055, t.mouth_y - 0.02, 0.02) * _between(c.a, 0, t.mouth_width, 0.05)
    lips = _between(c.b, t.mouth_y - 0.03, t.mouth_y + t.lips + 0.02, 0.02) * _between(c.a, 0, t.mouth_width, 0.02)
    mask = np.maximum(chin, moustache) * (1 - lips) * grown * np.clip(0.75 + 0.25 * c.grain, 0, 1)
    c.paint(mask * 0.85, t.hair_colour * (0.8 + 0.1 * c.grain))


def _hair_before(c: _Canvas, t: SimpleNamespace) -> None:
    grown = 1 + t.hair_volume * np.clip(t.hair_density, 0.3, 1)
    outline = (np.sqrt((c.u / (t.head_width * grown)) ** 2 + (c.v / (t.head_height * grown)) ** 2) - 1) * t.head_width
    across = np.minimum(np.abs(c.u) / t.head_width, 1.2)
    square = across * across
    curve = np.clip(t.hair_curve, 0, 1)
    drop = (t.eye_y - 0.02 - t.hairline) * (square * (1 - curve) + square * square * curve)
    temples = np.clip(1 - np.abs(across - 0.48) / 0.34, 0, 1)
    parting = t.hair_part * c.u * (1 - square)
    line = t.hairline + drop - 0.24 * np.clip(t.recession * t.balding, 0, 1.1) * temples + parting
    line += 0.02 * c.grain
    bald = np.clip(t.recession * t.balding * 2.2 - 1.1, 0, 1) * np.clip(1.5 - 1.9 * across, 0, 1)
    mask = c.inside(np.maximum(outline, c.v - line), 1.5 + 3 * (1 - t.hair_density))
    strands = np.sin(c.u * (46 + 6 * t.hair_wave) + 5 * np.sin(3 * c.v + t.hair_wave) + 2 * c.grain)
    sheen = 0.10 * np.clip(1 - np.abs(outline + 0.16) / 0.12, 0, 1)
    colour = t.hair_colour * (0.92 + 0.10 * strands + sheen) + 0.10 * t.grey * (1 - t.grey) * c.grain
    c.paint(mask * t.hair_density * (1 - bald) * np.clip(0.95 + (1 - t.hair_density) * c.grain, 0, 1), colour)


def _glasses(c: _Canvas, t: SimpleNamespace) -> None:
    worn = (t.glasses + t.glasses_wish + t.glasses_today > 0).astype(np.float32)
    c = c.rows(-0.5, 0.6)
    lens = np.maximum(np.abs(c.a - t.eye_x) - 0.17, np.abs(c.b - t.eye_y - 0.02) - 0.115)
    lens = np.maximum(lens + 0.05, 0) - 0.07 + 0.15 * _length(c.a - t.eye_x, c.b - t.eye_y - 0.02)
    bridge = c.line(c.b - t.eye_y + 0.02, 0.016) * (c.a < t.eye_x - 0.15)
    arm = c.line(c.b - t.eye_y + 0.03, 0.018) * (c.a > t.eye_x + 0.16) * c.skin
    frame = np.maximum(np.maximum(c.line(lens, 0.022), bridge), arm)
    c.paint(0.85 * worn * frame, _palette(_HAIR[2:], t.eye_shade) * 0.6)


_BRUSHES: tuple[Callable[[_Canvas, SimpleNamespace], None], ...] = (
    _background, _hair_behind, _shoulders, _ears, _head, _skin_texture, _forehead_lines, _crows_feet, _eye_bags,
    _folds, _nose, _shade_skin, _eyes, _brows, _mouth, _beard, _hair_before, _glasses,
)  # fmt: skip


def _photograph(c: _Canvas, t: SimpleNamespace) -> npt.NDArray[np.uint8]:
    """Exposes, blurs and digitises the painted scene: `[n, size, size, 3]`, uint8."""
    light = t.exposure * np.stack([1 + t.warmth, np.ones_like(t.warmth), 1 - t.warmth])
    image = (c.image * light - 0.5) * t.contrast + 0.5
    blur = np.clip(t.blur, 0, 1)
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    wide = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    wide = (wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]) / 16
    image += blur * (wide - image)
    image += np.maximum(t.noise, 0) * c.rng.standard_normal(image.shape[1:], dtype=np.float32)
    return np.moveaxis(np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8), 0, -1)
