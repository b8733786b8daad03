"""HTTP/1.1 as a client speaks it: header blocks, the reader of responses, one connection.

Lives here: what may be sent, and what an answer is (framing, bounds, content codings). Knows
nothing of URLs, pools or retries; all but `Connection` is pure: bytes in, values out.
"""

from __future__ import annotations

import asyncio
import re
import socket
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import httptools

_MAX_HEAD_BYTES = 1 << 16
_MAX_FRAMING_RATIO = 16
"""Framing bytes that a body byte may cost: one-byte chunks with padded sizes need 13."""

_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""Seconds of silence before the first probe, seconds between two, unanswered ones to the end."""

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = r"[^\x00-\x08\x0a-\x1f\x7f]*"
_FRAMING = r"(?!(?i:host|connection|content-length|transfer-encoding):)"
_LINE = re.compile(f"{_FRAMING}{_NAME}: {_VALUE}\r\n")
_BLOCK = re.compile(f"(?:{_FRAMING}{_NAME}: {_VALUE}\r\n)*".encode())


class Malformed(ValueError):
    """The bytes are not a response that this client takes; the message says why."""


def header_block(headers: Mapping[str, str] | bytes) -> bytes:
    r"""Encode headers as `Name: value\r\n` lines; a block made before passes through.

    Raises:
        ValueError: a header that would end its line, or that belongs to the connection (Host,
            Connection, Content-Length, Transfer-Encoding). The message never shows a value.

    """
    if isinstance(headers, bytes):
        if not _BLOCK.fullmatch(headers):
            raise ValueError(r"header block: expected `Name: value\r\n` lines only")
        return headers
    lines = []
    for name, value in headers.items():
        line = f"{name}: {value}\r\n"
        if not _LINE.fullmatch(line):
            raise ValueError(f"header {name!r}: expected a token, and a value without control")
        lines.append(line)
    try:
        return "".join(lines).encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"headers {list(headers)}: expected Latin-1 values") from None


class Headers(Mapping[str, str]):
    """A response's headers under lower-case names; repeated ones are joined by ", ".

    Holds the bytes as they came and decodes what is asked for: most are never read.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: Mapping[bytes, bytes]) -> None:
        self._raw = raw

    def __getitem__(self, name: str) -> str:
        return self._raw[name.encode()].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def __repr__(self) -> str:
        return f"Headers({dict(self)!r})"


