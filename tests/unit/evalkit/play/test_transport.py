"""What every transport does, against real servers on the loopback interface."""

from __future__ import annotations

import asyncio
import gzip
import re
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.play.direct import Http1Transport
from evalkit.play.proxied import HttpxTransport
from evalkit.play.transport import (
    ConnectionLost,
    ProtocolViolation,
    Response,
    ResponseTimeout,
    Transport,
    TransportError,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Sends `data`, then listens on ("keep"), ends ("close"), is silent or trickles chunks."""

    data: bytes = b""
    then: str = "keep"
    piece_bytes: int = 1 << 30


def ok(body: bytes = b"{}", *lines: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


OK = Answer(ok())


@dataclass(slots=True)
class Server:
    """Gives its answers in turn, the last one for ever, and keeps what it was asked."""

    answers: list[Answer]
    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    handlers: set[asyncio.Task[None] | None] = field(default_factory=set)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """A connection has ended."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.handlers.add(asyncio.current_task())
        with suppress(OSError, asyncio.IncompleteReadError):  # the client has gone
            while await self.answer(reader, writer):
                pass
        writer.close()
        self.left.set()

    async def forsaken(self) -> None:
        """Wait until the client has closed its connection, if its time sufficed to open one."""
        if self.writers:
            await self.left.wait()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        body = b""
        if length is not None and answer.then != "early":
            body = await reader.readexactly(int(length[1]))
        self.requests.append(head + body)
        self.asked.set()
        await write_pieces(writer, answer)
        if answer.then in ("silence", "early"):
            while await reader.read(1 << 16) and answer.then == "silence":
                pass
        return answer.then == "keep"


async def write_pieces(writer: asyncio.StreamWriter, answer: Answer) -> None:
    for i in range(0, len(answer.data), answer.piece_bytes):
        writer.write(answer.data[i : i + answer.piece_bytes])
        await writer.drain()
        await asyncio.sleep(0)
    while answer.then == "trickle":
        writer.write(b"1\r\nx\r\n")
        await writer.drain()
        await asyncio.sleep(0)


@asynccontextmanager
async def serving(
    *answers: Answer, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    server = Server(list(answers))
    listener = await asyncio.start_server(server.serve, host, 0, ssl=tls, limit=1 << 24)
    port = listener.sockets[0].getsockname()[1]
    scheme, name = "https" if tls else "http", f"[{host}]" if ":" in host else host
    server.url = f"{scheme}://{name}:{port}"
    try:
        yield server
    finally:
        listener.close()
        for writer in server.writers:
            writer.transport.abort()
        await asyncio.gather(*(task for task in server.handlers if task is not None))


Scenario = Coroutine[Any, Any, None]


@dataclass(frozen=True, slots=True)
class Client:
    """A transport and the event loop it runs on."""

    open: Callable[..., Transport]
    loop: Callable[[], asyncio.AbstractEventLoop]

    def run(self, scenario: Scenario) -> None:
        with asyncio.Runner(loop_factory=self.loop) as runner:
            runner.run(asyncio.wait_for(scenario, 30))


HTTP1 = Client(Http1Transport, asyncio.new_event_loop)
HTTP1_UVLOOP = Client(Http1Transport, uvloop.new_event_loop)
HTTPX = Client(HttpxTransport, asyncio.new_event_loop)


every_client = pytest.mark.parametrize(
    "client", [HTTP1, HTTP1_UVLOOP, HTTPX], ids=["http1", "http1-uvloop", "httpx"]
)
pytestmark = every_client


async def ask(client: Client, server: Server, *, timeout_s: float = 20, **options: Any) -> Response:
    async with client.open(server.url, **options) as transport:
        return await transport.post("/chat", b"{}", timeout_s=timeout_s)


def test_a_body_goes_and_a_response_comes(client: Client) -> None:
    async def scenario() -> None:
        async with (
            serving(Answer(ok(b'{"a":1}', "X-Policy-Version: 7", status="429 Slow"))) as server,
            client.open(server.url + "/v1", headers={"Authorization": "Bearer key"}) as transport,
        ):
            response = await transport.post(
                "/chat?x=1", b'{"b":2}', {"X-Session-ID": "s"}, timeout_s=20
            )
        assert (response.status, response.body) == (429, b'{"a":1}')
        assert dict(response.headers) == {"x-policy-version": "7", "content-length": "7"}
        assert 0 < response.elapsed_s < 20
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        assert (line, body) == ("POST /v1/chat?x=1 HTTP/1.1", b'{"b":2}')
        assert {name.lower(): value for name, value in (each.split(": ") for each in lines)} == {
            "host": server.url.removeprefix("http://"),
            "accept": "application/json",
            "content-type": "application/json",
            "user-agent": "palaestra",
            "authorization": "Bearer key",
            "x-session-id": "s",
            "content-length": "7",
        }

    client.run(scenario())


def test_get_has_no_body(client: Client) -> None:
    async def scenario() -> None:
        async with serving(OK) as server, client.open(server.url) as transport:
            response = await transport.get(b"/models", b"X-A: b\r\n", timeout_s=20)
        assert response.status == 200
        assert server.requests[0].startswith(b"GET /models HTTP/1.1\r\n")
        assert b"\r\nx-a: b\r\n" in server.requests[0].lower()
        assert b"content-length" not in server.requests[0].lower()

    client.run(scenario())


def test_a_connection_is_used_again_and_not_shared(client: Client) -> None:
    async def scenario() -> None:
        async with serving(OK) as server, client.open(server.url) as transport:
            for _ in range(5):
                await transport.post("/chat", b"{}", timeout_s=20)
            assert len(server.writers) == 1
            posts = (transport.post("/chat", b"{}", timeout_s=20) for _ in range(8))
            assert [each.status for each in await asyncio.gather(*posts)] == [200] * 8
            assert len(server.writers) <= 8
            assert len(server.requests) == 13

    client.run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        Answer(ok(b"hello"), piece_bytes=1),
        Answer(ok(b"hello", "Connection: close"), "close"),
        Answer(b"HTTP/1.1 200 OK\r\n\r\nhello", "close"),
        Answer(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "close"),
        Answer(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"1\r\nh\r\n4;x=y\r\nello\r\n0\r\n\r\n",
            piece_bytes=1,
        ),
        Answer(b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"hello")),
        Answer(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok(b"hello"), piece_bytes=9),
        Answer(ok(gzip.compress(b"hello"), "Content-Encoding: gzip")),
    ],
    ids=["pieces", "close", "to the end", "http/1.0", "chunked", "100", "103", "gzip"],
)
def test_a_body_comes_whole_however_it_is_framed(client: Client, answer: Answer) -> None:
    async def scenario() -> None:
        async with serving(answer) as server, client.open(server.url) as transport:
            for _ in range(2):
                response = await transport.post("/chat", b"{}", timeout_s=20)
                assert (response.status, response.body) == (200, b"hello")

    client.run(scenario())


