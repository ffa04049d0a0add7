"""Servers that are slow, endless, or break off."""

import contextlib
import itertools
import socket
import time

import pytest

from satm_tf.serving.post import BrokenAnswerError, TooLargeError, _Bounded, post
from tests.serving.fuzzing import fuzz_http

HEAD = b"HTTP/1.1 200 OK\r\n"


def ask(url, seconds=5.0, limit=10_000):
    return post(url, b"{}", deadline=time.monotonic() + seconds, limit=limit)


@pytest.mark.parametrize("end", [b"Content-Length: 2\r\n\r\n{}", b"Connection: close\r\n\r\n{}",
                                 b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"])  # fmt: skip
def test_an_answer_however_its_end_is_told(raw_server, end):
    answer = ask(raw_server([HEAD + b"X-Name: a\r\n" + end]))
    assert (answer.status, answer.headers["X-Name"], answer.body) == (200, "a", b"{}")


@pytest.mark.parametrize(
    "start", [b"", HEAD, HEAD + b"Content-Length: 900\r\n\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n384\r\n"]
)
def test_a_byte_now_and_then_is_too_late_in_the_end(raw_server, start):
    url = raw_server(itertools.chain([start], itertools.repeat(b"x")), pause=0.05)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        ask(url, seconds=0.4)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (HEAD + b"Content-Length: 999999999999\r\n\r\n", b"x" * 1000),
        (HEAD + b"\r\n", b"x" * 1000),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nxxxxx\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_an_endless_answer_is_too_large(raw_server, start, more):
    url = raw_server(itertools.chain([start], itertools.repeat(more)))
    with pytest.raises(TooLargeError):
        ask(url)


@pytest.mark.parametrize(
    "cut", [b"Content-Length: 900\r\n\r\nonly this", b"Transfer-Encoding: chunked\r\n\r\n384\r\nonly this"]
)
def test_an_answer_that_breaks_off_is_not_taken_for_whole(raw_server, cut):
    with pytest.raises(BrokenAnswerError, match="ended"):
        ask(raw_server([HEAD + cut]))


def test_no_time_is_no_request():
    with pytest.raises(TimeoutError):
        ask("http://127.0.0.1:1/x", seconds=0.0)


@pytest.fixture
def black_hole():
    """An address where no attempt to connect ends: the queue of a server that accepts nobody, full."""
    with contextlib.ExitStack() as sockets:
        address = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0)).getsockname()
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield address


@pytest.fixture
def resolve(monkeypatch):
    """Makes every name one of several addresses."""

    def become(*addresses):
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    return become


def test_connecting_to_all_addresses_of_a_name_has_the_one_deadline(black_hole, resolve):
    resolve(*[black_hole] * 3)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        ask("http://name", seconds=0.6)
    assert 0.5 < time.monotonic() - began < 1.1  # and not 1.8


def test_an_address_that_swallows_all_leaves_time_for_the_next(black_hole, resolve, raw_server):
    url = raw_server([HEAD + b"Content-Length: 2\r\n\r\n{}"])
    resolve(black_hole, ("127.0.0.1", int(url.rpartition(":")[2])))
    assert ask("http://name", seconds=2).body == b"{}"


@pytest.mark.parametrize("pieces", [[b""], [b"\x16\x03\x03\x40\x00", *[b"x"] * 100]], ids=["silent", "dripping"])
def test_a_handshake_that_does_not_end_has_the_one_deadline(black_hole, resolve, raw_server, pieces):
    url = raw_server(itertools.chain(pieces, itertools.repeat(b"")), pause=0.05)
    resolve(black_hole, ("127.0.0.1", int(url.rpartition(":")[2])))
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        ask("https://name", seconds=0.8)
    assert 0.7 < time.monotonic() - began < 1.1  # and not half of it more, for the address before


def test_a_server_that_reads_slowly_has_the_one_deadline():
    class TakesOneByte:
        """As a socket over TLS does with each record, it has the whole time-out for each call."""

        def settimeout(self, seconds):
            self.seconds = seconds

        def send(self, data):
            time.sleep(min(self.seconds, 0.1))
            return 1

        def sendall(self, data):
            for _ in data:
                self.send(data)

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        _Bounded(TakesOneByte(), began + 0.3, 10_000).sendall(bytes(20))
    assert time.monotonic() - began < 1


def test_a_numeric_address_of_version_6_keeps_its_usual_port(monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, **_: asked.append((host, port)) or [])
    for url in ("http://[::1]/x", "https://[::1]/x", "http://[::1]:8501/x"):
        with pytest.raises(OSError, match="has no address"):
            ask(url)
    assert asked == [("::1", 80), ("::1", 443), ("::1", 8501)]


@pytest.mark.parametrize("size", [b"-5", b"-1", b"z", b""])
def test_the_length_of_a_part_that_is_none(raw_server, size):
    with pytest.raises(BrokenAnswerError):
        ask(raw_server([HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n{}\r\n0\r\n\r\n"]))


def test_http_that_is_wrong_is_refused_or_means_what_it_says():
    outcomes = fuzz_http(seed=0, count=25)
    assert sum(outcomes.values()) == 25
    assert {outcome.rpartition(": ")[2] for outcome in outcomes} == {"refused", "as it says"}
