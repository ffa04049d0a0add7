"""Damaged images and fold files, and what must be true of all that is made of them.

Each function runs one boundary `count` times, from a seeded generator, and counts what came out. A crash, a hang, or
something read that is not in the file fails an assertion. Tests run a few hundred; `benchmarks/fuzz.py` runs more.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from satm_tf.data import ImageData, adience
from satm_tf.data.decoding import decode
from satm_tf.data.image_headers import UnreadableImageError, read_header
from satm_tf.serving.decoding import decode as decode_served
from tests.data.conftest import HEADER, numbered
from tests.fuzzing import Outcomes

SIZE = (16, 16)
LIMIT = 2.0
"""Seconds that one input may take."""

NOT_DECODED = (tf.errors.InvalidArgumentError, UnicodeDecodeError)  # TensorFlow's message may quote the file's bytes

_decode = tf.function(lambda path: decode(path, SIZE), input_signature=[tf.TensorSpec([], tf.string)])
_serve = tf.function(lambda contents: decode_served(contents, SIZE), input_signature=[tf.TensorSpec([], tf.string)])


def mutate(rng: np.random.Generator, contents: bytes, others: list[bytes]) -> bytes:
    """One to four random changes: bits, bytes, what is cut, repeated, moved, or comes from another file."""
    for _ in range(rng.integers(1, 5)):
        start, end = np.sort(rng.integers(0, len(contents) + 1, 2))
        at, kind = int(rng.integers(len(contents) + 1)), rng.integers(9)
        part = contents[start:end]
        if kind == 0 and at < len(contents):
            contents = contents[:at] + bytes([contents[at] ^ 1 << rng.integers(8)]) + contents[at + 1 :]
        elif kind == 1:
            contents = contents[:at] + rng.bytes(rng.integers(1, 9)) + contents[at + 4 :]
        elif kind == 2:
            contents = contents[:at]
        elif kind == 3:
            contents = contents[:start] + contents[end:]
        elif kind == 4:
            contents = contents[:at] + part[:4096] * int(rng.integers(1, 200)) + contents[at:]
        elif kind == 5:
            contents = contents[:at] + bytes([rng.choice([0, 255])]) * int(rng.integers(1, 9)) + contents[at + 8 :]
        elif kind == 6:
            contents = contents[:at] + others[rng.integers(len(others))][at:]
        elif kind == 7:  # a size, a length or a count at one of its bounds
            contents = (
                contents[:at] + [b"\xff\xff", b"\0\0", b"\0\1", b"\x7f\xff"][rng.integers(4)] + contents[at + 2 :]
            )
        else:
            contents = contents[:at] + b"\xff" + bytes([rng.integers(0xC0, 0xFF)]) + contents[at + 2 :]
    return contents


def _images(rng: np.random.Generator) -> list[bytes]:
    pictures = [Image.fromarray(rng.integers(0, 256, (side, side + 8, 3), np.uint8)) for side in (16, 40)]
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"exif": exif}), ("PNG", {}), ("GIF", {})]
    kinds += [("GIF", {"save_all": True, "append_images": pictures[:1] * 3})]
    found = []
    for picture in pictures:
        for kind, options in kinds:
            buffer = io.BytesIO()
            picture.save(buffer, kind, **options)
            found.append(buffer.getvalue())
    return found


def fuzz_images(seed: int, count: int, folder: Path) -> Outcomes:
    """Damaged JPEGs, PNGs and GIFs, through the header's reader and both decoders."""
    rng, outcomes, path = np.random.default_rng(seed), Outcomes(), folder / "image"
    originals = _images(rng)
    for contents in originals[:2]:
        path.write_bytes(contents)
        _decode(str(path)), _serve(contents)  # traced before anything is timed
    for _ in range(count):
        contents = mutate(rng, originals[rng.integers(len(originals))], originals)
        path.write_bytes(contents)
        with outcomes.timed(LIMIT, contents):
            accepted = True
            try:
                header = read_header(path)
            except UnreadableImageError:
                accepted = False
            try:
                pixels = _serve(contents)
                served = "served"
                assert pixels.shape == (*SIZE, 3)
            except NOT_DECODED:
                served = "not served"
            read = "refused"
            if accepted:
                try:
                    assert _decode(str(path)).shape == (*SIZE, 3)
                    read = "read"
                except NOT_DECODED:
                    read = "does not decode"
        outcomes[f"{read}, {served}"] += 1
        if read == "read" and not contents.startswith(b"GIF"):  # a frame of a GIF may be larger than its screen
            shape = tf.io.decode_image(contents, channels=3, expand_animations=False).shape
            assert shape[:2] == (header.height, header.width), contents
    return outcomes


