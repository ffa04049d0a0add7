import functools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from satm_tf.data.decoding import decode, resize


@functools.cache
def _graph(size, crop):
    """As in a pipeline, traced once for each size and crop."""
    return tf.function(lambda path, orientation=None: decode(path, size, orientation=orientation, crop=crop))


@pytest.fixture
def decoded(tmp_path):
    def run(contents: bytes, size=(32, 32), crop=None, orientation=None) -> np.ndarray:
        path = tmp_path / "image"
        path.write_bytes(contents)
        return _graph(size, crop)(tf.constant(str(path)), orientation).numpy()

    return run


def _difference(one, other) -> float:
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def test_lossless_is_exact(decoded, encode, picture):
    pixels = decoded(encode(picture(), "PNG"))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, picture())


def test_jpeg_is_as_pillow_decodes_it(decoded, encode, picture):
    assert _difference(decoded(encode(picture())), picture()) < 1.5  # of 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_becomes_three_equal_channels(decoded, encode, picture, kind):
    grey = Image.fromarray(picture()).convert("L")
    pixels = decoded(encode(grey, kind))
    assert (pixels == pixels[..., :1]).all()
    assert _difference(pixels[..., 0], grey) < 1.5


def test_cmyk_becomes_rgb(decoded, encode, picture):
    cmyk = Image.fromarray(picture()).convert("CMYK")
    assert _difference(decoded(encode(cmyk)), cmyk.convert("RGB")) < 2.5


def test_sixteen_bits_become_eight(decoded, encode):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = decoded(encode(Image.fromarray(deep), "PNG"), (256, 256))
    np.testing.assert_array_equal(pixels[..., 0], deep >> 8)


def test_alpha_is_dropped_and_palettes_are_looked_up(decoded, encode, picture):
    image = Image.fromarray(picture())
    clear = image.copy()
    clear.putalpha(0)
    np.testing.assert_array_equal(decoded(encode(clear, "PNG")), picture())
    palette = image.convert("P")
    np.testing.assert_array_equal(decoded(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_of_an_animation_the_first_frame(decoded, encode, kind):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    pixels = decoded(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert pixels.shape == (32, 32, 3)
    assert (pixels == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("height", [24, 48])
def test_turned_upright_as_pillow_does(decoded, encode, picture, orientation, height):
    exif = Image.Exif()
    exif[0x0112] = orientation
    contents = encode(picture(3, height, 32), exif=exif)
    stored = Image.fromarray(picture(3, height, 32))
    stored.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(stored)
    pixels = decoded(contents, upright.size[::-1], orientation=tf.constant(orientation, tf.uint8))
    assert _difference(pixels, upright) < 1.5


@pytest.mark.parametrize("side", [32, 48, 64, 100, 128, 256, 300, 1000])
def test_reduced_scale_is_close_to_an_area_average(decoded, encode, picture, side):
    """Whatever the scale that the JPEG is decoded at, the result is that of averaging all of its pixels."""
    large = Image.fromarray(picture(1, side, side))
    small = large.resize((32, 32), Image.Resampling.BOX)
    assert _difference(decoded(encode(large)), small) < 2.5


def test_reduced_scale_does_not_alias(decoded, encode):
    """Stripes finer than the result's pixels average out; sampled without averaging they would stay black and white."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    for kind in ("JPEG", "PNG"):
        assert decoded(encode(stripes, kind)).astype(float).std() < 12, kind


def test_a_jpeg_is_decoded_at_the_smallest_scale_that_holds_the_size(decoded, encode, monkeypatch):
    sizes = []
    original = tf.image.resize

    def spy(images, size, **options):
        tf.py_function(lambda shape: sizes.append(tuple(shape.numpy()[:2])), [tf.shape(images)], [])
        return original(images, size, **options)

    monkeypatch.setattr(tf.image, "resize", spy)
    _graph.cache_clear()
    for height, width in ((63, 300), (64, 300), (127, 128), (816, 816), (255, 256), (256, 256), (1000, 257)):
        decoded(encode(np.zeros((height, width, 3), np.uint8)))
    _graph.cache_clear()
    assert sizes == [(63, 300), (32, 150), (64, 64), (102, 102), (64, 64), (32, 32), (125, 33)]


@pytest.mark.parametrize(("height", "width"), [(64, 128), (128, 64), (512, 1024)])
@pytest.mark.parametrize("crop", [1.0, 0.5])
def test_crop_takes_the_central_square(decoded, encode, height, width, crop):
    pixels = np.zeros((height, width, 3), np.uint8)
    side = int(min(height, width) * crop)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = 200
    assert decoded(encode(pixels), crop=crop).min() > 190
    if crop < 1:
        assert decoded(encode(pixels), crop=crop + 0.2).min() < 100


def test_sizes_need_not_be_square(decoded, encode, picture):
    assert decoded(encode(picture(0, 40, 80)), (20, 50)).shape == (20, 50, 3)


@pytest.mark.parametrize("contents", [b"", b"no image", b"\xff\xd8\xff\xe0 broken"])
def test_what_does_not_decode_is_an_error(decoded, contents):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decoded(contents)


def test_resize_of_a_batch_is_that_of_each_image(picture):
    batch = np.stack([picture(seed, 40, 30) for seed in range(3)])
    for size in ((16, 16), (40, 30), (50, 60), (7, 5)):
        together = resize(tf.constant(batch), size).numpy()
        assert together.dtype == np.uint8
        np.testing.assert_array_equal(together, [resize(tf.constant(image), size).numpy() for image in batch])
    np.testing.assert_array_equal(resize(tf.constant(batch), (40, 30)), batch)
