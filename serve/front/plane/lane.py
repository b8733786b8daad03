"""The fast lane: a client's connection. Splits requests off the byte stream, one answer at a time.

llhttp, in its strict form, refuses what a smuggler needs. Requests for the data plane become
exchanges; all others go to the control plane's ASGI application. Knows no key and no replica.
"""

import asyncio
import logging
from collections import deque
from http import HTTPStatus
from typing import Final

import httptools

from serve import wire
from serve.front.control.asgi import Call
from serve.front.plane.exchange import Exchange
from serve.front.plane.request import clock
from serve.front.ports import FrontDoor
from serve.front.relay import heads

logger = logging.getLogger(__name__)

DATA_PLANE: Final = {
    path.encode(): path
    for path in (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/tokenize",
        "/detokenize",
        "/inference/v1/generate",
    )
}

_MAX_HEADERS = 128
_ONCE = frozenset((b"host", b"authorization", b"content-length"))
_RARE = frozenset((b"expect", b"transfer-encoding", b"upgrade"))
_CHECKED = _ONCE | _RARE | {b"connection"}
_MAX_CONTROL_BODY_BYTES = 1 << 20
_MAX_PIPELINED = 8
_PROGRESS_BYTES = 16_384
"""A body that does not get on by so much within the limit's time is given up."""
_LINGER_S = 2.0

_Request = tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes, bool]
"""Method, target, headers with lower-case names, body, and whether the connection stays."""


