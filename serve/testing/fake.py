"""FakeEngine: the port's instance that serves canned answers over HTTP/1.1. Knows no model."""

import asyncio
import hmac
import socket
import struct
from collections import Counter
from http import HTTPStatus
from typing import Final

import orjson

from serve.engine.base import Engine
from serve.errors import EngineDied
from serve.testing.answers import Answerer, Refusal, Reply
from serve.testing.faults import Fault, Faults

_JSON: Final = b"application/json"
_EVENTS: Final = b"text/event-stream; charset=utf-8"
_MAX_HEAD_BYTES: Final = 65_536
_OVERSIZED_BYTES: Final = 1_000_000
_NO_CHOICES: Final = b'{"id":"chatcmpl-0","object":"chat.completion","choices":[],"usage":null}'
_HTML: Final = b"<html><body><h1>500 Internal Server Error</h1></body></html>"


class FakeEngine(Engine):
    """An OpenAI-compatible server on loopback whose replies need no model.

    Routes: POST /v1/chat/completions and /v1/completions (JSON and SSE), GET /v1/models, /health
    and /version, and for tests GET /stats (counts) and GET /requests (how many good answers each
    X-Request-ID got). Not imitated: logprobs, tools, n > 1, several prompts in one request.
    """

    def __init__(
        self,
        reply: Reply = "Hello from FakeEngine.",
        *,
        model: str = "fake",
        max_model_len: int = 32_768,
        api_key: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Faults = Faults(),  # noqa: B008  # frozen
    ) -> None:
        self.model = model
        self.faults = faults
        self.answerer = Answerer(reply, model=model, max_model_len=max_model_len)
        self.oversized = Answerer("x" * _OVERSIZED_BYTES, model=model, max_model_len=max_model_len)
        self.stats = Stats()
        self.expected_auth = f"Bearer {api_key}".encode() if api_key else None
        self.cold_until = 0.0
        self._host, self._port = host, port
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self) -> None:
        """Listen; with port 0, `base_url` says where."""
        loop = asyncio.get_running_loop()
        self.died = loop.create_future()
        self.cold_until = loop.time() + self.faults.cold_s
        self._server = await loop.create_server(
            lambda: _Connection(self, loop), self._host, self._port, backlog=4096
        )
        self._port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://{self._host}:{self._port}/v1"

    async def wait_ready(self, timeout_s: float = 600.0) -> None:
        """Return at once: a FakeEngine that listens answers, be it with its faults."""

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.transport.abort()
        await self._server.wait_closed()
        self._server = None

    def kill(self) -> None:
        """Die as a crashed engine does: drop everything and settle `died`."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.transport.abort()
        self.died.set_result(EngineDied("FakeEngine was killed"))

    def opened(self, connection: "_Connection") -> None:
        """Count a new connection."""
        self._connections.add(connection)
        self.stats.connections_total += 1
        self.stats.connections_max = max(self.stats.connections_max, len(self._connections))

    def closed(self, connection: "_Connection") -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    def read(self, path: bytes) -> tuple[int, bytes]:
        """Answer a GET: status and JSON body."""
        match path:
            case b"/health":
                return (503 if self.is_cold() else 200), b""
            case b"/version":
                return 200, b'{"version":"fake"}'
            case b"/v1/models":
                return 200, self._models()
            case b"/stats":
                return 200, orjson.dumps(self.stats.snapshot(len(self._connections)))
            case b"/requests":
                return 200, orjson.dumps(self.stats.answered)
            case b"/v1/chat/completions" | b"/v1/completions":
                return 405, b'{"detail":"Method Not Allowed"}'
            case _:
                return 404, b'{"detail":"Not Found"}'

    def is_cold(self) -> bool:
        """Whether the clock still says that no completion is served."""
        return bool(self.faults.cold_s) and asyncio.get_running_loop().time() < self.cold_until

    def _models(self) -> bytes:
        card = {
            "id": self.model,
            "object": "model",
            "created": 1_767_225_600,
            "owned_by": "palaestra",
            "root": self.model,
            "parent": None,
            "max_model_len": self.answerer.max_model_len,
        }
        return orjson.dumps({"object": "list", "data": [card]})


class Stats:
    """What a FakeEngine has seen. Counts completion requests only, not GETs."""

    def __init__(self) -> None:
        self.requests = 0
        self.statuses: Counter[int] = Counter()
        self.in_flight = 0
        self.in_flight_max = 0
        self.connections_total = 0
        self.connections_max = 0
        self.abandoned = 0
        """Requests whose client left before the answer."""
        self.answered: Counter[str] = Counter()
        """Good answers written in full, by X-Request-ID."""

    def snapshot(self, connections: int) -> dict[str, object]:
        """Return the counts as /stats shows them."""
        return {
            "requests": self.requests,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "in_flight": self.in_flight,
            "in_flight_max": self.in_flight_max,
            "connections": connections,
            "connections_max": self.connections_max,
            "connections_total": self.connections_total,
            "abandoned": self.abandoned,
        }


class _Connection(asyncio.Protocol):
    """One client connection: splits requests off the byte stream and writes their answers."""

    transport: asyncio.Transport

    def __init__(self, engine: FakeEngine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop
        self._buffer = b""
        self._timers: set[asyncio.TimerHandle] = set()
        self._unanswered = 0
        self._silenced = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a TCP server's is a Transport
        self._engine.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's
        self._engine.closed(self)
        for timer in self._timers:
            timer.cancel()
        stats = self._engine.stats
        stats.in_flight -= self._unanswered
        stats.abandoned += self._unanswered
        self._unanswered = 0

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while not self._silenced and (end := buffer.find(b"\r\n\r\n")) >= 0:
            head = buffer[:end]
            length = _header(head, b"content-length") or b"0"
            if not length.isdigit():
                self._write(400, b"Invalid HTTP request received.", kind=b"text/plain")
                self.transport.close()
                return
            whole = end + 4 + int(length)
            if len(buffer) < whole:
                if len(buffer) == end + 4 and _header(head, b"expect") is not None:
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                break
            body, buffer = buffer[end + 4 : whole], buffer[whole:]
            self._request(head, body)
        self._buffer = buffer
        if len(buffer) > _MAX_HEAD_BYTES and b"\r\n\r\n" not in buffer:
            self._write(431, b'{"detail":"Request Header Fields Too Large"}')
            self.transport.close()

    def _request(self, head: bytes, body: bytes) -> None:
        method, _, rest = head.partition(b" ")
        path = rest[: rest.find(b" ")].partition(b"?")[0]
        if not self._authorised(head, path):
            self._write(401, b'{"error":"Unauthorized"}')
        elif method == b"GET":
            self._write(*self._engine.read(path))
        elif method != b"POST" or path not in (b"/v1/chat/completions", b"/v1/completions"):
            self._write(404, b'{"detail":"Not Found"}')
        elif _header(head, b"transfer-encoding") is not None:
            self._write(411, b'{"detail":"FakeEngine wants a Content-Length"}')
            self.transport.close()
        else:
            self._completion(head, body, chat=path == b"/v1/chat/completions")

    def _authorised(self, head: bytes, path: bytes) -> bool:
        expected = self._engine.expected_auth
        if expected is None or not path.startswith(b"/v1"):
            return True
        return hmac.compare_digest(_header(head, b"authorization") or b"", expected)

    def _completion(self, head: bytes, body: bytes, *, chat: bool) -> None:
        engine = self._engine
        stats = engine.stats
        stats.requests += 1
        stats.in_flight += 1
        self._unanswered += 1
        stats.in_flight_max = max(stats.in_flight_max, stats.in_flight)
        delay_s = engine.faults.delay_s
        if not delay_s:
            self._answer(head, body, stats.requests, chat=chat)
            return

        def answer() -> None:
            self._timers.discard(timer)
            self._answer(head, body, count, chat=chat)

        count = stats.requests
        timer = self._loop.call_later(delay_s, answer)
        self._timers.add(timer)

    def _answer(self, head: bytes, body: bytes, count: int, *, chat: bool) -> None:
        engine = self._engine
        faults = engine.faults
        if count <= faults.cold_requests or engine.is_cold():
            error = Refusal("The engine is starting.", status=503, kind="ServiceUnavailableError")
            self._answered(503, error.body(), extra=self._retry_after())
            return
        fault = faults.strikes(count)
        if fault in (Fault.RESET, Fault.SILENT, Fault.TOO_MANY, Fault.HTML, Fault.NO_CHOICES):
            self._fail(fault)
            return
        try:
            answerer = engine.oversized if fault is Fault.OVERSIZED else engine.answerer
            content, streamed = answerer.answer(body, chat=chat)
        except Refusal as refusal:
            self._answered(refusal.status, refusal.body())
            return
        kind = _EVENTS if streamed else _JSON
        if fault is Fault.CUT:
            self._cut(content, kind)
        elif fault is Fault.HALF_JSON:
            self._answered(200, content[: len(content) // 2], kind=kind)
        else:
            request_id = _header(head, b"x-request-id")
            if request_id and fault is None:
                engine.stats.answered[request_id.decode("latin-1")] += 1
            self._answered(200, content, kind=kind)

    def _fail(self, fault: Fault) -> None:
        match fault:
            case Fault.RESET:
                self._reset()
            case Fault.SILENT:
                self._silenced = True
            case Fault.TOO_MANY:
                error = Refusal("Too many requests.", status=429, kind="RateLimitError")
                self._answered(429, error.body(), extra=self._retry_after())
            case Fault.HTML:
                self._answered(500, _HTML, kind=b"text/html")
            case _:
                self._answered(200, _NO_CHOICES)

    def _answered(
        self, status: int, body: bytes, *, kind: bytes = _JSON, extra: bytes = b""
    ) -> None:
        self._settle(status)
        self._write(status, body, kind=kind, extra=extra)

    def _settle(self, status: int) -> None:
        stats = self._engine.stats
        stats.statuses[status] += 1
        stats.in_flight -= 1
        self._unanswered -= 1

    def _cut(self, body: bytes, kind: bytes) -> None:
        self._settle(200)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
        self.transport.write(head % (kind, len(body)) + body[: len(body) // 2])
        self.transport.close()

    def _reset(self) -> None:
        """Close so that the kernel sends RST, not FIN."""
        self._settle(0)
        wire: socket.socket = self.transport.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _retry_after(self) -> bytes:
        return b"Retry-After: %d\r\n" % self._engine.faults.retry_after_s

    def _write(self, status: int, body: bytes, *, kind: bytes = _JSON, extra: bytes = b"") -> None:
        start = _STATUS_LINES[status]
        if self._engine.faults.chunked and body:
            framing = b"Transfer-Encoding: chunked\r\n\r\n"
            half = len(body) // 2
            parts = (part for part in (body[:half], body[half:]) if part)
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        else:
            framing = b"Content-Length: %d\r\n\r\n" % len(body)
        self.transport.write(
            b"".join((start, b"Content-Type: ", kind, b"\r\n", extra, framing, body))
        )


def _header(head: bytes, name: bytes) -> bytes | None:
    """Return a header's value, whatever the case of its name."""
    lowered = head.lower()
    start = lowered.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else None].strip()


_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
