"""A server below HTTP: it sends what it was told, byte for byte, and ends as it was told."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterable
from typing import Literal, NamedTuple


class Script(NamedTuple):
    """What the server does with each connection once something has come.

    Attributes:
        pieces: What it sends, one after the other.
        pause: Seconds after each.
        end: Whether it then closes the connection, resets it, or holds it until the client has gone.
    """

    pieces: Iterable[bytes]
    pause: float = 0.0
    end: Literal["close", "reset", "hold"] = "close"


class RawServer:
    """Serves one connection after the other on a port of this machine, in a thread of its own.

    Attributes:
        script: What it does; it may be replaced between connections.
        url: Its address.
    """

    def __init__(self, script: Script):
        self.script = script
        self._over = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(0.05)
        self._thread = threading.Thread(target=self._serve)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> RawServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _serve(self) -> None:
        with self._listening:
            while not self._over.is_set():
                with contextlib.suppress(OSError), self._listening.accept()[0] as connection:
                    connection.settimeout(1)
                    connection.recv(2**20)
                    self._play(connection, self.script)

    def _play(self, connection: socket.socket, script: Script) -> None:
        for piece in script.pieces:
            if self._over.is_set():
                return
            connection.sendall(piece)
            time.sleep(script.pause)
        if script.end == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        if script.end == "close":
            connection.shutdown(socket.SHUT_WR)
        connection.recv(2**20)
