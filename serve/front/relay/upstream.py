"""A connection to a replica: writes requests, splits answers off the byte stream. Knows no client.

Bodies are handed on as they came, framing included; only where an answer ends is looked for.
"""

import asyncio
import time
from typing import Final, Protocol

from serve.front.relay.heads import MAX_HEAD_BYTES, AnswerHead, BadAnswer
from serve.pool.replicas import Replica

_HEAD: Final = 0
_LENGTH: Final = 1
_CHUNKED: Final = 2
_UNTIL_CLOSE: Final = 3

_MAX_CHUNK_LINE_BYTES = 1024
_ONE_WRITE_BYTES = 65_536


class Recipient(Protocol):
    """Whoever waits for an answer."""

    def answer_begins(self, head: AnswerHead, *, data_follows: bool) -> None:
        """Take the head of the final answer; `data_follows` if its body's first bytes are here."""

    def answer_data(self, data: bytes, *, done: bool) -> None:
        """Take the next bytes of the body; `done` with its last ones, which may be none."""

    def upstream_lost(self, upstream: "Upstream", reason: str) -> None:
        """Learn that the answer will not come, or not to its end."""


class Upstream(asyncio.Protocol):
    """One keep-alive connection, used by one request at a time."""

    __slots__ = (
        "_buffer",
        "_head",
        "_in_trailer",
        "_left",
        "_mode",
        "_recipient",
        "closed",
        "idle_since",
        "replica",
        "reused",
        "transport",
    )
    transport: asyncio.Transport

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.closed = False
        self.reused = False
        """Whether an answer came over it before: if it is lost now, it may just have been stale."""
        self.idle_since = 0.0
        self._recipient: Recipient | None = None
        self._mode = _HEAD
        self._buffer = b""
        self._left = 0
        self._in_trailer = False
        self._head: AnswerHead | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport  # type: ignore[assignment]  # a TCP client's is a Transport

    def send(self, recipient: Recipient, head: bytes, body: bytes) -> None:
        """Write a request whose answer `recipient` gets."""
        self._recipient = recipient
        if len(body) > _ONE_WRITE_BYTES:
            self.transport.write(head)
            self.transport.write(body)
        else:
            self.transport.write(head + body)

    def abort(self) -> None:
        """Drop the connection so that the engine stops what it does; nobody is told."""
        self._recipient = None
        self.closed = True
        self.transport.abort()

    def pause(self) -> None:
        """Take no more from the engine until `resume`."""
        if not self.closed:
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if not self.closed:
            self.transport.resume_reading()

    @property
    def at_boundary(self) -> bool:
        """Whether a chunk could begin here."""
        return self._mode == _CHUNKED and self._left == 0 and not self._buffer

    def data_received(self, data: bytes) -> None:
        """Split the answer off the stream."""
        if self._recipient is None:
            self.abort()
            return
        try:
            if self._mode == _HEAD:
                rest = self._take_head(data)
                if rest is None:
                    return
                data = rest
                if not data and not (self._mode == _LENGTH and self._left == 0):
                    return
            self._take_body(data)
        except BadAnswer as error:
            self._lose(str(error))

    def eof_received(self) -> bool:
        """Take the end of the stream for the end of an answer without a length."""
        if self._mode == _UNTIL_CLOSE and self._recipient is not None:
            self._finish(b"")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self.closed = True
        self.replica.idle.pop(self, None)
        if self._recipient is not None:
            self._lose(str(exc) if exc else "the connection was closed")

    def _lose(self, reason: str) -> None:
        recipient, self._recipient = self._recipient, None
        self.closed = True
        self.transport.abort()
        if recipient is not None:
            recipient.upstream_lost(self, reason)

    def _take_head(self, data: bytes) -> bytes | None:
        """Return what follows the final answer's head, or None if that is not all there."""
        if self._buffer:
            data = self._buffer + data
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0 or end > MAX_HEAD_BYTES:
                if len(data) > MAX_HEAD_BYTES:
                    raise BadAnswer(f"the answer's head is longer than {MAX_HEAD_BYTES} bytes")
                if len(data) > 12 and data[:7] != b"HTTP/1.":
                    raise BadAnswer(f"expected an HTTP/1.1 status line, got {data[:60]!r}")
                self._buffer = data
                return None
            head = AnswerHead(data[:end])
            data = data[end + 4 :]
            if head.status >= 200:
                break
        self._buffer = b""
        self._begin(head, data_follows=bool(data))
        return data

    def _begin(self, head: AnswerHead, *, data_follows: bool) -> None:
        if head.chunked:
            self._mode = _CHUNKED
            self._left = 0
            self._in_trailer = False
        elif head.length is not None:
            self._mode = _LENGTH
            self._left = head.length
        else:
            self._mode = _UNTIL_CLOSE
            head.keeps_alive = False
        self._head = head
        assert self._recipient is not None
        self._recipient.answer_begins(head, data_follows=data_follows)

    def _take_body(self, data: bytes) -> None:
        recipient = self._recipient
        if recipient is None:  # the recipient gave up when it saw the head
            return
        if self._mode == _LENGTH:
            excess = len(data) - self._left
            if excess < 0:
                self._left -= len(data)
                recipient.answer_data(data, done=False)
                return
            if excess:
                assert self._head is not None
                self._head.keeps_alive = False
                data = data[: self._left]
            self._finish(data)
        elif self._mode == _CHUNKED and (excess := self._beyond_end(data)) >= 0:
            if excess:
                assert self._head is not None
                self._head.keeps_alive = False
                data = data[:-excess]
            self._finish(data)
        else:
            recipient.answer_data(data, done=False)

    def _finish(self, data: bytes) -> None:
        """Hand on the last bytes, and be free for the next request."""
        recipient, self._recipient = self._recipient, None
        head, self._head = self._head, None
        self._mode = _HEAD
        self._buffer = b""
        assert recipient is not None
        assert head is not None
        if head.keeps_alive and self.replica.is_ready:
            self.reused = True
            self.idle_since = time.perf_counter()
            self.replica.idle[self] = None
        else:
            self.closed = True
            self.transport.close()
        recipient.answer_data(data, done=True)

    def _beyond_end(self, data: bytes) -> int:
        """Walk the chunks; return how many bytes follow the trailer, or -1 before its end."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        size = len(data)
        at = self._left
        while at < size:
            newline = data.find(b"\n", at)
            if newline < 0:
                if size - at > _MAX_CHUNK_LINE_BYTES:
                    raise BadAnswer("a chunk's size line does not end")
                self._buffer = data[at:]
                self._left = 0
                return -1
            if self._in_trailer:
                if newline - at <= 1:
                    return size - newline - 1
                at = newline + 1
                continue
            try:
                length = int(data[at:newline], 16)
            except ValueError:
                length = _extended_length(data[at:newline])
            if length < 0:
                raise BadAnswer(f"a chunk's size is negative: {length}")
            at = newline + 1
            if length:
                at += length + 2
            else:
                self._in_trailer = True
        self._left = at - size
        return -1


def _extended_length(line: bytes) -> int:
    """Return the size in a chunk's size line that has extensions."""
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise BadAnswer(f"expected a chunk's size, got {line[:40]!r}") from None
