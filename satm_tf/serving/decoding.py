"""From the bytes of image files to a batch of pixels, inside the served graph."""

from __future__ import annotations

import tensorflow as tf

from satm_tf.data import decoding
from satm_tf.data.image_headers import MAX_PIXELS, MAX_SCANNED, MAX_SEGMENTS

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN = b"\xff\xda"


def decode_batch(contents: tf.Tensor, size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes each of several files separately, so that one that cannot be decoded does not affect the others.

    Args:
        contents: The bytes of the files, str `[batch]`; the batch may be empty.
        size: Height and width of the result.

    Returns:
        The pixels, uint8 `[batch, *size, 3]`, and whether each file decoded, bool `[batch]`. The pixels of a file that
        did not decode are zeros.

    Example:
        >>> pixels, decoded = decode_batch(tf.constant([jpeg, b"not an image"]), (48, 48))
        >>> decoded.numpy()
        array([ True, False])
    """
    count = tf.size(contents, tf.int64)
    files = tf.data.Dataset.from_tensor_slices((tf.range(count), contents))
    decoded = files.map(
        lambda place, file: (place, decode(file, size)), num_parallel_calls=tf.data.AUTOTUNE
    ).ignore_errors()
    # One more element than there are files, so that a batch is never empty, even if no file decodes.
    last = tf.data.Dataset.from_tensors((count, tf.zeros([*size, 3], tf.uint8)))
    places, pixels = decoded.concatenate(last).batch(count + 1).get_single_element()
    shape = tf.stack([count + 1, *size, 3])
    found = tf.scatter_nd(places[:, None], tf.ones_like(places, tf.int32), [count + 1])
    return tf.ensure_shape(tf.scatter_nd(places[:, None], pixels, shape)[:-1], [None, *size, 3]), found[:-1] > 0


def decode(contents: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Decodes a JPEG or PNG as `satm_tf.data` does for training: upright, RGB, 8 bits, resized, first frame.

    GIF and BMP, which TensorFlow would decode too, are refused: the header of an animation does not say
    how large it unpacks, and bitmaps are not worth the risk. The bytes are a str scalar, the result is uint8
    `[*size, 3]`.

    Raises:
        tf.errors.InvalidArgumentError: when executed, if it is not a JPEG or PNG, does not decode, or exceeds a limit
            of `image_headers`: `MAX_PIXELS`, or for a JPEG `MAX_SCANNED` or `MAX_SEGMENTS`. Limits are checked before
            anything is decoded. Scans are counted by their marker anywhere in the file: a thumbnail in the metadata
            counts too.
    """
    jpeg, png = (tf.equal(tf.strings.substr(contents, 0, len(magic)), magic) for magic in (_JPEG, _PNG))
    with tf.control_dependencies([tf.debugging.Assert(jpeg | png, ["Neither a JPEG nor a PNG."])]):
        shape = tf.cond(
            jpeg,
            lambda: tf.cast(tf.io.extract_jpeg_shape(contents)[:2], tf.int64),
            lambda: _numbers(contents, 16, 2, tf.int32),
        )
    pixels = tf.reduce_prod(shape)
    fits = tf.reduce_all(shape > 0) & (pixels <= MAX_PIXELS)
    scans = tf.cond(
        jpeg,
        lambda: tf.size(tf.strings.split(contents, _START_OF_SCAN), tf.int64) - 1,
        lambda: tf.constant(1, tf.int64),
    )
    with tf.control_dependencies(
        [
            tf.debugging.Assert(fits, ["Too many pixels. Received:", shape]),
            tf.debugging.Assert(scans <= MAX_SCANNED // tf.maximum(pixels, 1), ["Too many scans. Received:", scans]),
        ]
    ):
        image = tf.cond(
            jpeg,
            lambda: decoding.turn_upright(decoding.decode_jpeg(contents, max(size)), jpeg_orientation(contents)),
            lambda: tf.io.decode_png(contents, channels=3),
        )
    return tf.ensure_shape(decoding.resize(image, size), [*size, 3])


def jpeg_orientation(contents: tf.Tensor) -> tf.Tensor:
    """Reads a JPEG's EXIF orientation with string ops, because TensorFlow has no op for it.

    It is an int64 scalar, 1 (upright) to 8; 1 if there is none or its block is broken.

    Raises:
        tf.errors.InvalidArgumentError: when executed, if more than `image_headers.MAX_SEGMENTS` precede the pixels.

    Source:
        ITU-T T.81 (JPEG) annex B; CIPA DC-008 (EXIF) 4.6; the same walk as `image_headers.read_header`.
    """
    length = tf.strings.length(contents)

    def segment(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        marker, size = tf.unstack(_numbers(contents, position, 2, tf.uint16))
        return marker, tf.cast(size, tf.int32)

    def inside(position: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
        return position + 4 <= length

    def step(position: tf.Tensor, orientation: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        marker, size = segment(position)
        code = marker & 0xFF
        bare = (code == 0x01) | ((code >= 0xD0) & (code <= 0xD7))
        # Start of a frame (except C4, C8 and CC, which are tables) or of a scan: pixels follow.
        over = ((code >= 0xC0) & (code <= 0xCF) & ~((code == 0xC4) | (code == 0xC8) | (code == 0xCC))) | (code == 0xDA)
        over |= (marker < 0xFF00) | (~bare & (size < 2) & (code != 0xFF))
        found = tf.cond(
            code == 0xE1,
            lambda: _exif_orientation(tf.strings.substr(contents, position + 4, tf.maximum(size - 2, 0))),
            lambda: tf.constant(0, tf.int64),
        )
        # A marker may be preceded by any number of fill bytes, FF.
        ahead = tf.where(code == 0xFF, 1, tf.where(bare, 2, 2 + size))
        return tf.where(over, length, position + ahead), tf.where(found > 0, found, orientation)

    position, orientation = tf.while_loop(
        inside,
        step,
        [tf.constant(2), tf.constant(1, tf.int64)],
        parallel_iterations=1,
        maximum_iterations=MAX_SEGMENTS,
    )
    few = tf.debugging.Assert(~inside(position, orientation), ["Too many segments before the pixels."])
    with tf.control_dependencies([few]):
        return tf.identity(orientation)


def _exif_orientation(block: tf.Tensor) -> tf.Tensor:
    """The orientation in an EXIF block, int64 scalar; 0 if it has none."""
    head, tiff = tf.strings.substr(block, 0, 8), tf.strings.substr(block, tf.minimum(6, tf.strings.length(block)), -1)
    return tf.case(
        [
            (tf.equal(head, b"Exif\0\0" + order), lambda little=order == b"II": _tiff_orientation(tiff, little))
            for order in (b"II", b"MM")
        ],
        default=lambda: tf.constant(0, tf.int64),
    )


def _tiff_orientation(tiff: tf.Tensor, little: bool) -> tf.Tensor:
    room = tf.cast(tf.strings.length(tiff), tf.int64)

    def at(position: tf.Tensor, kind: tf.DType) -> tf.Tensor:
        fits = (position >= 0) & (position + kind.size <= room)
        return tf.cond(
            fits,
            lambda: _numbers(tiff, tf.cast(position, tf.int32), 1, kind, little)[0],
            lambda: tf.constant(0, tf.int64),
        )

    directory = at(tf.constant(4, tf.int64), tf.int32)
    count = tf.minimum(at(directory, tf.uint16), (room - directory - 2) // 12)
    # Each entry is tag, type, count and value: 2, 2, 4 and 4 bytes; the orientation is a 16-bit value.
    entries = tf.strings.substr(
        tiff, tf.cast(tf.clip_by_value(directory + 2, 0, room), tf.int32), tf.cast(tf.maximum(12 * count, 0), tf.int32)
    )
    words = tf.reshape(tf.cast(tf.io.decode_raw(entries, tf.uint16, little_endian=little), tf.int64), [-1, 6])
    values = tf.boolean_mask(words[:, 4], words[:, 0] == 0x0112)
    value = tf.concat([values, [0]], 0)[0]
    return tf.where((value >= 1) & (value <= 8), value, 0)


def _numbers(
    contents: tf.Tensor, position: tf.Tensor | int, count: int, kind: tf.DType, little: bool = False
) -> tf.Tensor:
    """`count` integers of some type from a position in a string, int64 `[count]`."""
    raw = tf.strings.substr(contents, position, count * kind.size)
    return tf.ensure_shape(tf.cast(tf.io.decode_raw(raw, kind, little_endian=little), tf.int64), [count])
