import contextlib
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from satm_tf.data.image_headers import MAX_PIXELS, MAX_SCANNED, UnreadableImageError, read_header


@pytest.fixture
def header(tmp_path):
    def read(contents: bytes):
        path = tmp_path / "image"
        path.write_bytes(contents)
        return read_header(path)

    return read


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_size(header, encode, picture, kind):
    read = header(encode(picture(0, 20, 30), kind))
    assert (read.height, read.width, read.orientation, read.whole, read.pixels) == (20, 30, 1, True, 600)


def test_progressive_jpeg_and_a_long_profile_before_the_size(header, encode, picture):
    read = header(encode(picture(0, 200, 300), progressive=True, icc_profile=bytes(100_000)))
    assert (read.height, read.width, read.whole) == (200, 300, True)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation(header, encode, picture, orientation, order):
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "a maker, before the orientation"
    exif[0x0112] = orientation
    assert header(encode(picture(), exif=exif)).orientation == orientation


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0",
    ],
)
def test_broken_exif_is_no_reason_to_refuse(header, encode, picture, exif):
    assert header(encode(picture(), exif=exif)).orientation == 1


def test_every_prefix_is_refused_or_not_whole(header, encode, picture):
    for kind in ("JPEG", "PNG", "GIF"):
        contents = encode(picture(), kind)
        for length in range(0, len(contents), max(1, len(contents) // 200)):
            with contextlib.suppress(UnreadableImageError):
                assert not header(contents[:length]).whole, (kind, length)


def test_what_a_camera_appends_is_not_damage_but_worth_a_look(header, encode, picture):
    assert not header(encode(picture()) + bytes(10)).whole


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "empty file"),
        (b"#!/bin/sh", "not a JPEG, PNG or GIF"),
        (b"RIFF\0\0\0\0WEBP", "not a JPEG, PNG or GIF"),
        (b"\xff\xd8\xff", "truncated header"),
        (b"\xff\xd8\xff\xe0\0\0", "truncated header"),
        (b"\xff\xd8\xff\xe1\0\1", "truncated header"),
        (b"\x89PNG\r\n\x1a\n", "truncated header"),
        (b"GIF89a", "truncated header"),
    ],
)
def test_refuses(header, contents, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        header(contents)


def test_a_flipped_bit_in_a_png_is_damage(header, encode, picture):
    contents = bytearray(encode(picture(), "PNG"))
    contents[len(contents) // 2] ^= 1
    with pytest.raises(UnreadableImageError, match="damaged"):
        header(bytes(contents))


def _png_of(height: int, width: int) -> bytes:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


_SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"


def _jpeg_of(height: int, width: int) -> bytes:
    return b"\xff\xd8\xff\xc0\x00\x0b\x08" + struct.pack(">HH", height, width) + b"\x01\x01\x11\0" + _SCAN + b"\xff\xd9"


@pytest.mark.parametrize("make", [_png_of, _jpeg_of])
def test_bombs_are_refused_at_the_bound_and_unopened(header, make):
    side = int(MAX_PIXELS**0.5)
    assert header(make(side, side)).pixels == MAX_PIXELS
    started = time.perf_counter()
    with pytest.raises(UnreadableImageError, match="65000 x 65000 pixels"):
        header(make(65000, 65000))
    assert time.perf_counter() - started < 1  # decoding 4 billion pixels would take a minute, and 12 GB
    with pytest.raises(UnreadableImageError, match="0 x 5 pixels"):
        header(make(5, 0))


def test_a_gif_is_bounded_by_all_its_frames(header, encode):
    frames = [Image.fromarray(np.full((1000, 1000), level, np.uint8)) for level in range(80)]
    contents = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], optimize=False)
    assert len(contents) < 1_000_000
    with pytest.raises(UnreadableImageError, match="1000 x 1000 pixels; must be"):
        header(contents)


def _with_scans(contents: bytes, more: int) -> bytes:
    """A progressive JPEG whose last scan is repeated; libjpeg decodes each over the whole image, with a warning."""
    head, last = contents[:-2].rsplit(b"\xff\xda", 1)
    return head + (b"\xff\xda" + last) * (more + 1) + b"\xff\xd9"


def test_scans_are_bounded_by_the_pixels_they_pass_over(header, encode):
    contents = encode(Image.new("L", (1000, 1000), 128), progressive=True)
    scans, most = contents.count(b"\xff\xda"), MAX_SCANNED // 1_000_000
    assert header(_with_scans(contents, most - scans)).whole
    many = _with_scans(contents, most - scans + 1)
    assert len(many) < 20_000
    with pytest.raises(UnreadableImageError, match=f"{most + 1} scans of 1000 x 1000 pixels; must be at most"):
        header(many)
    small = encode(Image.new("L", (100, 100), 128), progressive=True)
    assert header(_with_scans(small, 2000)).pixels == 10_000


def test_a_thumbnail_is_no_scan_of_a_sequential_jpeg(header):
    """Its first scan has all components, so that the decoder takes no other."""
    contents = _jpeg_of(8000, 8000)
    assert header(contents[:-2] + b"\xff\xda" * 100 + b"\xff\xd9").pixels == 64_000_000
    apart = contents.replace(b"\x01\x01\x11\0", b"\x02\x01\x11\0", 1)  # a frame of two components
    with pytest.raises(UnreadableImageError, match="101 scans"):
        header(apart[:-2] + b"\xff\xda" * 100 + b"\xff\xd9")


@pytest.mark.parametrize("segment", [b"\xff\xfe\0\2", b"\xff"])
def test_segments_before_the_pixels_are_bounded(header, encode, picture, segment):
    contents = encode(picture())
    assert header(contents[:2] + segment * 900 + contents[2:]).whole
    with pytest.raises(UnreadableImageError, match="more than 1,000 segments"):
        header(contents[:2] + segment * 1000 + contents[2:])
