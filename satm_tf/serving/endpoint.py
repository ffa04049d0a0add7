"""A deployed model as a target of an evaluation: only queried, with every request counted and answer stored."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote

import numpy as np
import tensorflow as tf

from satm_tf.serving.answers import SLACK, ServingError, UnavailableError
from satm_tf.serving.client import Client

_ADDRESS = re.compile(r"(?:(https?://.+)|grpc://([^/]+))/v1/models/([^/:?#]+)(?:/versions/(\d+))?")


class Endpoint:
    """A model on a TensorFlow Serving server, for `satm_tf.assess` to measure without its weights.

    It can only be a target: a server returns no gradients, so the attacker's models are the sources. Every request that
    is sent counts, including retries, and no more are sent than allowed. Answered images are not sent again. With a
    journal, this and the count of requests hold across processes.

    Args:
        address: `http://host:8501/v1/models/NAME` (or `https://`) for REST, `grpc://host:8500/v1/models/NAME` for gRPC.
            Add `/versions/3` to query that version; the default is the newest that the server has loaded at the time.
        requests: Maximum number of requests, of at most `batch_size` images each.
        pause: Seconds between an answer and the next request.
        batch_size: Maximum number of images in one request.
        timeout: Seconds for each request.
        retries: How often a request is sent again if the server cannot be reached, breaks off, or is too busy.
        journal: The file that keeps the requests and answers; it is created. None keeps them in memory.

    Attributes:
        address: As given.
        fingerprint: A digest of the address, which identifies finished parts of a measurement.
        requests: As given.
        sent: How many requests have been sent; those in the journal are counted from the first call on.

    Raises:
        ValueError: If the address has another form, or a number is out of range.
        ImportError: If the address uses gRPC and the extra `client` is missing.

    Example:
        >>> endpoint = Endpoint("http://localhost:8501/v1/models/faces", requests=2000, pause=0.1)
        >>> satm_tf.assess({"deployed": endpoint}, {"unseen/resnet": resnet}, dataset=test, attacks=[pgd])
    """

    remote = True

    def __init__(
        self,
        address: str,
        *,
        requests: int,
        pause: float = 0.0,
        batch_size: int = 32,
        timeout: float = 30.0,
        retries: int = 3,
        journal: str | Path | None = None,
    ):
        parts = _ADDRESS.fullmatch(address)
        if parts is None:
            raise ValueError(
                "A server's model is http://host:8501/v1/models/NAME (or https://), or "
                "grpc://host:8500/v1/models/NAME, optionally followed by /versions/N for one version. Received: "
                f"{address}"
            )
        if requests < 1 or not 0 <= pause < float("inf") or retries < 0:
            raise ValueError(
                "requests must be positive, pause and retries not negative. "
                f"Received: requests={requests}, pause={pause}, retries={retries}"
            )
        rest, grpc, model, version = parts.groups()
        # The client's own retries would not be counted.
        self._client = Client(
            rest or grpc,
            unquote(model),
            transport="rest" if rest else "grpc",
            version=None if version is None else int(version),
            timeout=timeout,
            retries=0,
            batch_size=batch_size,
        )
        self.name = self.address = address
        self.fingerprint = hashlib.sha256(address.encode()).hexdigest()
        self.requests, self.pause, self.sent = requests, pause, 0
        self._timeout, self._retries, self._batch_size = timeout, retries, batch_size
        self._journal = None if journal is None else Path(journal)
        self._known: dict[str, np.ndarray] = {}
        self._next = 0.0
        self._lock = threading.Lock()
        self._file: TextIO | None = None

    def __call__(self, images: Any, training: bool = False) -> tf.Tensor:
        """The float32 probabilities `[batch, classes]` of images `[batch, height, width, 3]` in [0, 1].

        Raises:
            ServingError: If the server does not answer, sends an invalid answer, or no request is left.
            ValueError: If it is called inside a graph, or the journal belongs to another address or is in use.
        """
        if isinstance(images, tf.Tensor) and tf.is_symbolic_tensor(images):
            raise ValueError(f"A server can only be queried outside tf.function. Received: {images} for {self.address}")
        pixels = np.ascontiguousarray(images, np.float32)
        keys = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
        with self._lock:
            if self._journal is not None and self._file is None:
                self._file = self._recall(self._journal)
            unknown = {key: row for row, key in enumerate(keys) if key not in self._known}
            rows = list(unknown.values())
            for start in range(0, len(rows), self._batch_size):
                some = rows[start : start + self._batch_size]
                answered = dict(zip([keys[row] for row in some], self._answers(pixels[some]), strict=True))
                self._write({"answers": {key: answer.tolist() for key, answer in answered.items()}})
                self._known |= answered
            return tf.constant(np.stack([self._known[key] for key in keys]))

    def _answers(self, pixels: np.ndarray) -> np.ndarray:
        for attempt in range(self._retries + 1):
            self._count(len(pixels))
            try:
                return self._checked(self._client.predict(pixels))
            except UnavailableError as error:
                if attempt == self._retries or error.wait > self._timeout:
                    raise ServingError(
                        f"{self.address} did not answer {attempt + 1} requests; re-run when it does: answered "
                        f"requests are not sent again. Received: {error}"
                    ) from error
                time.sleep(error.wait * 2**attempt)
            finally:
                self._next = time.monotonic() + self.pause
        raise AssertionError("The last attempt returns or raises.")

    def _count(self, images: int) -> None:
        """Waits until the next request may be sent, and counts it."""
        if self.sent >= self.requests:
            raise ServingError(
                f"{self.address} has been sent all requests that were allowed. Re-run with a larger number to resume: "
                f"answered requests are not sent again. Received: requests={self.requests}"
            )
        time.sleep(max(0.0, self._next - time.monotonic()))
        self.sent += 1
        self._write({"sent": images})

    def _checked(self, table: Any) -> np.ndarray:
        """Checks that an answer is consistent with itself and with earlier ones, and returns its probabilities."""
        if not table.valid.all():
            raise ServingError(
                f"{self.address} must take images in [0, 1]. Received: {(~table.valid).sum()} of {len(table)} images "
                "rejected as invalid"
            )
        found = table.filter(regex=r"^probability_\d+$").to_numpy(np.float32)
        before = next(iter(self._known.values()), found[0])
        if found.shape[1] != len(before):
            raise ServingError(
                f"{self.address} must always have the same number of classes; was another version loaded? Choose one "
                f"by adding /versions/N to the address. Received: {len(before)} and {found.shape[1]} classes"
            )
        chosen = found[np.arange(len(found)), table.class_id]
        wrong = (np.abs(found.sum(-1) - 1) > SLACK) | (chosen < found.max(-1) - SLACK)
        if wrong.any():
            raise ServingError(
                f"The probabilities of {self.address} must add up to 1, and class_id be the most probable class. "
                f"Received: {found[wrong][0].tolist()} with class_id={table.class_id[wrong].iloc[0]}"
            )
        return found

    def _recall(self, journal: Path) -> TextIO:
        """Reads the journal, and keeps it open and locked."""
        journal.parent.mkdir(parents=True, exist_ok=True)
        file = journal.open("a+", encoding="utf-8", errors="replace")
        with contextlib.suppress(ImportError):  # on systems that cannot lock
            import fcntl

            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(
                    f"Another process is querying {self.address}; wait for it. Received: {journal}"
                ) from error
        file.seek(0)
        lines = file.read().splitlines()
        for line in filter(None, lines):
            try:
                record = json.loads(line)
            except ValueError:  # A process was killed while writing. Count the request as sent, to be safe.
                record = {"sent": 0}
            if record.get("address", self.address) != self.address:
                raise ValueError(f"{journal} is the journal of {record['address']}. Received: {self.address}")
            self.sent += "sent" in record
            self._known |= {key: np.array(row, np.float32) for key, row in record.get("answers", {}).items()}
        if not lines:
            file.write(json.dumps({"address": self.address}))
        return file

    def _write(self, record: dict[str, Any]) -> None:
        """Appends a line to the journal and syncs it to disk."""
        if self._file is not None:
            # The line break comes first, so that a truncated line does not damage the next.
            self._file.write(f"\n{json.dumps(record)}")
            self._file.flush()
            os.fsync(self._file.fileno())
