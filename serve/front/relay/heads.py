"""Heads of messages on their way through: what is passed on, dropped and added. Pure."""

from http import HTTPStatus

from serve import wire
from serve.config import is_loopback

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
NOT_FORWARDED = HOP_BY_HOP | frozenset(
    # Ours to set, ours to know, or a way to choose a worker past our back.
    b"host content-length expect authorization cookie forwarded x-forwarded-for x-forwarded-host "
    b"x-forwarded-proto x-real-ip x-data-parallel-rank x-policy-constraint x-api-key "
    b"modal-key modal-secret modal-authorization modal-session-id modal-routing-affinity-key "
    b"modal-flash-upstream".split()
)
"""Of a request's headers, those that an engine never sees, in lower case."""

VERSION = wire.POLICY_VERSION_HEADER.lower().encode()
VERSION_END = wire.POLICY_VERSION_END_HEADER.lower().encode()
REPLICA = wire.REPLICA_HEADER.lower().encode()
_LABELS = frozenset((VERSION, VERSION_END, REPLICA))
_NOT_RETURNED = (HOP_BY_HOP - {b"transfer-encoding"}) | {b"server", b"set-cookie"} | _LABELS

MAX_HEAD_BYTES = 65_536


class BadAnswer(ValueError):
    """An engine's answer that is not HTTP; says what was found."""


class AnswerHead:
    """The head of an engine's answer: its status, its framing, and the lines to pass on.

    `labels` are what an upstream says of its weights, which counts only if it is one of ours.
    """

    __slots__ = ("chunked", "keeps_alive", "labels", "length", "lines", "status", "streamed")

    def __init__(self, raw: bytes) -> None:
        first, *lines = raw.split(b"\r\n")
        if first[:7] != b"HTTP/1." or not first[9:12].isdigit():
            raise BadAnswer(f"expected an HTTP/1.1 status line, got {first[:60]!r}")
        self.status = int(first[9:12])
        self.keeps_alive = first[7:8] == b"1"
        self.length: int | None = None
        self.chunked = False
        self.streamed = False
        self.labels: dict[bytes, bytes] | None = None
        self.lines = [first]
        for line in lines:
            self._take(line)
        if self.status in (204, 304):
            self.length, self.chunked = 0, False

    def _take(self, line: bytes) -> None:
        name, colon, value = line.partition(b":")
        if not colon:
            raise BadAnswer(f"expected a header, got {line[:60]!r}")
        name = name.lower()
        if name == b"content-length":
            if self.length is not None or self.chunked:
                raise BadAnswer("an answer's length is given twice")
            self.length = _length(value)
        elif name == b"transfer-encoding":
            if self.length is not None or self.chunked or value.strip().lower() != b"chunked":
                raise BadAnswer(f"expected a body in chunks or with a length, got {line[:60]!r}")
            self.chunked = True
        elif name == b"content-type":
            self.streamed = b"event-stream" in value
        elif name in _NOT_RETURNED:
            if name == b"connection" and b"close" in value.lower():
                self.keeps_alive = False
            elif name in _LABELS:
                self.labels = {**(self.labels or {}), name: value.strip()}
            return
        self.lines.append(line)


def _length(value: bytes) -> int:
    text = value.strip()
    if not text.isdigit():
        raise BadAnswer(f"expected a Content-Length, got {text[:60]!r}")
    return int(text)


_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


def answer(
    status: int, body: bytes, *, keep_alive: bool, extra: bytes = b"", kind: bytes | None = None
) -> bytes:
    """Return a whole answer of our own; `extra` are header lines, each with its CRLF."""
    start = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status
    connection = b"" if keep_alive else b"connection: close\r\n"
    return b"%bcontent-type: %b\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
        start,
        kind or b"application/json",
        extra,
        connection,
        len(body),
        body,
    )


def for_refusal(retry_after_s: int | None, request_id: bytes | None) -> bytes:
    """Return the header lines of an answer that refuses."""
    retry = b"" if retry_after_s is None else b"retry-after: %d\r\n" % retry_after_s
    return retry if request_id is None else b"%bx-request-id: %b\r\n" % (retry, request_id)


def stamp(version: int, replica: str) -> bytes:
    """Return the header lines that say which weights and which replica made an answer."""
    names = wire.POLICY_VERSION_HEADER.lower(), wire.REPLICA_HEADER.lower()
    return f"{names[0]}: {version}\r\n{names[1]}: {replica}".encode()


def ended_by(version: int) -> bytes:
    """Return the header line that says that other weights finished an answer."""
    return f"{wire.POLICY_VERSION_END_HEADER.lower()}: {version}".encode()


def last_event(reason: str) -> bytes:
    """Return the chunks that end a stream whose replica was lost between two events."""
    error = wire.error_body(
        f"the replica was lost in the middle of the answer: {reason}",
        status=502,
        kind="api_error",
        code="replica_lost",
    )
    event = b"data: %b\n\n" % error
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)


def foreign(headers: list[tuple[bytes, bytes]]) -> str | None:
    """Say why a request to a gateway without keys is not from this machine's own programs.

    A page in a browser here could otherwise use it: by its own address (Origin), or by a name of
    its site that it lets point to this machine (Host).
    """
    host = origin = b""
    for name, value in headers:
        if name == b"host":
            host = value
        elif name == b"origin":
            origin = value
    hostname = host.rpartition(b":")[0] if b":" in host.rpartition(b"]")[2] else host
    if not is_loopback(hostname.strip(b"[]").decode("latin-1")):
        return "without a key this gateway answers only as localhost"
    if origin and origin.partition(b"://")[2] != host:
        return "without a key this gateway does not answer other sites' pages"
    return None


def connection_names(value: bytes) -> frozenset[bytes]:
    """Return the headers that a Connection header names as meant for the next hop only."""
    return frozenset(name.strip().lower() for name in value.split(b","))


def without_connection(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers without Connection and all that it names."""
    named = {b"connection"}
    for name, value in headers:
        if name == b"connection":
            named |= connection_names(value)
    return [header for header in headers if header[0] not in named]
