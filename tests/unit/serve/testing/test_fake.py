"""FakeEngine over a socket: framing, faults, counts. What it answers is tested in test_answers."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import orjson
import pytest

from serve.testing import FakeEngine, Faults

BODY = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
Talk = Callable[[FakeEngine, httpx.AsyncClient], Awaitable[Any]]


def play(engine: FakeEngine, talk: Talk) -> Any:
    """Run the engine and a client against it."""

    async def run() -> Any:
        async with engine, httpx.AsyncClient(base_url=engine.root_url, timeout=10) as client:
            return await talk(engine, client)

    return asyncio.run(run())


async def chat(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=BODY, headers=headers)


async def exchange(engine: FakeEngine, *pieces: bytes) -> bytes:
    """Write raw bytes and read until the engine closes."""
    port = int(engine.root_url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    writer.write_eof()
    received = await reader.read()
    writer.close()
    await writer.wait_closed()
    return received


def test_counts_and_log_of_finished_requests() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> Any:
        for request_id in ("a", "b", "a"):
            await chat(client, **{"X-Request-ID": request_id})
        await client.post("/v1/chat/completions", content=b"{", headers={"X-Request-ID": "bad"})
        return (await client.get("/stats")).json(), (await client.get("/requests")).json()

    stats, requests = play(FakeEngine(), talk)
    assert requests == {"a": 2, "b": 1}
    assert stats == {
        "requests": 4,
        "statuses": {"200": 3, "400": 1},
        "in_flight": 0,
        "in_flight_max": 1,
        "connections": 1,
        "connections_max": 1,
        "connections_total": 1,
        "abandoned": 0,
        "tokens_made": 9,
    }


def test_delayed_requests_are_in_flight_together() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> int:
        answers = await asyncio.gather(*(chat(client) for _ in range(8)))
        assert [answer.status_code for answer in answers] == [200] * 8
        return engine.stats.in_flight_max

    assert play(FakeEngine(faults=Faults(delay_s=0.2)), talk) == 8


def test_a_client_that_leaves_is_counted_as_such() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> tuple[int, int, int]:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json=BODY, timeout=0.05)
        async with asyncio.timeout(5):
            while not engine.stats.abandoned:  # noqa: ASYNC110  # the socket's end has no event
                await asyncio.sleep(0)
        return engine.stats.abandoned, engine.stats.in_flight, sum(engine.stats.answered.values())

    assert play(FakeEngine(faults=Faults(delay_s=60)), talk) == (1, 0, 0)


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (Faults(too_many_every=2, retry_after_s=3), [200, (429, "3"), 200, (429, "3")]),
        (Faults(cold_requests=2, retry_after_s=1), [(503, "1"), (503, "1"), 200, 200]),
        (Faults(html_500_every=2), [200, (500, None), 200, (500, None)]),
        (Faults(reset_every=3), [200, 200, httpx.ReadError, 200]),
        (Faults(cut_every=3), [200, 200, httpx.RemoteProtocolError, 200]),
    ],
    ids=["429", "cold", "html", "reset", "cut"],
)
def test_faults_strike_in_turn(faults: Faults, expected: list[Any]) -> None:
    async def outcome(client: httpx.AsyncClient) -> Any:
        try:
            answer = await chat(client)
        except httpx.TransportError as error:
            return type(error)
        if answer.status_code == 200:
            return 200
        return answer.status_code, answer.headers.get("Retry-After")

    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> list[Any]:
        return [await outcome(client) for _ in range(4)]

    assert play(FakeEngine(faults=faults), talk) == expected


def test_a_reset_reaches_the_client_as_a_reset() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> None:
        body = orjson.dumps(BODY)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
        with pytest.raises(ConnectionResetError):
            await exchange(engine, head + body)

    play(FakeEngine(faults=Faults(reset_every=1)), talk)


def test_broken_replies() -> None:
    async def content(faults: Faults) -> bytes:
        async with FakeEngine(faults=faults) as engine, httpx.AsyncClient() as client:
            answer = await client.post(
                f"{engine.base_url}/chat/completions", json=BODY, headers={"X-Request-ID": "r"}
            )
            assert answer.status_code == 200
            assert not engine.stats.answered
            return answer.content

    half = asyncio.run(content(Faults(half_json_every=1)))
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(half)
    assert orjson.loads(asyncio.run(content(Faults(no_choices_every=1))))["choices"] == []
    assert len(asyncio.run(content(Faults(oversized_every=1)))) > 1_000_000


def test_silence() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json=BODY, timeout=0.1)

    play(FakeEngine(faults=Faults(silent_every=1)), talk)


def test_cold_by_the_clock() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> list[int]:
        cold = [(await client.get("/health")).status_code, (await chat(client)).status_code]
        engine.cold_until = 0
        return [*cold, (await client.get("/health")).status_code, (await chat(client)).status_code]

    assert play(FakeEngine(faults=Faults(cold_s=3600)), talk) == [503, 503, 200, 200]


def test_chunked_bodies_are_the_same_bodies() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> tuple[str | None, bytes]:
        answer = await chat(client)
        return answer.headers.get("Transfer-Encoding"), answer.content

    plain, chunked = play(FakeEngine(), talk), play(FakeEngine(faults=Faults(chunked=True)), talk)
    assert (plain[0], chunked[0]) == (None, "chunked")
    assert plain[1] == chunked[1]


def test_key() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> list[int]:
        return [
            (await chat(client)).status_code,
            (await chat(client, Authorization="Bearer no")).status_code,
            (await chat(client, Authorization="Bearer yes")).status_code,
            (await client.get("/health")).status_code,
        ]

    assert play(FakeEngine(api_key="yes"), talk) == [401, 401, 200, 200]


def test_requests_come_apart_wherever_the_bytes_are_split() -> None:
    body = orjson.dumps(BODY)
    request = (
        b"POST /v1/chat/completions?x=1 HTTP/1.1\r\nHOST: x\r\ncontent-LENGTH: %d\r\n\r\n"
        % len(body)
    ) + body

    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> set[bytes]:
        three = request * 3
        whole = await exchange(engine, three)
        assert whole.count(b"HTTP/1.1 200 OK") == 3
        return {
            whole,
            *[await exchange(engine, three[:cut], three[cut:]) for cut in range(1, 400, 37)],
            await exchange(engine, *(bytes([byte]) for byte in three)),
        }

    assert len(play(FakeEngine(), talk)) == 1


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 70_000, b"431"),
    ],
)
def test_malformed_http(request_bytes: bytes, status: bytes) -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> bytes:
        return await exchange(engine, request_bytes)

    assert play(FakeEngine(), talk).split()[1] == status


def test_expects_continue() -> None:
    body = orjson.dumps(BODY)
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    )

    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> bytes:
        port = int(engine.root_url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head % len(body))
        first = await reader.readuntil(b"\r\n\r\n")
        writer.write(body)
        second = await reader.readuntil(b"\r\n")
        writer.close()
        await writer.wait_closed()
        return first + second

    assert play(FakeEngine(), talk) == b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"


def test_kill_is_a_death() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> str:
        engine.kill()
        return str(await engine.died)

    assert play(FakeEngine(), talk) == "FakeEngine was killed"


def test_command_line() -> None:
    argv = [sys.executable, "-m", "serve.testing", "--reply", "one", "--fault", "too_many_every=2"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        base_url = process.stdout.readline().strip()
        answers = [httpx.post(f"{base_url}/chat/completions", json=BODY) for _ in range(2)]
        process.terminate()
        assert process.wait(10) == 0
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[0].json()["choices"][0]["message"]["content"] == "one"


def test_command_line_refuses_an_unknown_fault() -> None:
    argv = [sys.executable, "-m", "serve.testing", "--fault", "nope=2"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no fault 'nope'")
