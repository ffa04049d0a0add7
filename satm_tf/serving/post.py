"""One HTTP request whose time and size have a bound, whatever the server does."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """What a server answered.

    Attributes:
        status: The HTTP status.
        headers: The headers.
        body: The body as it was sent.
    """

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class BrokenAnswerError(ConnectionError):
    """An answer that ended before it was whole."""


class TooLargeError(Exception):
    """An answer of more bytes than allowed; no ValueError, which http.client would take for a bad number."""


def post(url: str, body: bytes, *, deadline: float, limit: int) -> Answer:
    """Posts JSON and reads the answer, compressed or redirected or not, as it comes.

    The time-out of an HTTP library applies to each read, so a server that sends a byte now and then is never too late.
    Here the time left until the deadline is the time-out of each operation of the socket, and every byte received
    counts. Looking up the host's name has the system's own bound; connecting, and the TLS handshake, may each take the
    time left at the start, and connecting takes it for each of a host's addresses. Proxies in environment variables
    are not used.

    Args:
        url: An `http://` or `https://` address.
        body: What to send.
        deadline: The moment, on `time.monotonic`'s clock, at which it is too late.
        limit: The most bytes to receive, headers included.

    Raises:
        TimeoutError: If the deadline passes.
        TooLargeError: If more bytes come.
        BrokenAnswerError: If the connection ends before the answer does.
        OSError: If the server cannot be reached.
        http.client.HTTPException: If what comes is no HTTP.
    """
    parts = urlsplit(url)
    secure = {"context": ssl.create_default_context()} if parts.scheme == "https" else {}
    make: Any = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = make(parts.hostname, parts.port, timeout=_left(deadline), **secure)
    try:
        connection.connect()
        connection.sock = _Bounded(connection.sock, deadline, limit)
        connection.request("POST", parts.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        received = response.read(limit + 1)
        if response.length:
            raise BrokenAnswerError(f"The connection ended {response.length} bytes before the answer did.")
        return Answer(response.status, response.headers, received)
    except http.client.IncompleteRead as error:
        raise BrokenAnswerError(
            f"The connection ended in the middle of the answer, after {len(error.partial)} bytes."
        ) from error
    finally:
        connection.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("The time is over.")
    return left


class _Bounded:
    """A connected socket, as far as `http.client` uses one."""

    def __init__(self, connected: socket.socket, deadline: float, limit: int):
        self._socket, self._deadline, self._limit = connected, deadline, limit

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(_left(self._deadline))  # which Python applies to all of it together
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        received = self._socket.makefile("rb", buffering=0)  # which keeps the socket open until it is closed itself
        return io.BufferedReader(_Received(self._socket, received, self._deadline, self._limit))

    def close(self) -> None:
        self._socket.close()


class _Received(io.RawIOBase):
    def __init__(self, connected: socket.socket, received: io.RawIOBase, deadline: float, limit: int):
        self._socket, self._received, self._deadline, self._room = connected, received, deadline, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(_left(self._deadline))
        count = self._received.readinto(buffer) or 0
        self._room -= count
        if self._room < 0:
            raise TooLargeError("The answer is larger than a model's answer can be.")
        return count

    def close(self) -> None:
        self._received.close()
        super().close()