def test_large_bodies_go_and_come(client: Client) -> None:
    async def scenario() -> None:
        async with serving(Answer(ok(b"r" * 3_000_000))) as server, client.open(server.url) as http:
            response = await http.post("/chat", b"q" * 2_000_000, timeout_s=20)
        assert response.body == b"r" * 3_000_000
        assert server.requests[0].endswith(b"\r\n\r\n" + b"q" * 2_000_000)

    client.run(scenario())


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_some_responses_have_no_body(client: Client, status: str) -> None:
    async def scenario() -> None:
        async with serving(Answer(f"HTTP/1.1 {status}\r\nETag: x\r\n\r\n".encode())) as server:
            response = await ask(client, server)
        assert (response.status, response.body) == (int(status[:3]), b"")

    client.run(scenario())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(b"", "close"), ConnectionLost),
        (Answer(b"HTTP/1.1 200 OK\r\nContent-Le", "close"), ConnectionLost),
        (Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "close"), ConnectionLost),
        (
            Answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhel", "close"),
            ConnectionLost,
        ),
        (Answer(b"", "silence"), ResponseTimeout),
        (Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "silence"), ResponseTimeout),
        (Answer(b"HTTP/1.1 100 Continue\r\n\r\n", "silence"), ResponseTimeout),
        (Answer(b"\0\1\2\3\r\n\r\n", "silence"), ProtocolViolation),
        (Answer(b"<html>it works</html>\r\n\r\n", "silence"), ProtocolViolation),
        (Answer(ok(b"x", "Content-Encoding: br")), ProtocolViolation),
        (Answer(ok(b"x", "Content-Encoding: gzip")), ProtocolViolation),
        (Answer(ok(gzip.compress(bytes(9_000)), "Content-Encoding: gzip")), ProtocolViolation),
        (Answer(ok(bytes(9_000))), ProtocolViolation),
        (Answer(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(9_000), "silence"), ProtocolViolation),
    ],
)
def test_a_response_that_does_not_come_has_a_name(
    client: Client, answer: Answer, error: type[TransportError]
) -> None:
    async def scenario() -> None:
        async with serving(answer) as server:
            timeout_s = 0.25 if error is ResponseTimeout else 20
            with pytest.raises(TransportError, match=re.escape(server.url)) as caught:
                await ask(client, server, timeout_s=timeout_s, max_body_bytes=8_000)
            await server.forsaken()
        assert type(caught.value) is error
        if isinstance(caught.value, ConnectionLost):
            begun = b"\r\n\r\n" in answer.data if client is HTTPX else bool(answer.data)
            assert caught.value.any_byte is begun

    client.run(scenario())


