"""Changed answers of a server, in JSON and below, and what must be true of all that a client makes of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import tracemalloc
from pathlib import Path

import numpy as np

from satm_tf.serving import ServingError
from satm_tf.serving.answers import check, from_json, from_lists
from satm_tf.serving.transports import RestTransport
from tests.fuzzing import Outcomes
from tests.serving.raw_server import RawServer, Script

GOOD = {
    "probabilities": [[0.25, 0.75], [0.0, 0.0], [1.0, 0.0]],
    "class_id": [1, -1, 0],
    "label": ["b", "", "a"],
    "valid": [True, False, True],
}
LIMIT = 2.0
"""Seconds that one answer may take."""

_PUT_IN = ("9" * 5000, "[" * 950 + "]" * 950, r"\ud800")
_TIMEOUT, _SLACK, _MEMORY = 0.25, 1.75, 64 * 2**20
_STATUS = (
    *("HTTP/1.1 200 OK", "HTTP/1.0 200 OK", "HTTP/1.1 200", "HTTP/1.1 204 None", "HTTP/1.1 103 Hint", "HTTP/1.1 OK"),
    *("HTTP/2 200", "HTTP/9.9 200 OK", "HTTP/1.1 -200 OK", "HTTP/1.1 2_00 OK", "HTTP/1.1 20000 OK", "HTTP/", "", "\0"),
    *("200 OK", "ICY 200 OK", "{}", "HTTP/1.1 304 Same", "HTTP/1.1 307 Go", "HTTP/1.1 429 Slow", "HTTP/1.1 503 Busy"),
    "HTTP/1.1 500 \x1b[2J",
)
_HEADERS = (
    *("X: " + "a" * 2**17, "X" * 70_000, "\r\n".join(f"X-{index}: a" for index in range(200)), ": a", "no colon"),
    *("Retry-After: 3600", "Retry-After: -1", "Retry-After: " + "9" * 500, "Location: http://127.0.0.1:1/", "\0: \0"),
    *("Content-Encoding: gzip", "Content-Encoding: identity", "Transfer-Encoding: gzip", "Transfer-Encoding: chunked"),
    *("Content-Length: -1", "Content-Length: 1e9", "Content-Length: 99999999999999999999", "Content-Length: 0"),
    *("Content-Length: " + "9" * 5000, "Content-Length: 3", "Connection: keep-alive", "Connection: close", " folded"),
    *("Upgrade: h2c", "é: é"),
)
_CHUNK_SIZES = ("-1", "-5", "0x5", "", "z", "f" * 20, "1" * 70_000, "0", "5;x=y", " 5", "1_0")


def fuzz_answers(seed: int, count: int, folder: Path | None = None) -> Outcomes:
    """Reads `count` answers with some characters changed, dropped or put in; each is refused, or means what it says."""
    draw, outcomes = random.Random(seed), Outcomes()
    text = json.dumps({"outputs": GOOD})
    for _ in range(count):
        characters = list(text)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(characters))
            put_in = draw.choice(["", '"', "[", "]", "{", ",", "9", "-", "null", "é", "[" * 5000, "1e999", *_PUT_IN])
            characters[place : place + draw.randrange(3)] = put_in
        changed = "".join(characters)
        answer = None
        with outcomes.timed(LIMIT, changed), contextlib.suppress(ServingError):
            answer = check("serving_default", from_lists(from_json(changed.encode()).get("outputs")), 3)
        if answer is None:
            outcomes["refused"] += 1
        else:
            # What is accepted is what an independent reading of the same text finds.
            plain = json.loads(changed)["outputs"]
            assert {name: value.tolist() for name, value in answer.items()} == {name: plain[name] for name in answer}
            assert {len(value) for value in answer.values()} == {3}
            outcomes["as it says"] += 1
    return outcomes


def fuzz_http(seed: int, count: int, folder: Path | None = None) -> Outcomes:
    """Asks a server that sends a good answer in `count` bad ways.

    Only what stands around the JSON is changed, so that all that is accepted must be what the JSON says.
    """
    draw, outcomes = random.Random(seed), Outcomes()
    inputs = {"images": np.zeros((3, 1, 1, 3), np.float32)}
    with RawServer(Script([])) as server:
        for _ in range(count):
            server.script, what = _bad_http(draw)
            retries = draw.randrange(3)
            ask = RestTransport(server.url, "faces", version=None, timeout=_TIMEOUT, retries=retries)
            answer = None
            tracemalloc.start()
            with outcomes.timed(_TIMEOUT + _SLACK, what, waits=True), contextlib.suppress(ServingError):
                answer = check("serving_default", ask("serving_default", inputs), 3)
            memory = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert memory < _MEMORY, what
            assert answer is None or {name: value.tolist() for name, value in answer.items()} == GOOD, what
            outcomes[f"{what[0]}: {'refused' if answer is None else 'as it says'}"] += 1
    return outcomes


def _bad_http(draw: random.Random) -> tuple[Script, tuple[str, bytes]]:
    """What a server does, and a name for it with the start of what it sends."""
    body = json.dumps({"outputs": GOOD}).encode()
    framing = draw.choice(["length", "chunks", "end"])
    headers = draw.sample(_HEADERS, draw.choice([0, 0, 1, 2]))
    if framing == "length":
        headers.append(f"Content-Length: {len(body) + draw.choice([0, 0, 0, -1, 1, 9, 10**12])}")
    elif framing == "chunks":
        headers.append("Transfer-Encoding: chunked")
        body = _chunks(draw, body)
    draw.shuffle(headers)
    status = draw.choice([_STATUS[0], draw.choice(_STATUS)])
    head = "\r\n".join([status, *headers, "", ""]).encode("latin-1", errors="replace")
    if draw.random() < 0.2:
        at = draw.randrange(len(head))
        head = head[:at] + draw.randbytes(draw.randrange(9)) + head[at + draw.randrange(5) :]
    whole = draw.choice([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n" * draw.randrange(3)]) + head + body
    end = draw.choice(["close", "close", "reset", "hold"])
    kind, at = draw.choice(["whole", "whole", "cut", "dripping", "endless"]), draw.randrange(len(whole))
    pieces = {
        "whole": [whole],
        "cut": [whole[:at]],
        "dripping": [whole[:at], *(bytes([byte]) for byte in whole[at : at + 200])],
        "endless": itertools.chain(
            [whole[:at]], itertools.repeat(draw.choice([whole, body, head, b"1\r\n0\r\n"]) * 50)
        ),
    }[kind]
    # A list, so that each attempt gets the same; what is endless goes on.
    return Script(pieces, 0.02 if kind == "dripping" else 0.0, end), (f"{framing}, {kind}", whole[:2000])


def _chunks(draw: random.Random, body: bytes) -> bytes:
    parts = []
    while body:
        size = draw.choice([1, 7, 50, 1000])
        told = draw.choice(_CHUNK_SIZES) if draw.random() < 0.1 else f"{len(body[:size]):x}"
        parts.append(told.encode() + b"\r\n" + body[:size] + b"\r\n")
        body = body[size:]
    last = draw.choice([b"0\r\n\r\n", b"0\r\n\r\n", b"", b"0\r\n", b"0\r\n" + b"Trailer: a\r\n" * 1000])
    return b"".join(parts) + last
