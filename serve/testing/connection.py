"""One client's connection: HTTP/1.1 off the bytes, one request at a time, and faults onto them.

Knows which route a request is for, and nothing of what is answered.
"""

import asyncio
import hmac
import socket
import struct
from collections.abc import Callable
from typing import Final, Protocol

import orjson

from serve.testing.admin import Admin
from serve.testing.answers import Answerer
from serve.testing.faults import Fault, Faults
from serve.testing.forms import CHAT, TEXT, Form
from serve.testing.framing import header
from serve.testing.generate import GENERATE
from serve.testing.lookups import LOOKUPS
from serve.testing.protocol import JSON, STATUS_LINES, HttpProtocol
from serve.testing.refusals import Refusal, decode, unknown_model
from serve.testing.responses import RESPONSES
from serve.testing.run import BREAKS, Later, Line, Run
from serve.testing.scheduler import Job, Scheduler
from serve.testing.stats import Stats
from serve.testing.weights import Served

_EVENTS: Final = b"text/event-stream; charset=utf-8"
_HUGE_HEADER: Final = b"X-Huge: %b\r\n" % (b"x" * 100_000)
_GARBAGE: Final = b"\x00\x01 this is no HTTP \xff\r\n\r\n"
_NEGATIVE_CHUNK: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'-5\r\n{"id"\r\n0\r\n\r\n'
)
_NO_CHOICES: Final = b'{"id":"chatcmpl-0","object":"chat.completion","choices":[],"usage":null}'
_HTML: Final = b"<html><body><h1>500 Internal Server Error</h1></body></html>"
_FAILS: Final = frozenset(
    {
        Fault.RESET,
        Fault.SILENT,
        Fault.TOO_MANY,
        Fault.HTML,
        Fault.NO_CHOICES,
        Fault.GARBAGE,
        Fault.NEGATIVE_CHUNK,
    }
)
_GUARDED: Final = (b"/v1", b"/v2", b"/inference", b"/cohere")
"""What vLLM's key guards, and no more."""
FORMS: Final[dict[bytes, Form]] = {
    b"/v1/chat/completions": CHAT,
    b"/v1/completions": TEXT,
    b"/v1/responses": RESPONSES,
    b"/inference/v1/generate": GENERATE,
}
_PREFIXES: Final = ("", "chatcmpl-", "cmpl-", "resp_", "generate-tokens-")
_SLOWER: Final = 10


class Host(Protocol):
    """The engine, as far as its connections see it."""

    model: str
    faults: Faults
    itl_s: float
    stats: Stats
    served: Served
    scheduler: Scheduler
    admin: Admin | None
    answerer: Answerer
    oversized: Answerer
    expected_auth: bytes | None
    is_frozen: bool

    def is_cold(self) -> bool:
        """Whether no completion is served yet."""

    def read(self, path: bytes) -> tuple[int, bytes, bytes]:
        """Answer a GET: status, body and content type."""

    def opened(self, connection: "Connection") -> None:
        """Count a new connection."""

    def closed(self, connection: "Connection") -> None:
        """Forget a connection."""