class Lane(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_body_bytes",
        "_body_mark",
        "_chunks",
        "_exchange",
        "_gateway",
        "_head_bytes",
        "_headers",
        "_in_head",
        "_in_message",
        "_keep_alive_next",
        "_lingering",
        "_mark",
        "_max_body_bytes",
        "_parser",
        "_peer",
        "_queue",
        "_reading_paused",
        "_target",
        "_write_paused_at",
        "keep_alive",
        "source",
        "transport",
    )
    transport: asyncio.Transport

    def __init__(self, gateway: FrontDoor) -> None:
        self._gateway = gateway
        self._parser = httptools.HttpRequestParser(self)
        self.keep_alive = True
        self._peer = self.source = ""
        self._exchange: Exchange | Call | None = None
        self._queue: deque[_Request] | None = None
        self._mark = clock()
        """When something last moved: the head began, a piece of the body came, an answer ended."""
        self._in_head = self._in_message = self._lingering = False
        self._reading_paused = False
        self._write_paused_at = 0.0
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._head_bytes = self._body_bytes = self._body_mark = self._max_body_bytes = 0
        self._keep_alive_next = True

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection in."""
        self.transport = transport  # type: ignore[assignment]  # a TCP server's is a Transport
        peer = transport.get_extra_info("peername")
        self._peer = self.source = peer[0] if peer else ""
        if not self._gateway.connected(self):
            self._refuse(503, "too many connections", retry_after_s=1)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's
        """Stop what was under way: nobody waits for it."""
        self._gateway.disconnected(self)
        self._queue = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; refuse what is not HTTP."""
        if self._lingering:
            return
        if len(data) > (room := heads.MAX_HEAD_BYTES - self._head_bytes):
            self.data_received(data[:room])  # else a head could end beyond its limit, unseen
            self.data_received(data[room:])
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            logger.exception("a request could not be taken in")
            self._fail()
        except httptools.HttpParserUpgrade:
            self._refuse(400, "this server does not switch protocols")
        except httptools.HttpParserError as error:
            self._refuse(400, f"malformed HTTP: {error.__context__ or error}")
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes >= heads.MAX_HEAD_BYTES:
                self._refuse(431, f"the head is longer than {heads.MAX_HEAD_BYTES} bytes")

    def pause_writing(self) -> None:
        """Stop the engine's stream: the client reads too slowly."""
        self._write_paused_at = clock()
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        """Let the engine's stream go on: the client has caught up."""
        self._write_paused_at = 0.0
        if self._exchange is not None:
            self._exchange.resume()
        elif self._queue:
            self._gateway.loop.call_soon(self._begin_queued)

    # llhttp's callbacks.

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_head = self._in_message = True
        self._mark = clock()
        self._target = b""
        self._headers = []
        self._chunks = []
        self._head_bytes = self._body_bytes = self._body_mark = 0

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        if self._in_head:  # a trailer is no header
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide whether to read on."""
        self._in_head = False
        self._head_bytes = 0
        if self._lingering:
            return
        self._mark = clock()
        self._keep_alive_next = self._parser.should_keep_alive()
        fast = _path(self._target) in DATA_PLANE
        self._max_body_bytes = (
            self._gateway.limits.max_body_bytes if fast else _MAX_CONTROL_BODY_BYTES
        )
        if not fast and self._target[:1] != b"/":
            self._refuse(400, "the target is no path")
            return
        problem = self._problem()
        if problem is not None:
            self._refuse(*problem)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, as long as there is room."""
        self._body_bytes += len(body)
        if self._body_bytes > self._max_body_bytes:
            self._refuse(413, f"the body is longer than {self._max_body_bytes} bytes")
        if not self._lingering:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        """Begin the request, or queue it behind the one under way."""
        self._in_message = False
        if self._lingering:
            return
        chunks, self._chunks = self._chunks, []
        request = (
            self._parser.get_method(),
            self._target,
            self._headers,
            chunks[0] if len(chunks) == 1 else b"".join(chunks),
            self._keep_alive_next,
        )
        if self._exchange is None and not self._queue and not self._write_paused_at:
            self._begin(request)
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append(request)
        if len(self._queue) >= _MAX_PIPELINED and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    # What exchanges and calls ask for.

    @property
    def is_stuck(self) -> bool:
        """Whether the client does not read what it gets."""
        return bool(self._write_paused_at)

    def write(self, data: bytes) -> None:
        """Send bytes of the answer."""
        self.transport.write(data)

    def cut(self) -> None:
        """Drop the connection, so that a short answer cannot look like a whole one."""
        self._exchange = None
        self.transport.abort()

    def exchange_done(self) -> None:
        """Go on with the next request, or close if this was the last."""
        self._exchange = None
        self._mark = clock()
        if not self.keep_alive or self._gateway.stopping:
            self.transport.close()
        elif self._queue:
            if self._reading_paused and len(self._queue) <= _MAX_PIPELINED // 2:
                self._reading_paused = False
                self.transport.resume_reading()
            # Not from within the callback: a queue of refusals would nest.
            self._gateway.loop.call_soon(self._begin_queued)

    # What the gateway asks for.

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked or answered here now."""
        return self._exchange is None and not self._in_message and not self._queue

    def close_if_idle(self) -> None:
        """Close, for a server that stops; a busy one closes after its answer."""
        if self.is_idle:
            self.transport.close()

    def sweep(self, now: float) -> None:
        """Close what has not moved for too long."""
        limits = self._gateway.limits
        if self._write_paused_at and now - self._write_paused_at > limits.write_stall_s:
            self.transport.abort()
        elif self._in_message and not self._lingering:
            if self._body_bytes - self._body_mark >= _PROGRESS_BYTES:
                self._body_mark = self._body_bytes
                self._mark = now
            allowed_s = limits.head_timeout_s if self._in_head else limits.body_timeout_s
            if now - self._mark > allowed_s and self._exchange is None:
                self._refuse(408, "the request did not arrive in time")
        elif self.is_idle and now - self._mark > limits.idle_timeout_s:
            self.transport.close()

    # Below.

    def _problem(self) -> tuple[int, str] | None:
        """Return the status and words for a head that is not to be answered."""
        if len(self._headers) > _MAX_HEADERS:
            return 431, f"more than {_MAX_HEADERS} headers"
        seen = []
        for name, value in self._headers:
            if name not in _CHECKED:
                continue
            if name in seen and name in _ONCE:
                return 400, f"{name.decode()} is given twice"
            seen.append(name)
            if name == b"content-length" and int(value) > self._max_body_bytes:
                return 413, f"the body is longer than {self._max_body_bytes} bytes"
            if name in _RARE and (problem := _problem_with(name, value)) is not None:
                return problem
        # HTTP/1.0 either does not keep the connection, or has a header that says it does.
        if (not self._keep_alive_next or b"connection" in seen) and (
            self._parser.get_http_version() != "1.1"
        ):
            return 505, "this server speaks HTTP/1.1"
        if b"expect" in seen and self._exchange is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None if b"host" in seen else (400, "there is no Host header")

    def _begin(self, request: _Request) -> None:
        method, target, headers, body, self.keep_alive = request
        gateway = self._gateway
        if gateway.limits.trusted_proxies:
            self.source = gateway.client_of(self._peer, headers)
        if method == b"POST" and _path(target) in DATA_PLANE:
            if gateway.expects_https and not gateway.is_secure(self._peer, headers):
                self._refuse(400, "this server expects HTTPS: nobody must read keys on the way")
                return
            if gateway.auth.open and not gateway.trusts_edge:
                reason = heads.foreign(headers)
                if reason is not None:
                    self._refuse(403, reason)
                    return
            exchange = Exchange(gateway, self, target, headers, body)
            self._exchange = exchange
            exchange.start()
        else:
            call = Call(gateway, self, self._peer, method, target, headers, body)
            self._exchange = call
            call.start()

    def _begin_queued(self) -> None:
        """Begin the next request, unless the client has not read the answers that it has."""
        if (
            self._queue
            and self._exchange is None
            and not self._write_paused_at
            and not self.transport.is_closing()
        ):
            self._begin(self._queue.popleft())

    def _fail(self) -> None:
        """End the connection after an error of ours; what was under way may be what failed."""
        if self._exchange is None:
            self._refuse(500, "internal error")
        else:
            self.transport.abort()

    def _refuse(self, status: int, message: str, *, retry_after_s: int | None = None) -> None:
        """Answer a request that is not one, and close without cutting the answer off."""
        if self._lingering or self.transport.is_closing():
            return
        self._lingering = True
        self._chunks = []
        self._gateway.meters.refused(HTTPStatus(status).phrase)
        if self._exchange is not None:
            # An earlier request is still being answered: its answer must not be mixed with ours.
            self.keep_alive = False
            self._queue = None
            return
        if self._queue:  # likewise, and those answers have not begun
            self._queue = None
            self.transport.close()
            return
        body = wire.error_body(message, status=status, kind="invalid_request_error")
        extra = b"" if retry_after_s is None else b"retry-after: %d\r\n" % retry_after_s
        self.transport.write(heads.answer(status, body, keep_alive=False, extra=extra))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # A close with unread bytes sends a reset, which can overtake the answer.
        self._gateway.loop.call_later(_LINGER_S, self.transport.abort)


def _problem_with(name: bytes, value: bytes) -> tuple[int, str] | None:
    """Return the status and words for a header that asks for what there is not."""
    if name == b"expect" and value.lower() != b"100-continue":
        return 417, "only 100-continue can be expected"
    if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
        return 501, "the only transfer encoding is chunked"
    if name == b"upgrade":
        return 400, "this server does not switch protocols"
    return None


def _path(target: bytes) -> bytes:
    return target.partition(b"?")[0] if b"?" in target else target