class Reply(NamedTuple):
    """One complete response as the wire had it."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes
    """Decoded where the server had compressed it."""
    reusable: bool
    """Whether the connection may carry another request."""


class Connection(asyncio.Protocol):
    """One keep-alive connection, which carries one request at a time.

    It is in `alive` from `join` to its end, and in `idle` while it may take a request: the moment
    the server closes it or says anything unasked, it is not.
    """

    __slots__ = ("_alive", "_ended", "_idle", "_reader", "_socket", "deadline", "waiter")

    def __init__(
        self, alive: set[Connection], idle: dict[Connection, None], max_body_bytes: int
    ) -> None:
        self._alive = alive
        self._idle = idle
        self._reader = ResponseReader(max_body_bytes)
        self._ended: asyncio.Future[None] | None = None
        self.waiter: asyncio.Future[Reply] | None = None
        """Where the response under way goes; None while there is none."""
        self.deadline = 0.0
        """When the request under way runs out of time, on `time.monotonic`'s clock."""

    @property
    def any_byte(self) -> bool:
        """Whether a part of the response under way, or of the one that failed, has come."""
        return self._reader.any_byte

    def join(self) -> None:
        """Count as alive.

        Its maker calls this, not `connection_made`: where the making is cancelled in between,
        uvloop never tells the end.
        """
        if not self._socket.is_closing():
            self._alive.add(self)

    def send(self, head: bytes, body: bytes, deadline: float) -> asyncio.Future[Reply]:
        """Write a request; the future has its response, or one of these errors.

        Raises:
            ConnectionError: the connection ended first.
            Malformed: what came is not a response.

        """
        self._reader.start()
        self.deadline = deadline
        self.waiter = waiter = asyncio.get_running_loop().create_future()
        if self._socket.is_closing():  # it may have ended before it was first used
            self.fail(ConnectionResetError("closed by the server"))
        else:
            self._socket.writelines((head, body))
        return waiter

    def fail(self, error: Exception) -> None:
        """End the connection and the request under way with it."""
        waiter, self.waiter = self.waiter, None
        self._idle.pop(self, None)
        self._socket.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    async def aclose(self) -> None:
        """End the connection and wait until its socket is closed."""
        if self in self._alive:
            self._ended = asyncio.get_running_loop().create_future()
            self.fail(ConnectionAbortedError("the transport was closed"))
            await self._ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket."""
        self._socket = cast(asyncio.Transport, transport)
        # A completion may take minutes in which no byte goes either way. Probes keep routers from
        # forgetting the connection, and tell where the other end is gone without a word.
        wire = transport.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _PROBES.items():
            if hasattr(socket, option):  # macOS has them in part
                wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def data_received(self, data: bytes) -> None:
        """Feed the reader; an answer to no request is fatal: it would pass for the next one's."""
        if self.waiter is None:
            self.fail(ConnectionAbortedError("the server spoke unasked"))
            return
        try:
            reply = self._reader.feed(data)
        except Malformed as error:
            self.fail(error)
            return
        if reply is not None:
            self._finish(reply)

    def eof_received(self) -> None:
        """End: a server that sends nothing more has no answer to the next request either."""
        self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Leave the living."""
        self._end(error)
        self._alive.discard(self)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _end(self, error: Exception | None) -> None:
        self._idle.pop(self, None)
        if self.waiter is None:
            return
        try:
            reply = None if error else self._reader.eof()
        except Malformed as malformed:
            self.fail(malformed)
            return
        if reply is None:
            self.fail(ConnectionResetError(str(error or "closed by the server")))
        else:
            self._finish(reply)

    def _finish(self, reply: Reply) -> None:
        waiter, self.waiter = self.waiter, None
        # A server may answer before it has read the body: what is left would precede the next head.
        if reply.reusable and not self._socket.get_write_buffer_size():
            self._idle[self] = None
        else:
            self._socket.abort()
        if waiter is not None and not waiter.done():
            waiter.set_result(reply)


class ResponseReader:
    """Reads the responses of one connection, one after another; `start` comes before each.

    Methods named `on_` are the parser's to call, `start`, `feed` and `eof` the connection's.
    """

    __slots__ = ("_body", "_fed", "_headers", "_max_body_bytes", "_parser", "_reply", "_status")

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._parser = httptools.HttpResponseParser(self)
        # As aiohttp's client does: servers end lines in LF alone or pad chunk sizes, and a client
        # that carries one request at a time has no other party's request to confuse it with.
        self._parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self.start()

    def start(self) -> None:
        """Expect the response to a new request."""
        self._headers: dict[bytes, bytes] = {}
        self._status = 0
        self._body: bytes | bytearray = b""
        self._reply: Reply | None = None
        self._fed = 0

    @property
    def any_byte(self) -> bool:
        """Whether an incomplete response has begun."""
        return self._fed > 0

    def feed(self, data: bytes) -> Reply | None:
        """Take what the socket had; return the response once it is complete.

        Raises:
            Malformed: no HTTP/1.1, over a bound, or a coding that this client does not know.

        """
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._reply is None:
                self._fed += len(data)
                raise Malformed(f"expected an HTTP/1.1 response, found: {error}") from error
            self._reply = self._reply._replace(reusable=False)
        if self._reply is not None:
            return self._decoded(self._reply)
        self._fed += len(data)
        self._check_bounds()
        return None

    def eof(self) -> Reply | None:
        """Return the response that the connection's end completes, None where it cuts one off.

        Raises:
            Malformed: as `feed`.

        """
        framed = b"content-length" in self._headers or b"transfer-encoding" in self._headers
        if not self._status or framed:
            return None
        return self._decoded(Reply(self._status, self._headers, bytes(self._body), reusable=False))

    def on_message_begin(self) -> None:
        """Note whether a response follows the one that was asked for."""
        if self._reply is not None:  # an answer that nobody asked for
            self._reply = self._reply._replace(reusable=False)
            self._headers = {}
            self._status = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header, joined to those of its name."""
        if self._status:  # a trailer
            return
        key = name.lower()
        first = self._headers.get(key)
        self._headers[key] = value if first is None else first + b", " + value

    def on_headers_complete(self) -> None:
        """Take the status."""
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Keep one piece of the body."""
        if not self._body:
            self._body = data
        elif len(self._body) <= self._max_body_bytes:  # what is over the bound need not be kept
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += data

    def on_message_complete(self) -> None:
        """Close the response, or pass over an interim one."""
        if self._reply is not None:
            return
        if self._status < 200:  # 100 and 103 announce the response; 101 ends in an error
            self._headers = {}
            self._status = 0
            return
        reusable = self._parser.should_keep_alive()
        body = self._body if isinstance(self._body, bytes) else bytes(self._body)
        self._reply = Reply(self._status, self._headers, body, reusable)

    def _check_bounds(self) -> None:
        announced = int(self._headers.get(b"content-length", b"0"))
        if max(len(self._body), announced) > self._max_body_bytes:
            raise Malformed(f"expected a body of at most {self._max_body_bytes} bytes")
        if self._fed > _MAX_HEAD_BYTES + _MAX_FRAMING_RATIO * len(self._body):
            raise Malformed(f"expected at most {_MAX_HEAD_BYTES} bytes of headers and framing")

    def _decoded(self, reply: Reply) -> Reply:
        transfer_coding = reply.headers.get(b"transfer-encoding", b"chunked")
        if transfer_coding.lower() != b"chunked":
            raise Malformed(f"expected Transfer-Encoding: chunked, found {transfer_coding!r}")
        plain = plain_body(reply.headers, reply.body, self._max_body_bytes)
        return reply if plain is reply.body else reply._replace(body=plain)


def plain_body(headers: Mapping[bytes, bytes], body: bytes, max_body_bytes: int) -> bytes:
    """Undo a body's Content-Encoding, never making more than `max_body_bytes`.

    Raises:
        Malformed: a coding other than gzip or deflate, bytes that are not in it, too many of them.

    """
    if len(body) > max_body_bytes:
        raise Malformed(f"expected a body of at most {max_body_bytes} bytes")
    coding = headers.get(b"content-encoding")
    if coding is None or not body:
        return body
    name = coding.strip().lower()
    if name == b"identity":
        return body
    if name in (b"gzip", b"x-gzip"):
        window = 16 + zlib.MAX_WBITS
    elif name == b"deflate":  # some servers leave out zlib's two bytes, whose low nibble is 8
        window = zlib.MAX_WBITS if body[0] & 0x0F == 8 else -zlib.MAX_WBITS
    else:
        raise Malformed(f"expected no Content-Encoding (none was asked for), found {coding!r}")
    decoder = zlib.decompressobj(window)
    try:
        plain = decoder.decompress(body, max_body_bytes + 1)
    except zlib.error as error:
        raise Malformed(f"expected a body in {coding!r}, found: {error}") from error
    if len(plain) > max_body_bytes:
        raise Malformed(f"expected a body of at most {max_body_bytes} bytes, decoded")
    if not decoder.eof or decoder.unused_data:
        raise Malformed(f"expected one whole {coding!r} stream as the body")
    return plain
