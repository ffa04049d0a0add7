"""Exports on this disk as a client asks them; `test_client.py` has the servers."""

from __future__ import annotations

import gzip
import shutil
import socket
import time

import numpy as np
import pytest
import tensorflow as tf

from satm_tf.serving import ServingError
from satm_tf.serving.transports import RestTransport, _from_proto, local

IMAGES = {"images": np.zeros((1, 2, 2, 3), np.float32)}


def rest(url, timeout=2.0, retries=2):
    return RestTransport(url, "faces", version=None, timeout=timeout, retries=retries)("serving_default", IMAGES)


def test_a_version_and_the_newest_of_a_model_answer_alike(exported, pixels):
    images = pixels / np.float32(255)
    for folder in (exported.folder, exported.folder.parent):
        answer = local(folder)("serving_default", {"images": images})
        np.testing.assert_allclose(answer["probabilities"], exported.probabilities(images), rtol=0, atol=1e-5)


def test_an_unknown_signature_is_refused_with_the_nearest(exported):
    with pytest.raises(ValueError, match=r"Unknown signature\. Did you mean 'features'"):
        local(exported.folder)("feature", {})


def test_a_missing_and_a_damaged_export_are_named(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a folder with a saved_model\.pb"):
        local(tmp_path)
    shutil.copytree(exported.folder, tmp_path / "7")
    (tmp_path / "7" / "saved_model.pb").write_bytes(b"not this one")
    with pytest.raises(ValueError, match=r"7 cannot be loaded\. If it is damaged"):
        local(tmp_path)


def test_a_server_cannot_hold_a_client_for_longer_than_its_time(raw_server):
    for wait in (b"3600", b"99999999999999999999", b"Wed, 21 Oct 2055 07:28:00 GMT"):
        url = raw_server([b"HTTP/1.1 503 Busy\r\nRetry-After: " + wait + b"\r\nContent-Length: 0\r\n\r\n"])
        began = time.monotonic()
        with pytest.raises(ServingError, match=r"within 1 s, .*status 503.*Retry-After"):
            rest(url, timeout=1.0)
        assert time.monotonic() - began < 2


def test_a_broken_answer_is_asked_for_again_and_the_message_says_how_often(raw_server):
    url = raw_server([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
    with pytest.raises(ServingError, match=r"in 3 of at most 3 attempts\. Received: BrokenAnswerError: .*98 bytes"):
        rest(url)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(raw_server, status):
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.2)
        there = f"http://127.0.0.1:{other.getsockname()[1]}/elsewhere"
        url = raw_server([f"HTTP/1.1 {status} Go\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n".encode()])
        with pytest.raises(ServingError, match=f"status {status}, {there}"):
            rest(url)
        with pytest.raises(TimeoutError):
            other.accept()


def test_a_compressed_answer_is_not_unpacked(raw_server):
    bomb = gzip.compress(bytes(10**7))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    with pytest.raises(ServingError, match=r"uncompressed.*gzip"):
        rest(raw_server([head, bomb]))


def test_an_answer_beyond_any_model_s_and_what_is_no_http(raw_server):
    with pytest.raises(ServingError, match="more than 1310720 bytes"):
        rest(raw_server([b"HTTP/1.1 200 OK\r\n\r\n", *[bytes(2**16)] * 40]))
    with pytest.raises(ServingError, match="BadStatusLine"):
        rest(raw_server([b"SSH-2.0-OpenSSH\r\n\r\n"]), retries=0)
    for host in (
        "ftp://localhost",
        "file:///etc/passwd",
        "http://",
        "localhost:abc",
        "https://user:word@localhost",
        "a..b",
        "localhost/?a",
        "localhost/#a",
        "localhost/a b",
        "localhost/\u00e9",
    ):
        with pytest.raises(ValueError, match="host:port"):
            rest(host)


def test_a_proto_of_one_number_cannot_claim_a_gigabyte():
    proto = tf.make_tensor_proto(np.zeros((1, 1), np.float32))
    proto.tensor_shape.dim[0].size = 2**40
    with pytest.raises(ServingError, match=r"larger than a model.s answer can be. Received: \[1099511627776, 1\]"):
        _from_proto("probabilities", proto)
