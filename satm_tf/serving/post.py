"""One HTTP request with a limit on time and size, whatever the server does."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """The answer of a server.

    Attributes:
        status: The HTTP status.
        headers: The headers.
        body: The body as it was sent.
    """

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class BrokenAnswerError(ConnectionError):
    """An answer that ended before it was complete."""


class TooLargeError(Exception):
    """An answer with more bytes than allowed; not a ValueError, which http.client would treat as a bad number."""


def post(url: str, body: bytes, *, deadline: float, limit: int) -> Answer:
    """Posts JSON and reads the answer as it is, without decompressing it or following redirects.

    The time-out of an HTTP library applies to each read, so a server that sends a byte now and then never times out.
    Here the time left until the deadline is the time-out of every socket operation, from connecting and the TLS
    handshake to the last read, and every received byte counts. If a host has several addresses, each gets an equal
    share of the time left. Only the look-up of the host's name is limited by the system alone, because Python cannot
    interrupt it. Proxies in environment variables are not used.

    Args:
        url: An `http://` or `https://` address.
        body: What to send.
        deadline: The deadline on the clock of `time.monotonic`.
        limit: The most bytes to receive, headers included.

    Raises:
        TimeoutError: If the deadline passes.
        TooLargeError: If the answer is larger.
        BrokenAnswerError: If the connection ends before the answer does, or the length of a part is not valid.
        OSError: If the server cannot be reached.
        http.client.HTTPException: If the answer is not HTTP.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    make: Any = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    context = {"context": ssl.create_default_context()} if secure else {}
    connection = make(parts.hostname, parts.port or make.default_port, **context)
    try:
        connection.sock = _Bounded(_connect(connection.host, connection.port, deadline), deadline, limit)
        if secure:
            connection.sock.encrypt(**context, host=connection.host)
        connection.request("POST", parts.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        received = _body(response, limit)
        return Answer(response.status, response.headers, received)
    finally:
        connection.close()


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    """A connection to the first of a host's addresses that accepts one."""
    failure = OSError(f"{host} has no address.")
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        share = _left(deadline) / (len(addresses) - index)
        try:
            with contextlib.ExitStack() as on_failure:
                connecting = on_failure.enter_context(socket.socket(family, kind, protocol))
                connecting.settimeout(share)
                connecting.connect(address)
                # http.client sends headers and body separately: the second must not wait for an acknowledgement of the
                # first.
                connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                on_failure.pop_all()
                return connecting
        except OSError as error:
            failure = error
    raise failure


def _body(response: http.client.HTTPResponse, limit: int) -> bytes:
    try:
        received = response.read(limit + 1)
    except http.client.IncompleteRead as error:
        raise BrokenAnswerError(
            f"The connection ended in the middle of the answer, after {len(error.partial)} bytes."
        ) from error
    except ValueError as error:  # http.client takes a minus sign in the length of a chunk
        raise BrokenAnswerError("A part of the answer does not give its length.") from error
    if response.length:
        raise BrokenAnswerError(f"The connection ended {response.length} bytes before the end of the answer.")
    return received


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("The deadline has passed.")
    return left


class _Bounded:
    """The part of a connected socket that `http.client` uses."""

    def __init__(self, connected: socket.socket, deadline: float, limit: int):
        self._socket: Any = connected
        self._deadline, self._limit = deadline, limit

    def encrypt(self, context: ssl.SSLContext, host: str) -> None:
        self._socket = context.wrap_socket(self._socket, server_hostname=host, do_handshake_on_connect=False)
        self._socket.settimeout(_left(self._deadline))  # Python applies it to the whole handshake
        self._socket.do_handshake()

    def sendall(self, data: bytes) -> None:
        unsent = memoryview(data)
        while unsent:  # not the socket's own sendall, which over TLS applies the time-out to each record
            self._socket.settimeout(_left(self._deadline))
            unsent = unsent[self._socket.send(unsent) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        received = self._socket.makefile("rb", buffering=0)  # the file keeps the socket open until it is closed itself
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
