"""The access log: a line of JSON for each request, written by a thread of its own.

A request costs one append to a bounded ring. What the ring cannot hold, or the disk cannot take, is
counted as lost, and serving goes on. Never a prompt, a completion or a secret: only what `Line`
names gets in. Knows no event loop.
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

logger = logging.getLogger(__name__)

_DRAIN_S = 0.25
_MAX_TEXT = 256
_AT_ONCE = 64
"""Lines to one write: the thread must never hold the interpreter for long."""


class Line(msgspec.Struct, kw_only=True, frozen=True):
    """What a line holds."""

    ts: float
    """Unix seconds at the request's end."""
    method: str
    path: str
    status: int
    ms: float
    ttfb_ms: float
    """Until the first byte of the answer went out."""
    key: str
    """A key's id, never its secret."""
    model: str
    version: int
    replica: str
    request_id: str
    prompt_tokens: int
    completion_tokens: int
    streamed: bool
    retries: int
    bytes: int


_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Appends to one file, and keeps one older one beside it: `NAME` and `NAME.1`."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 64 << 20,
        capacity: int = 100_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lost = 0
        """Lines that were never written."""
        self.is_failing = False
        """Whether the disk took nothing the last time."""
        self._path = path
        self._max_bytes = max_bytes
        self._capacity = capacity
        self._clock = clock
        self._ring: deque[tuple[float, Mapping[str, Any]]] = deque()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._file: int | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        """Take one finished request: the fields by name, `duration_s` and `first_byte_s`."""
        if len(self._ring) >= self._capacity:
            self.lost += 1
        else:
            self._ring.append((self._clock(), record))

    def start(self) -> Self:
        """Begin to write down what comes."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Write what is left, and close. It waits for the disk: not for an event loop."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.drain()
        self._close()

    def drain(self) -> None:
        """Write down what has come so far; count as lost what the disk does not take."""
        while count := min(len(self._ring), _AT_ONCE):
            self._drain(count)

    def _drain(self, count: int) -> None:
        lines = [_line(*self._ring.popleft()) for _ in range(count)]
        try:
            self._append(b"".join(lines))
        except OSError as error:
            self.lost += count
            self._close()
            if not self.is_failing:
                logger.warning("%s takes no more lines: %s", self._path, error.strerror)
            self.is_failing = True
        else:
            self.is_failing = False

    def _run(self) -> None:
        while not self._stopping.wait(_DRAIN_S):
            self.drain()

    def _append(self, data: bytes) -> None:
        """Write all of it or, as far as the file lets us, nothing."""
        file = self._open()
        size = os.fstat(file).st_size
        if size and size + len(data) > self._max_bytes:
            self._close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            file, size = self._open(), 0
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            with contextlib.suppress(OSError):  # no regular file; the first error says more
                os.ftruncate(file, size)
            raise

    def _open(self) -> int:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._file = os.open(self._path, flags, 0o600)
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _line(now_s: float, record: Mapping[str, Any]) -> bytes:
    line = Line(
        ts=round(now_s, 3),
        method="POST",
        path=record["path"],
        status=record["status"],
        ms=round(record["duration_s"] * 1000, 3),
        ttfb_ms=round(record["first_byte_s"] * 1000, 3),
        key=record["key"],
        model=record["model"][:_MAX_TEXT],
        version=record["version"],
        replica=record["replica"],
        request_id=record["request_id"][:_MAX_TEXT],
        prompt_tokens=record["prompt_tokens"],
        completion_tokens=record["completion_tokens"],
        streamed=record["streamed"],
        retries=record["retries"],
        bytes=record["bytes"],
    )
    return _encode(line) + b"\n"
