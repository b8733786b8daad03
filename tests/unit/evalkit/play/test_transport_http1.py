"""What the hot path's transport does with its connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from evalkit.play.direct import Http1Transport
from evalkit.play.transport import ConnectFailed, ConnectionLost, ResponseTimeout
from tests.unit.evalkit.play.test_transport import (
    HTTP1,
    HTTP1_UVLOOP,
    OK,
    Answer,
    Client,
    ok,
    serving,
)

LATER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nlater"


@pytest.fixture(params=[HTTP1, HTTP1_UVLOOP], ids=["asyncio", "uvloop"])
def client(request: pytest.FixtureRequest) -> Client:
    assert isinstance(request.param, Client)
    return request.param


async def post(transport: Http1Transport, body: bytes = b"{}", timeout_s: float = 20) -> bytes:
    return (await transport.post("/chat", body, timeout_s=timeout_s)).body


def test_a_connection_that_was_closed_while_idle_is_replaced_once(client: Client) -> None:
    async def scenario() -> None:
        async with (
            serving(OK, Answer(b"", "close"), Answer(ok(b"again"))) as server,
            Http1Transport(server.url) as transport,
        ):
            await post(transport)
            assert await post(transport, b"same") == b"again"
            assert len(server.writers) == 2
            assert [request[-4:] for request in server.requests[1:]] == [b"same", b"same"]

    client.run(scenario())


@pytest.mark.parametrize(
    ("answers", "requests"),
    [
        ([Answer(b"", "close")], 1),
        ([OK, Answer(b"", "close")], 3),
        ([OK, Answer(b"HTTP", "close")], 2),
    ],
    ids=["fresh", "twice", "after a byte"],
)
def test_nothing_else_is_sent_twice(client: Client, answers: list[Answer], requests: int) -> None:
    async def scenario() -> None:
        async with serving(*answers) as server, Http1Transport(server.url) as transport:
            if answers[0] is OK:
                await post(transport)
            with pytest.raises(ConnectionLost) as caught:
                await post(transport)
            assert caught.value.any_byte is bool(answers[-1].data)
            assert len(server.requests) == requests

    client.run(scenario())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  what is waited for is the transport's own doing
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(ok(b"bye"), "close"),
        Answer(ok(b"bye") + LATER),
        Answer(ok(b"bye") + b"junk"),
        Answer(ok(b"bye", "Connection: close")),
        Answer(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nbye"),
        Answer(ok(b"bye") + LATER, piece_bytes=len(ok(b"bye"))),
    ],
    ids=["closed", "surplus", "junk", "connection: close", "http/1.0", "unasked"],
)
def test_a_connection_that_is_done_takes_no_request(client: Client, answer: Answer) -> None:
    async def scenario() -> None:
        async with serving(answer, OK) as server, Http1Transport(server.url) as transport:
            assert await post(transport) == b"bye"
            await until(lambda: not transport._idle)
            await server.left.wait()
            assert await post(transport) == b"{}"
            assert (len(server.writers), len(server.requests)) == (2, 2)

    client.run(scenario())


def test_an_answer_before_the_body_is_read_ends_the_connection(client: Client) -> None:
    async def scenario() -> None:
        refusal = Answer(ok(b"too large", status="413 Content Too Large"), "early")
        async with serving(refusal) as server, Http1Transport(server.url) as transport:
            assert await post(transport, bytes(32 << 20)) == b"too large"
            assert not transport._idle

    client.run(scenario())


def test_the_connection_used_last_is_used_next(client: Client) -> None:
    async def scenario() -> None:
        async with serving(OK) as server, Http1Transport(server.url) as transport:
            await asyncio.gather(*(post(transport) for _ in range(4)))
            assert len(transport._idle) == len(server.writers) == 4
            last = list(transport._idle)[-1]
            await post(transport)
            assert list(transport._idle)[-1] is last

    client.run(scenario())


def test_each_request_has_its_own_deadline(client: Client) -> None:
    async def scenario() -> None:
        async with (
            serving(Answer(b"", "silence")) as server,
            Http1Transport(server.url) as transport,
        ):
            long = asyncio.create_task(post(transport, timeout_s=20))
            async with asyncio.TaskGroup() as group:
                for timeout_s in (0.3, 0.1, 0.2):
                    group.create_task(expire(transport, timeout_s))
            assert not long.done()
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long

    async def expire(transport: Http1Transport, timeout_s: float) -> None:
        started = asyncio.get_running_loop().time()
        with pytest.raises(ResponseTimeout):
            await post(transport, timeout_s=timeout_s)
        assert timeout_s - 0.02 < asyncio.get_running_loop().time() - started < timeout_s + 5

    client.run(scenario())


def test_a_request_without_an_end_is_waited_for(client: Client) -> None:
    async def scenario() -> None:
        async with serving(OK) as server, Http1Transport(server.url) as transport:
            assert await post(transport, timeout_s=float("inf")) == b"{}"

    client.run(scenario())


def test_a_cancelled_request_does_not_end_the_next_one(client: Client) -> None:
    """The response is there, its task has not run yet, and the connection serves another."""

    async def scenario() -> None:
        async with serving(OK, Answer(LATER)) as server, Http1Transport(server.url) as transport:
            first = asyncio.create_task(post(transport))
            await until(lambda: bool(transport._idle))  # it has come; first may not have run yet
            second = asyncio.create_task(post(transport))
            first.cancel()
            assert await second == b"later"
            assert len(server.writers) == 1

    client.run(scenario())


def test_a_silent_connection_is_probed(client: Client) -> None:
    async def scenario() -> None:
        async with serving(OK) as server, Http1Transport(server.url) as transport:
            await post(transport)
            (connection,) = transport._alive
            wire = connection._socket.get_extra_info("socket")
            assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1

    client.run(scenario())


def test_a_connection_given_up_in_the_making_leaves_nothing(client: Client) -> None:
    async def scenario() -> None:
        async with serving(OK) as server, Http1Transport(server.url) as transport:
            for microseconds in range(0, 1000, 50):
                with suppress(ResponseTimeout):
                    await post(transport, timeout_s=microseconds / 1e6)
            assert await post(transport) == b"{}"

    client.run(scenario())


def test_a_server_that_hangs_up_at_once_is_noticed(client: Client) -> None:
    async def scenario() -> None:
        listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with listener, Http1Transport(f"http://127.0.0.1:{port}") as transport:
            for _ in range(20):
                with pytest.raises(ConnectionLost) as caught:
                    await post(transport)
                assert not caught.value.any_byte

    client.run(scenario())


def test_an_end_before_the_first_use_is_noticed(client: Client) -> None:
    async def scenario() -> None:
        async with serving(OK) as server, Http1Transport(server.url) as transport:
            await post(transport)
            connection, _ = transport._idle.popitem()
            server.writers[0].close()
            await until(lambda: not transport._alive)
            with pytest.raises(ConnectionError):
                await connection.send(b"", b"", 0)

    client.run(scenario())


def test_closing_ends_what_is_under_way(client: Client) -> None:
    async def scenario() -> None:
        async with serving(OK, Answer(b"", "silence")) as server:
            transport = Http1Transport(server.url)
            await post(transport)
            call = asyncio.create_task(post(transport))
            server.asked.clear()
            await server.asked.wait()
            await transport.aclose()
            with pytest.raises(ConnectionLost, match="closed"):
                await call
            await server.left.wait()
            with pytest.raises(ConnectionLost, match="closed"):
                await post(transport)
            await transport.aclose()

    client.run(scenario())


def test_a_name_is_looked_up_once_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    lookup = socket.getaddrinfo

    def counting(host: str, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        return lookup(host, *rest, **more)

    async def scenario() -> None:
        async with serving(OK) as server:
            url = server.url.replace("127.0.0.1", "localhost")
            monkeypatch.setattr(socket, "getaddrinfo", counting)
            async with Http1Transport(url) as transport:
                await asyncio.gather(*(post(transport) for _ in range(20)))
                assert len(server.writers) > 1

    HTTP1.run(scenario())
    assert asked == ["localhost"]


def test_every_address_is_tried_and_a_failure_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [["127.0.0.2"], ["127.0.0.2", "127.0.0.1"]]

    def lookup(host: str, *rest: Any, **more: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in found.pop(0)]

    async def scenario() -> None:
        async with serving(OK) as server:
            monkeypatch.setattr(socket, "getaddrinfo", lookup)
            url = server.url.replace("127.0.0.1", "moving.invalid")
            async with Http1Transport(url) as transport:
                with pytest.raises(ConnectFailed) as caught:
                    await post(transport)
                assert caught.value.refused
                assert await post(transport) == b"{}"

    HTTP1.run(scenario())
