import struct
import time

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from satm_tf.data import image_headers
from satm_tf.data.decoding import decode as decode_for_training
from satm_tf.serving.decoding import decode, decode_batch, jpeg_orientation

SIZE = (16, 16)

_decode = tf.function(lambda contents: decode(contents, SIZE), input_signature=[tf.TensorSpec([], tf.string)])
_batch = tf.function(lambda contents: decode_batch(contents, SIZE), input_signature=[tf.TensorSpec([None], tf.string)])
_orientation = tf.function(jpeg_orientation, input_signature=[tf.TensorSpec([], tf.string)])


def noise(height=16, width=16, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height, width):
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1).astype(np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(16, 16), (7, 9), (30, 23), (200, 150)])
def test_pixels_are_those_of_training(encode, tmp_path, kind, size):
    """To the last level: at its own size, enlarged, shrunk a little and shrunk a lot."""
    contents = encode(smooth(*size), kind)
    (tmp_path / "image").write_bytes(contents)
    expected = decode_for_training(tf.constant(str(tmp_path / "image")), SIZE)
    np.testing.assert_array_equal(_decode(contents), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_upright_as_for_training(encode, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a maker", orientation
    contents = encode(smooth(24, 40), "JPEG", exif=exif)
    (tmp_path / "image").write_bytes(contents)
    found = image_headers.read_header(tmp_path / "image").orientation
    assert found == orientation
    expected = decode_for_training(tf.constant(str(tmp_path / "image")), SIZE, orientation=tf.constant(found))
    np.testing.assert_array_equal(_decode(contents), expected)


def exif_block(order="II", entries=((0x0112, 3, 1, 6),), directory=8, count=None):
    mark = "<" if order == "II" else ">"
    body = b"".join(struct.pack(f"{mark}HHIH2x", *entry) for entry in entries)
    head = struct.pack(f"{mark}2sHI", order.encode(), 42, directory)
    return b"Exif\0\0" + head + struct.pack(f"{mark}H", len(entries) if count is None else count) + body


def with_segments(jpeg, *segments):
    """The JPEG with application segments, each a pair of marker and content, right after its first marker."""
    inserted = b"".join(bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return jpeg[:2] + inserted + jpeg[2:]


@pytest.mark.parametrize(
    "segments",
    [
        [],
        [(0xE1, exif_block())],
        [(0xE1, exif_block("MM"))],
        [(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"), (0xE1, exif_block())],
        [(0xE1, exif_block()), (0xE1, exif_block("MM", ((0x0112, 3, 1, 3),)))],
        [(0xE1, exif_block()), (0xE1, exif_block(entries=((0x0112, 3, 1, 9),)))],
        [(0xE1, exif_block(entries=((0x0100, 3, 1, 8), (0x0112, 3, 1, 5), (0x0112, 3, 1, 2))))],
        [(0xE1, exif_block(entries=()))],
        [(0xE1, exif_block(count=60000))],
        [(0xE1, exif_block(directory=2**31 - 1))],
        [(0xE1, exif_block(directory=0))],
        [(0xE1, exif_block()[:9])],
        [(0xE1, b"")],
        [(0xE1, b"Exif")],
        [(0xE2, exif_block())],
    ],
    ids=str,
)
def test_orientation_is_what_the_training_reader_finds(encode, tmp_path, segments):
    contents = with_segments(encode(noise(), "JPEG"), *segments)
    (tmp_path / "image").write_bytes(contents)
    assert int(_orientation(contents)) == image_headers.read_header(tmp_path / "image").orientation


def test_fill_bytes_before_a_marker_are_passed_over(encode, tmp_path):
    contents = encode(noise(), "JPEG")
    filled = contents[:2] + b"\xff\xff" + with_segments(contents, (0xE1, exif_block()))[2:]
    (tmp_path / "image").write_bytes(filled)
    assert int(_orientation(filled)) == image_headers.read_header(tmp_path / "image").orientation == 6


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_no_bytes_upset_the_orientation(junk, in_exif):
    contents = b"\xff\xd8" + junk
    if in_exif:
        block = b"Exif\0\0II*\0" + junk
        contents = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    assert 1 <= int(_orientation(contents)) <= 8


def test_a_batch_of_good_bad_and_odd_files(encode):
    picture = noise()
    grey, deep = Image.fromarray(picture).convert("L"), np.arange(256, dtype=np.uint16).reshape(16, 16) << 8
    cmyk = Image.fromarray(np.repeat(np.repeat(noise(2, 2), 8, 0), 8, 1)).convert("CMYK")
    jpeg, png = encode(noise(64, 64), "JPEG"), encode(noise(64, 64))
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "lime")]
    files = {
        "png": (encode(picture), True),
        "empty": (b"", False),
        "truncated jpeg": (jpeg[: len(jpeg) // 2], False),
        "truncated png": (png[: len(png) // 2], False),
        "text": (b"this is no image", False),
        "magic only": (b"\xff\xd8\xff", False),
        "grey": (encode(grey), True),
        "grey jpeg": (encode(grey, "JPEG"), True),
        "cmyk": (encode(cmyk, "JPEG"), True),
        "16 bits": (encode(Image.fromarray(deep)), True),
        "alpha": (encode(Image.fromarray(picture).convert("RGBA")), True),
        "palette": (encode(Image.fromarray(picture).convert("P")), True),
        "animated png": (encode(frames[0], save_all=True, append_images=frames[1:]), True),
        "animated gif": (encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), False),
        "bmp": (encode(picture, "BMP"), False),
    }
    pixels, decoded = _batch([contents for contents, _ in files.values()])
    assert dict(zip(files, decoded.numpy().tolist(), strict=True)) == {name: good for name, (_, good) in files.items()}
    pixels = dict(zip(files, pixels.numpy(), strict=True))
    np.testing.assert_array_equal(pixels["png"], picture)
    np.testing.assert_array_equal(pixels["alpha"], picture)
    np.testing.assert_array_equal(pixels["grey"], np.repeat(np.asarray(grey)[..., None], 3, -1))
    np.testing.assert_array_equal(pixels["16 bits"][..., 0], deep >> 8)
    assert (pixels["animated png"] == [255, 0, 0]).all()
    # Lossy, and converted from CMYK with another rounding than Pillow's: the tolerance of the training decoder's tests.
    assert np.abs(pixels["cmyk"] - np.asarray(cmyk.convert("RGB"), float)).mean() < 2.5
    assert not any(pixels[name].any() for name, (_, good) in files.items() if not good)


def test_an_empty_batch():
    pixels, decoded = _batch(tf.constant([], tf.string))
    assert (pixels.shape, decoded.shape) == ((0, 16, 16, 3), (0,))


def test_all_bad():
    pixels, decoded = _batch([b"a", b"b"])
    assert not decoded.numpy().any()
    assert not pixels.numpy().any()


def test_more_pixels_than_training_takes_are_refused_unseen(encode):
    """Both files are a few kilobytes; the smaller image decodes to 12 MB, the larger would to 201 MB and one row."""
    huge, large = (encode(Image.new("1", (8192, rows), 1)) for rows in (8193, 512))
    assert image_headers.MAX_PIXELS < 8192 * 8193
    assert len(huge) < 30_000
    pixels, decoded = _batch([huge, large])
    assert decoded.numpy().tolist() == [False, True]
    assert (pixels[1].numpy() == 255).all()


def test_scans_are_bounded_by_the_pixels_they_pass_over(encode):
    """Of 1000 x 1000 pixels: as many scans as training takes, one more, and a small image with thousands."""
    scans = image_headers.MAX_SCANNED // 1_000_000

    def repeated(side, count):
        head, last = encode(Image.new("L", (side, side), 128), "JPEG", progressive=True)[:-2].rsplit(b"\xff\xda", 1)
        return head + (b"\xff\xda" + last) * (count - head.count(b"\xff\xda")) + b"\xff\xd9"

    started = time.process_time()
    pixels, decoded = _batch(
        [repeated(1000, scans), repeated(1000, scans + 1), repeated(8, 3000), repeated(4000, 2000)]
    )
    assert decoded.numpy().tolist() == [True, False, True, False]
    assert (pixels[0].numpy() == 128).all()
    assert time.process_time() - started < 10  # 0.6 s; decoding the last would take half a minute


@pytest.mark.parametrize("segment", [b"\xff\xfe\0\2", b"\xff"])
def test_segments_before_the_pixels_are_bounded(encode, segment):
    jpeg = encode(noise(), "JPEG")
    _, decoded = _batch([jpeg[:2] + segment * count + jpeg[2:] for count in (900, 1000, 100_000)])
    assert decoded.numpy().tolist() == [True, False, False]
