"""Servers that are slow, endless, or break off."""

import itertools
import time

import pytest

from satm_tf.serving.post import BrokenAnswerError, TooLargeError, post

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
