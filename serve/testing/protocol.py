"""HTTP/1.1 off the bytes of one client, a request at a time, and answers onto them.

Knows no route: a subclass gets whole requests.
"""

import asyncio
from abc import ABC, abstractmethod
from http import HTTPStatus
from typing import Final

from serve.testing.framing import Malformed, Unfinished, header, read_body

JSON: Final = b"application/json"
_MAX_HEAD_BYTES: Final = 65_536
STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class HttpProtocol(asyncio.Protocol, ABC):
    """Splits requests off the byte stream, and holds the next one back while one is answered."""

    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.is_busy = False
        """Whether a request waits for its answer; the next one then waits too."""
        self._buffer = bytearray()
        self._needed = 0
        """How long the buffer has to be before it is worth a look."""
        self._answers = 0
        self._idle: asyncio.TimerHandle | None = None

    @property
    @abstractmethod
    def is_held(self) -> bool:
        """Whether nothing is to be looked at for now."""

    @abstractmethod
    def request(self, head: bytes, lowered: bytes, body: bytes) -> None:
        """Answer a request, at once or, if `is_busy` is then true, later."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's
        """Wait for nothing more."""
        if self._idle is not None:
            self._idle.cancel()

    def data_received(self, data: bytes) -> None:
        """Take bytes; answer what is whole."""
        if self._buffer or self.is_busy or self.is_held:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return
            data = bytes(self._buffer)
        rest = self._serve(data)
        if rest or self._buffer:
            self._buffer[:] = rest

    def go_on(self) -> None:
        """Look at what came meanwhile."""
        if self._buffer:
            self.data_received(b"")

    def _serve(self, buffer: bytes) -> bytes:
        """Answer the requests at the start of the buffer, and return what is left of it."""
        self._needed = 0
        while not self.is_busy and not self.is_held:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(buffer) > _MAX_HEAD_BYTES:
                    self.write(431, b'{"detail":"Request Header Fields Too Large"}')
                    self.transport.close()
                break
            head = buffer[:end]
            lowered = head.lower()
            try:
                body, whole = read_body(buffer, lowered, end + 4)
            except Unfinished as unfinished:
                self._needed = unfinished.needed
                if len(buffer) == end + 4 and header(head, lowered, b"expect") is not None:
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                break
            except Malformed:
                self.write(400, b"Invalid HTTP request received.", kind=b"text/plain")
                self.transport.close()
                return b""
            buffer = buffer[whole:]
            self.request(head, lowered, body)
        return buffer

    def await_more(self, keepalive_s: float, close_after: int) -> None:
        """Close the connection if that is due, now or when it has been idle for long."""
        if self._answers and self._answers == close_after:
            self.transport.close()
        self._answers += 1
        if keepalive_s:
            if self._idle is not None:
                self._idle.cancel()
            self._idle = self.loop.call_later(keepalive_s, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self.is_busy and not self._buffer:
            self.transport.close()

    def write(
        self,
        status: int,
        body: bytes,
        *,
        kind: bytes = JSON,
        extra: bytes = b"",
        chunked: bool = False,
    ) -> None:
        """Write an answer."""
        start = STATUS_LINES[status]
        if chunked and body:
            framing = b"Transfer-Encoding: chunked\r\n\r\n"
            half = len(body) // 2
            parts = (part for part in (body[:half], body[half:]) if part)
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        else:
            framing = b"Content-Length: %d\r\n\r\n" % len(body)
        self.transport.write(
            b"".join((start, b"Content-Type: ", kind, b"\r\n", extra, framing, body))
        )