def test_a_trickle_does_not_extend_the_deadline(client: Client) -> None:
    async def scenario() -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with serving(Answer(head, "trickle")) as server:
            with pytest.raises(ResponseTimeout):
                await ask(client, server, timeout_s=0.25)
            await server.forsaken()

    client.run(scenario())


def test_cancelling_closes_the_connection(client: Client) -> None:
    async def scenario() -> None:
        late = Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nla", "silence")
        async with serving(late, OK) as server, client.open(server.url) as transport:
            call = asyncio.create_task(transport.post("/chat", b"1", timeout_s=20))
            await server.asked.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await server.left.wait()
            response = await transport.post("/chat", b"2", timeout_s=20)
            assert (response.body, len(server.writers)) == (b"{}", 2)

    client.run(scenario())


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("chat", {}),
        ("/chat HTTP/1.1\r\nX-A: b", {}),
        ("/chat", {"X-A": "b\r\nX-C: d"}),
        ("/chat", {"Content-Length": "9"}),
        ("/chat", b"X-A: b\r\n\r\n"),
    ],
)
def test_what_cannot_be_sent_is_not(
    client: Client, path: str, headers: Mapping[str, str] | bytes
) -> None:
    async def scenario() -> None:
        async with serving(OK) as server, client.open(server.url) as transport:
            with pytest.raises(ValueError, match="expected"):
                await transport.post(path, b"{}", headers, timeout_s=20)
            assert not server.writers

    client.run(scenario())


def test_a_static_header_is_checked(client: Client) -> None:
    with pytest.raises(ValueError, match="authorization") as caught:
        client.open("http://127.0.0.1:9", headers={"Authorization": "Bearer key\n"})
    assert "key" not in str(caught.value)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=60), prefix=st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n"]))
def test_garbage_raises_nothing_else(client: Client, data: bytes, prefix: bytes) -> None:
    async def scenario() -> None:
        async with serving(Answer(prefix + data, "close")) as server:
            try:
                response = await ask(client, server)
            except (ProtocolViolation, ConnectionLost):
                return
            assert response.status >= 200

    client.run(scenario())
