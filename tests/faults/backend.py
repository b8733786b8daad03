"""A scripted HTTP backend: each request plays the next script, and everything seen is kept.

A script is a tuple of steps: bytes are sent, a float is slept, a Gate is waited for, an `End` ends
the connection or falls silent. After its last step the connection is kept for the next request.
Speaks raw TCP on purpose: it can say what no HTTP library would. Runs on the gateway's loop.
"""

import asyncio
import json
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class End(StrEnum):
    """How a script can end, other than by keeping the connection."""

    CLOSE = "close"
    """FIN."""
    RESET = "reset"
    """RST."""
    HANG = "hang"
    """Nothing more comes; the connection stays open."""


class Gate:
    """A point that a script passes when the test says so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_open = False
        self._waiting: list[asyncio.Future[None]] = []

    def open(self) -> None:
        """Let every script pass, now and later; from any thread."""
        with self._lock:
            self._is_open = True
            waiting, self._waiting = self._waiting, []
        if waiting:
            waiting[0].get_loop().call_soon_threadsafe(_let_pass, waiting)

    async def passed(self) -> None:
        """Wait until it is open."""
        with self._lock:
            if self._is_open:
                return
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
        await turn


def _let_pass(waiting: list[asyncio.Future[None]]) -> None:
    for turn in waiting:
        if not turn.done():
            turn.set_result(None)


Step = bytes | float | Gate | End
Script = tuple[Step, ...]


def plain(
    body: bytes,
    *,
    status: bytes = b"200 OK",
    headers: bytes = b"",
    kind: bytes = b"application/json",
) -> bytes:
    """Return a whole answer with a length."""
    return b"HTTP/1.1 %b\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
        status,
        kind,
        headers,
        len(body),
        body,
    )


EVENTS_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    """Return a chunk of a body without a length."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def event(text: str) -> bytes:
    """Return a server-sent event with one piece of a chat completion."""
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    piece = {
        "id": "c-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [delta],
    }
    return b"data: %b\n\n" % json.dumps(piece).encode()


def completion(text: str = "hi", **more: Any) -> bytes:
    """Return a chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    head = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m"}
    return json.dumps({**head, "choices": [choice], "usage": usage, **more}).encode()


OK: Script = (plain(completion()),)


def stream(*events: bytes, gap_s: float = 0.0) -> Script:
    """Return the script of a stream that ends well, each event in a chunk of its own."""
    steps: list[Step] = [EVENTS_HEAD]
    for data in (*events, b"data: [DONE]\n\n"):
        steps += [gap_s, chunk(data)] if gap_s else [chunk(data)]
    return (*steps, LAST_CHUNK)


@dataclass(slots=True)
class Seen:
    """A request as it arrived, byte for byte, and what became of it."""

    head: bytes
    body: bytes
    connection: int
    finished: bool = False
    aborted_s: float | None = None
    """When the other side dropped it (time.perf_counter), or None."""

    @property
    def target(self) -> bytes:
        return self.head.split(b" ", 2)[1]

    def headers(self, name: bytes) -> list[bytes]:
        """Return the values of all headers of that name."""
        lines = [line.partition(b":") for line in self.head.split(b"\r\n")[1:]]
        return [value.strip() for key, _, value in lines if key.lower() == name]


@dataclass(slots=True)
class Backend:
    """A server of scripts: first those of `scripts`, each once, then `then` for ever."""

    then: Script = OK
    scripts: deque[Script] = field(default_factory=deque)
    named: dict[bytes, Script] = field(default_factory=dict)
    """Before all others: what a request with `X-Script: NAME` plays."""
    requests_a_connection: int = 1 << 30
    """So many are answered on one connection; the next is met by its end, as a stale one is."""
    stale_end: End = End.CLOSE
    seen: list[Seen] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)
    """Every byte that came, except for those of probes of /health."""
    keeps_raw: bool = True
    connections: int = 0
    stale: int = 0
    probes: int = 0
    is_frozen: bool = False
    port: int = 0
    open: set["_Connection"] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; again at the same port after `kill`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self.port, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Be gone at once: connections are reset, new ones refused."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for connection in list(self.open):
            connection.end(End.RESET)
        await server.wait_closed()

    def freeze(self) -> None:
        """Hang as a stopped process does: connections come about, and nothing is answered."""
        self.is_frozen = True

    def drop_idle(self) -> None:
        """Close the connections that wait for a request."""
        for connection in [one for one in self.open if one.is_idle]:
            connection.transport.close()

    @property
    def aborted(self) -> int:
        """Requests whose sender left before their script ended."""
        return sum(seen.aborted_s is not None for seen in self.seen)

    @property
    def busy(self) -> int:
        """Requests whose script is being played."""
        return sum(not seen.finished and seen.aborted_s is None for seen in self.seen)

    def script(self, seen: Seen) -> Script:
        """Return what the next request plays."""
        if self.named and (name := seen.headers(b"x-script")):
            return self.named[name[0]]
        return self.scripts.popleft() if self.scripts else self.then


class _Connection(asyncio.Protocol):
    """One connection: splits requests off, plays a script for each, in turn."""

    transport: asyncio.Transport

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._seen: Seen | None = None
        self._served = 0
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a TCP server's is a Transport
        self._backend.open.add(self)
        self._backend.connections += 1
        self._number = self._backend.connections

    def connection_lost(self, exc: Exception | None) -> None:
        self._backend.open.discard(self)
        if self._seen is not None and not self._seen.finished:
            self._seen.aborted_s = time.perf_counter()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._backend.is_frozen:
            self._next()

    @property
    def is_idle(self) -> bool:
        return self._task is None and not self._buffer

    def _next(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if self._task is not None or end < 0:
            return
        head = bytes(self._buffer[:end])
        length = int((Seen(head, b"", 0).headers(b"content-length") or [b"0"])[0])
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        backend = self._backend
        if head.startswith(b"GET /health"):
            backend.probes += 1
            self.transport.write(plain(b""))
            return
        if backend.keeps_raw:
            backend.raw += head + b"\r\n\r\n" + body
        if self._served >= backend.requests_a_connection:
            backend.stale += 1
            self.end(backend.stale_end)
            return
        self._served += 1
        self._seen = Seen(head, body, self._number)
        backend.seen.append(self._seen)
        self._play(backend.script(self._seen))

    def _play(self, script: Script) -> None:
        """Play a script: at once if it only sends, which is what a quick engine does."""
        if len(script) == 1 and isinstance(script[0], bytes):
            self.transport.write(script[0])
            assert self._seen is not None
            self._seen.finished = True
        else:
            self._task = asyncio.get_running_loop().create_task(self._steps(script))

    async def _steps(self, script: Script) -> None:
        assert self._seen is not None
        for step in script:
            match step:
                case bytes():
                    self.transport.write(step)
                    await self._writable.wait()
                case float():
                    await asyncio.sleep(step)
                case Gate():
                    await step.passed()
                case End.HANG:
                    await asyncio.Event().wait()
                case End():
                    self._seen.finished = True
                    self.end(step)
                    return
        self._seen.finished = True
        self._task = None
        self._next()

    def end(self, how: End) -> None:
        """End the connection: what was written before goes out first with FIN, not with RST."""
        if how is End.RESET:
            wire: socket.socket = self.transport.get_extra_info("socket")
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self.transport.close()