class Connection(HttpProtocol, Line):
    """Splits requests off the byte stream and writes their answers."""

    def __init__(self, engine: Host, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._engine = engine
        self._job: Job | None = None
        self._request_id = ""
        self._fault: Fault | None = None
        self._ended: Callable[[], None] | None = None
        self._unanswered = 0

    @property
    def is_held(self) -> bool:
        """Whether the engine is frozen."""
        return self._engine.is_frozen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet nobody: the client speaks first."""
        self.transport = transport  # type: ignore[assignment]  # a TCP server's is a Transport
        self._engine.opened(self)
        self._await_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop whatever was made for the client."""
        self._engine.closed(self)
        super().connection_lost(exc)
        if self._job is not None:
            self._job.halt()
            self._engine.scheduler.leave(self._job)
        stats = self._engine.stats
        stats.in_flight -= self._unanswered
        stats.abandoned += self._unanswered
        self._unanswered = 0

    def request(self, head: bytes, lowered: bytes, body: bytes) -> None:
        """Answer by route."""
        method, _, rest = head.partition(b" ")
        path, _, query = rest[: rest.find(b" ")].partition(b"?")
        engine = self._engine
        expected = engine.expected_auth
        if expected is not None and path.startswith(_GUARDED):
            given = header(head, lowered, b"authorization") or b""
            if not hmac.compare_digest(given, expected):
                self.write(401, b'{"error":"Unauthorized"}')
                return
        form = FORMS.get(path)
        if form is not None and method == b"POST":
            self._completion(head, lowered, body, form)
        elif method == b"GET":
            status, content, kind = engine.read(path)
            self.write(status, content, kind=kind)
        elif method == b"POST" and path in LOOKUPS:
            self._look_up(path, body)
        elif method == b"POST" and engine.admin is not None and engine.admin.knows(path):
            self.is_busy = True
            engine.admin.ask(path, query, body, self._told)
        else:
            self.write(404, b'{"detail":"Not Found"}')

    def _look_up(self, path: bytes, body: bytes) -> None:
        engine = self._engine
        try:
            request = decode(body)
            model = request.get("model") or engine.model
            if engine.served.weights_of(model) is None:
                raise unknown_model(model, engine.model)
            answer = LOOKUPS[path](request)
            own = {"model": model, "max_model_len": engine.answerer.max_model_len}
            answer |= {name: own[name] for name in own if name in answer}
        except Refusal as refusal:
            self.write(refusal.status, refusal.body())
        else:
            self.write(200, orjson.dumps(answer))

    def _told(self, answer: tuple[int, bytes, bytes]) -> None:
        """Write what an administrator is told; after a failure vLLM hangs up."""
        status, body, kind = answer
        if self.transport.is_closing():
            return
        self.is_busy = False
        self.write(status, body, kind=kind)
        if status >= 500:
            self.transport.close()
        self.loop.call_soon(self.go_on)

    def _completion(self, head: bytes, lowered: bytes, body: bytes, form: Form) -> None:
        engine = self._engine
        stats, faults = engine.stats, engine.faults
        stats.requests += 1
        stats.in_flight += 1
        self._unanswered += 1
        stats.in_flight_max = max(stats.in_flight_max, stats.in_flight)
        self._request_id = (header(head, lowered, b"x-request-id") or b"").decode("latin-1")
        self._fault = fault = faults.strikes(stats.requests)
        if stats.requests <= faults.cold_requests or engine.is_cold():
            error = Refusal("The engine is starting.", status=503, kind="ServiceUnavailableError")
            self._later(lambda: self._refuse(error, extra=self._retry_after()))
        elif fault in _FAILS:
            self._later(lambda: self._fail(fault))
        else:
            self._answer(body, form, fault)

    def _answer(self, body: bytes, form: Form, fault: Fault | None) -> None:
        """Answer well, at once or at a pace, but for what the fault does to the bytes."""
        engine = self._engine
        answerer = engine.oversized if fault is Fault.OVERSIZED else engine.answerer
        before = engine.stats.tokens_made
        try:
            if fault in (None, Fault.OVERSIZED, Fault.HUGE_HEADER) and self._is_instant:
                if form is CHAT or form is TEXT:
                    content, streamed = answerer.answer(body, chat=form is CHAT)
                else:
                    content, streamed = answerer.complete(form, decode(body))
            elif fault in (Fault.CUT, Fault.HALF_JSON):
                content, streamed = answerer.complete(form, decode(body))
                self._later(lambda: self._half(content, streamed, fault))
                return
            else:
                self._run(answerer, body, form, fault)
                return
        except Refusal as error:
            refusal = error
            self._later(lambda: self._refuse(refusal))
            return
        if self._request_id:
            engine.stats.made[self._request_id] += engine.stats.tokens_made - before
        self._good(content, _EVENTS if streamed else JSON)

    @property
    def _is_instant(self) -> bool:
        faults = self._engine.faults
        return not faults.delay_s and not self._engine.itl_s and self._engine.scheduler.is_open

    def _run(self, answerer: Answerer, body: bytes, form: Form, fault: Fault | None) -> None:
        """Make the answer token by token; the head of a stream goes first, as vLLM's does."""
        engine, faults = self._engine, self._engine.faults
        slower = _SLOWER if fault is Fault.SLOW else 1
        form, made = answerer.begin(form, decode(body))
        if fault in BREAKS and not made.ask.stream:
            self._fault = fault = None
        run = Run(
            made,
            form,
            self,
            delay_s=faults.delay_s * slower,
            itl_s=engine.itl_s * slower,
            fault=fault,
        )
        given = {self._request_id, str(made.ask.request.get("request_id") or "")} - {""}
        run.names = frozenset(prefix + name for name in given for prefix in _PREFIXES)
        self._ended = lambda: answerer.ended(made)
        if made.ask.stream:
            extra = _HUGE_HEADER if fault is Fault.HUGE_HEADER else b""
            start = STATUS_LINES[200] + b"Content-Type: " + _EVENTS + b"\r\n" + extra
            self.transport.write(start + b"Transfer-Encoding: chunked\r\n\r\n")
        self._start(run)

    def _later(self, do: Callable[[], None]) -> None:
        """Do it when a completion would have its first token."""
        if self._is_instant:
            do()
            return
        slower = _SLOWER if self._fault is Fault.SLOW else 1
        self._start(Later(self._engine.faults.delay_s * slower, do))

    def _start(self, job: Job) -> None:
        self.is_busy = True
        self._job = job
        self._engine.scheduler.admit(job)

    def event(self, data: bytes) -> None:
        """Write a part of a stream as a chunk."""
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def made(self, tokens: int) -> None:
        """Count tokens at once, so that it shows when they stop."""
        stats = self._engine.stats
        stats.tokens_made += tokens
        if self._request_id:
            stats.made[self._request_id] += tokens

    def broken(self) -> None:
        """Close without ending the stream."""
        self._settle(200)
        self._done()
        self.transport.close()

    def finished(self, body: bytes | None) -> None:
        """End the stream, or write the whole answer."""
        if self._ended is not None:
            self._ended()
        if body is not None:
            self._good(body, JSON)
        else:
            self._count_good()
            self._settle(200)
            self.transport.write(b"0\r\n\r\n")
            self._after()

    def _good(self, content: bytes, kind: bytes) -> None:
        self._count_good()
        extra = _HUGE_HEADER if self._fault is Fault.HUGE_HEADER else b""
        self._answered(200, content, kind=kind, extra=extra)

    def _count_good(self) -> None:
        if self._request_id and self._fault in _GOOD:
            self._engine.stats.answered[self._request_id] += 1

    def _half(self, content: bytes, streamed: bool, fault: Fault | None) -> None:
        kind = _EVENTS if streamed else JSON
        if fault is Fault.HALF_JSON:
            self._answered(200, content[: len(content) // 2], kind=kind)
            return
        self._settle(200)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
        self.transport.write(head % (kind, len(content)) + content[: len(content) // 2])
        self._done()
        self.transport.close()

    def _refuse(self, refusal: Refusal, extra: bytes = b"") -> None:
        self._answered(refusal.status, refusal.body(), extra=extra)

    def _fail(self, fault: Fault | None) -> None:
        match fault:
            case Fault.RESET:
                self._reset()
            case Fault.SILENT:
                self.is_busy = True
            case Fault.TOO_MANY:
                error = Refusal("Too many requests.", status=429, kind="RateLimitError")
                self._refuse(error, extra=self._retry_after())
            case Fault.HTML:
                self._answered(500, _HTML, kind=b"text/html")
            case Fault.GARBAGE | Fault.NEGATIVE_CHUNK:
                self._settle(0)
                self.transport.write(_GARBAGE if fault is Fault.GARBAGE else _NEGATIVE_CHUNK)
                self._done()
                self.transport.close()
            case _:
                self._answered(200, _NO_CHOICES)

    def _answered(
        self, status: int, body: bytes, *, kind: bytes = JSON, extra: bytes = b""
    ) -> None:
        self._settle(status)
        self.write(status, body, kind=kind, extra=extra, chunked=self._engine.faults.chunked)
        self._after()

    def _after(self) -> None:
        """Make way for the next request, if the connection is to see one."""
        if self._job is not None:
            self._done()
        faults = self._engine.faults
        if faults.keepalive_s or faults.close_idle_after_requests:
            self._await_more()

    def _settle(self, status: int) -> None:
        stats = self._engine.stats
        stats.statuses[status] += 1
        stats.in_flight -= 1
        self._unanswered -= 1

    def _done(self) -> None:
        """Make way for the next request."""
        self._ended = None
        if self._job is not None:
            job, self._job = self._job, None
            self._engine.scheduler.leave(job)
        self.is_busy = False
        self.loop.call_soon(self.go_on)

    def _await_more(self) -> None:
        faults = self._engine.faults
        self.await_more(faults.keepalive_s, faults.close_idle_after_requests)

    def _reset(self) -> None:
        """Close so that the kernel sends RST, not FIN."""
        self._settle(0)
        self._done()
        wire: socket.socket = self.transport.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _retry_after(self) -> bytes:
        return b"Retry-After: %d\r\n" % self._engine.faults.retry_after_s


_GOOD: Final = (None, Fault.SLOW, Fault.HUGE_HEADER)
"""After which a good answer was written all the same."""