def write_people(root: Path) -> None:
    """Five folds of four owners with two images each, two of them of one photograph."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    ages = [f"({first}, {last})" for first, last in adience.AGE_GROUPS] + ["35", "None"]
    number = 0
    for fold in range(5):
        lines = [HEADER.rstrip("\n")]
        for owner in range(4):
            (root / "aligned" / f"{fold}{owner}@N").mkdir(parents=True)
            for face in range(2):
                number += 1
                name = f"{fold}{owner}@N/landmark_aligned_face.{number}.{owner}.jpg"
                (root / "aligned" / name).write_bytes(numbered(buffer.getvalue(), number))
                age = ages[number % len(ages)]
                lines.append(f"{fold}{owner}@N\t{owner}.jpg\t{number}\t{age}\t{'mf'[face]}" + "\t0" * 7)
        (root / f"fold_{fold}_data.txt").write_text("\n".join(lines) + "\n")


def fuzz_fold_files(seed: int, count: int, root: Path) -> Outcomes:
    """One damaged fold file of five at a time, through Adience's loader.

    What is loaded is compared with the lines of the file, split at their tabs: nothing may have moved to another label.
    """
    rng, outcomes = np.random.default_rng(seed), Outcomes()
    write_people(root)
    paths = [root / f"fold_{fold}_data.txt" for fold in range(5)]
    originals = [path.read_bytes() for path in paths]
    encodings = ("utf-16", "utf-16-le", "utf-8-sig", "utf-32")
    for _ in range(count):
        fold = int(rng.integers(5))
        contents = mutate_text(rng, originals[fold], originals)
        if rng.random() < 0.1:
            contents = contents.decode("latin-1").encode(encodings[rng.integers(len(encodings))])
        paths[fold].write_bytes(contents)
        data, message = None, ""
        with outcomes.timed(LIMIT, contents):
            try:
                data = adience.load(root)
            except ValueError as error:
                message = str(error)
        if data is None:
            named = "the file is named" if str(paths[fold]) in message else message.split(".")[0]
            outcomes[f"refused, {named}" if "Received: " in message else f"a message without what came: {message}"] += 1
        else:
            _check_labels(data, root, [path.read_bytes().decode("utf-8-sig") for path in paths])
            outcomes["read as before" if contents == originals[fold] else "read as it is now"] += 1
        paths[fold].write_bytes(originals[fold])
    return outcomes


def mutate_text(rng: np.random.Generator, contents: bytes, others: list[bytes]) -> bytes:
    """Changes as `mutate` makes them, or of whole lines and fields."""
    if rng.random() < 0.4:
        return mutate(rng, contents, others)
    lines = [line.split(b"\t") for line in contents.split(b"\n")]
    for _ in range(rng.integers(1, 4)):
        line, kind = lines[rng.integers(len(lines))], rng.integers(5)
        at = int(rng.integers(len(line)))
        if kind == 0:
            del line[at]
            line.extend([b""] * (not line))
        elif kind == 1:
            line.insert(at, [b"", b"x", b"\r", b"\0", "é".encode(), b"\xe9"][rng.integers(6)])
        elif kind == 2:
            line[at] = line[int(rng.integers(len(line)))]
        elif kind == 3:
            lines.insert(int(rng.integers(len(lines))), list(line))
        else:
            line[at] = lines[rng.integers(len(lines))][-1]
    return [b"\n", b"\r\n"][rng.integers(2)].join(b"\t".join(line) for line in lines)


def _check_labels(data: ImageData, root: Path, tables: list[str]) -> None:
    written: dict[str, set[str]] = {}
    rows = 0
    for table in tables:
        header, *lines = [line.split("\t") for line in table.replace("\r\n", "\n").split("\n") if line]
        places = [header.index(name) for name in ("user_id", "face_id", "original_image", "age")]
        rows += len(lines)
        for line in lines:
            owner, face, image, age = (line[place] for place in places)
            path = (root / "aligned" / owner / f"landmark_aligned_face.{face}.{image}").resolve()
            written.setdefault(str(path), set()).add(age.strip())
    assert data.account.rows == rows
    assert sum(map(len, (data.train, data.validation, data.test))) == data.account.used
    for split in (data.train, data.validation, data.test):
        for path, label in zip(split.paths, split.labels, strict=True):
            assert label in {_group(age) for age in written[path]}, (path, label, written[path])


def _group(age: str) -> int | None:
    """What the documentation says of a label, worked out once more."""
    numbers = [int(number) for number in age.strip("()").split(", ") if number.isdecimal()]
    if len(numbers) == 1:
        first = last = numbers[0]
    elif age in ("(38, 42)", "(38, 48)", "(27, 32)", "(25, 23)", "(8, 23)"):
        first = last = {38: 40, 27: 30, 25: 30, 8: 10}[numbers[0]]
    else:
        first, last = numbers if tuple(numbers) in adience.AGE_GROUPS else (0, 100)
    if (first, last) in adience.AGE_GROUPS:
        return adience.AGE_GROUPS.index((first, last))
    if first != last or last > 100:
        return None
    away = [max(youngest - first, first - oldest) for youngest, oldest in adience.AGE_GROUPS]
    return away.index(min(away))
