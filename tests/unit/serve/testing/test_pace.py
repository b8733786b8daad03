"""FakeEngine token by token: its pace, clients that leave, pauses, standstills, restarts."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from serve.testing import FakeEngine, Faults
from tests.unit.serve.testing import checkpoints

LONG = " ".join(f"w{number}" for number in range(200))
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
Talk = Callable[[FakeEngine, httpx.AsyncClient], Awaitable[Any]]


def play(engine: FakeEngine, talk: Talk) -> Any:
    async def run() -> Any:
        async with engine, httpx.AsyncClient(base_url=engine.root_url, timeout=10) as client:
            return await talk(engine, client)

    return asyncio.run(run())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  # what a server counts has no event
            await asyncio.sleep(0.001)


async def chat(client: httpx.AsyncClient, name: str = "", **fields: Any) -> httpx.Response:
    headers = {"X-Request-ID": name} if name else {}
    return await client.post("/v1/chat/completions", json=BODY | fields, headers=headers)


def said(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_said_does_not_depend_on_the_pace(stream: bool) -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> tuple[bytes, int]:
        options = {"stream": stream, "stream_options": {"include_usage": True}}
        answer = await chat(client, "r", **options)
        assert (engine.stats.made, engine.stats.answered) == ({"r": 3}, {"r": 1})
        return answer.content, engine.stats.tokens_made

    at_once, paced = (play(FakeEngine("a b c", itl_s=itl_s), talk) for itl_s in (0, 0.001))
    late = play(FakeEngine("a b c", faults=Faults(delay_s=0.001)), talk)
    assert at_once == paced == late


def test_events_come_one_by_one_and_the_head_before_them() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> list[tuple[int, int]]:
        body = BODY | {"stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert (engine.stats.tokens_made, answer.headers["transfer-encoding"]) == (0, "chunked")
            return [
                (engine.stats.tokens_made, engine.stats.in_flight)
                async for line in answer.aiter_lines()
                if line
            ]

    seen = play(FakeEngine("a b c", itl_s=0.05), talk)
    assert seen == [(1, 1), (1, 1), (2, 1), (3, 0), (3, 0)]


@pytest.mark.parametrize("stream", [False, True])
def test_no_token_is_made_for_a_client_that_left(stream: bool) -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> None:
        asked = asyncio.create_task(chat(client, "gone", stream=stream))
        await until(lambda: engine.stats.tokens_made >= 3)
        asked.cancel()
        await until(lambda: engine.stats.abandoned == 1)
        made = engine.stats.tokens_made
        assert not engine.scheduler.running
        await asyncio.sleep(0.05)
        assert engine.stats.tokens_made == engine.stats.made["gone"] == made < 200
        assert (engine.stats.in_flight, engine.stats.answered) == (0, {})

    play(FakeEngine(LONG, itl_s=0.005), talk)


def test_requests_on_one_connection_are_answered_in_turn() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> bytes:
        port = int(engine.root_url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for fields in ({"stream": True}, {}):
            body = orjson.dumps(BODY | fields)
            head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
            writer.write(head + body)
        writer.write(b"GET /version HTTP/1.1\r\n\r\n")
        received = await reader.readuntil(b'"fake"}')
        writer.close()
        await writer.wait_closed()
        assert engine.stats.in_flight_max == 1
        return received

    received = play(FakeEngine("a b c", itl_s=0.002), talk)
    assert [received.find(part) >= 0 for part in (b"[DONE]", b'"a b c"', b"version")] == [True] * 3
    assert received.find(b"[DONE]") < received.find(b'"a b c"') < received.find(b"version")


def test_a_chunked_request_is_understood() -> None:
    async def pieces() -> Any:
        for byte in orjson.dumps(BODY):
            yield bytes([byte])

    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> str:
        return said(await client.post("/v1/chat/completions", content=pieces()))

    assert play(FakeEngine("a b c"), talk) == "a b c"


def test_a_body_of_20_mb_is_understood() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> int:
        body = BODY | {"padding": "x" * 20_000_000}
        return (await client.post("/v1/chat/completions", json=body)).status_code

    assert play(FakeEngine(), talk) == 200


def test_frozen_it_answers_nothing_and_thawed_it_goes_on() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> list[str]:
        asked = asyncio.create_task(chat(client))
        await until(lambda: engine.stats.tokens_made >= 2)
        engine.freeze()
        made = engine.stats.tokens_made
        for path in ("/health", "/v1/models"):
            with pytest.raises(httpx.ReadTimeout):
                await client.get(path, timeout=0.05)
        late = asyncio.create_task(chat(client, max_tokens=2))
        await asyncio.sleep(0.05)
        assert (engine.stats.tokens_made, engine.stats.requests) == (made, 1)
        engine.thaw()
        assert (await client.get("/health")).status_code == 200
        return [said(await asked), said(await late)]

    assert play(FakeEngine("a b c d e", itl_s=0.01), talk) == ["a b c d e", "a b"]


def test_it_can_be_killed_and_started_on_its_port(tmp_path: Path) -> None:
    checkpoints.lora(tmp_path / "lora", 1)

    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> None:
        url = engine.base_url
        adapter = {"lora_name": "fake@2", "lora_path": str(tmp_path / "lora")}
        await client.post("/v1/load_lora_adapter", json=adapter)
        await client.post("/update_weight_version", json={"new_version": "x"})
        await client.post("/pause")
        for _ in range(2):
            asked = asyncio.create_task(chat(client))
            await until(lambda: engine.stats.in_flight == 1)
            engine.kill()
            engine.kill()
            assert str(await engine.died) == "FakeEngine was killed"
            with pytest.raises(httpx.TransportError):
                await asked
            with pytest.raises(httpx.ConnectError):
                await client.get("/health")
            await engine.start()
            assert (engine.base_url, engine.stats.in_flight) == (url, 0)
            assert not engine.died.done()
            assert (await client.get("/weight_info")).json() == {"weight_version": "default"}
            assert len((await client.get("/v1/models")).json()["data"]) == 1
        assert said(await chat(client, max_tokens=1)) == "w0"

    play(FakeEngine(LONG, itl_s=0.01, dev_mode=True), talk)


def test_labels_of_a_generation_that_lived_through_a_swap(tmp_path: Path) -> None:
    checkpoints.full(tmp_path / "new", 1)

    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> Any:
        sampling = {"max_tokens": 20, "logprobs": 0}
        body = {"token_ids": [1, 2], "sampling_params": sampling, "request_id": "mine"}
        asked = asyncio.create_task(client.post("/inference/v1/generate", json=body))
        await until(lambda: engine.stats.tokens_made >= 5)
        await client.post("/pause?mode=keep")
        made = engine.stats.tokens_made
        await client.post("/start_weight_update")
        for apply in (False, True):
            update = {"path": str(tmp_path / "new"), "apply": apply}
            await client.post("/update_weights", json={"update_info": update})
        await client.post("/finish_weight_update", json={"weight_version": "8"})
        await client.post("/resume")
        return made, (await asked).json()["choices"][0]

    made, choice = play(FakeEngine(LONG, itl_s=0.005, dev_mode=True), talk)
    assert choice["weight_versions"] == [
        {"version": "default", "start": 0, "end": made},
        {"version": "8", "start": made, "end": 20},
    ]
    assert len(choice["token_ids"]) == 20


def test_requests_are_aborted_by_name() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> list[Any]:
        one, other = (asyncio.create_task(chat(client, name)) for name in ("one", "other"))
        await until(lambda: len(engine.scheduler.running) == 2)
        named = await client.post("/abort_requests", json={"request_ids": ["chatcmpl-one"]})
        ended = (await one).json()["choices"][0]["finish_reason"]
        assert not other.done()
        rest = await client.post("/abort_requests", json={})
        last = (await other).json()["choices"][0]["finish_reason"]
        return [named.json()["aborted"], ended, rest.json()["aborted"], last]

    played = play(FakeEngine(LONG, itl_s=0.01, dev_mode=True), talk)
    assert played == [1, "abort", 1, "abort"]


def test_of_too_many_some_wait_and_both_are_measured() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> dict[str, float]:
        asked = [asyncio.create_task(chat(client, max_tokens=20)) for _ in range(3)]
        await until(lambda: engine.stats.in_flight == 3 and engine.stats.tokens_made > 2)
        lines = (await client.get("/metrics")).text.splitlines()
        values = dict(line.split() for line in lines if not line.startswith("#"))
        assert {said(answer).count(" ") for answer in await asyncio.gather(*asked)} == {19}
        return {name.partition("{")[0]: float(value) for name, value in values.items()}

    metrics = play(FakeEngine(LONG, itl_s=0.005, most_running=2, kv_blocks=10), talk)
    assert (metrics["vllm:num_requests_running"], metrics["vllm:num_requests_waiting"]) == (2, 1)
    assert metrics["vllm:kv_cache_usage_perc"] == 0.2
    assert metrics["vllm:prefix_cache_queries_total"] == 6


@pytest.mark.parametrize("itl_s", [0.0, 0.002])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("cut_stream_every", httpx.RemoteProtocolError),
        ("cut_mid_event_every", httpx.RemoteProtocolError),
        ("error_event_every", None),
    ],
)
def test_streams_that_break(fault: str, error: Any, itl_s: float) -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> bytes:
        assert said(await chat(client, "whole")) == "a b c d"
        received = b""
        body = BODY | {"stream": True}
        expected = pytest.raises(error) if error else contextlib.nullcontext()
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            with expected:
                async for piece in answer.aiter_raw():
                    received += piece
        assert (engine.stats.in_flight, engine.stats.answered) == (0, {"whole": 1})
        return received

    faults = Faults.parse([f"{fault}=1"])
    received = play(FakeEngine("a b c d", itl_s=itl_s, faults=faults), talk)
    *events, last = received.split(b"\n\n")
    whole = [json.loads(event.removeprefix(b"data: ")) for event in events if b"DONE" not in event]
    texts = [event["choices"][0]["delta"]["content"] for event in whole if "choices" in event]
    assert texts == (["", "a"] if "mid" in fault else ["", "a", " b"])
    assert bool(last) is ("mid" in fault)
    assert ("error" in whole[-1]) is (fault == "error_event_every")


@pytest.mark.parametrize("fault", ["garbage_every", "negative_chunk_every"])
def test_answers_that_are_no_http(fault: str) -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> None:
        assert (await chat(client)).status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            await chat(client)
        assert (await chat(client)).status_code == 200
        assert engine.stats.in_flight == 0

    play(FakeEngine(faults=Faults.parse([f"{fault}=2"])), talk)


def test_a_header_of_100_kb() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> int:
        answer = await chat(client, stream=True)
        assert answer.text.endswith("data: [DONE]\n\n")
        return len((await chat(client)).headers["x-huge"]) - len(answer.headers["x-huge"])

    assert play(FakeEngine(faults=Faults(huge_header_every=1)), talk) == 0


def test_every_third_is_slow() -> None:
    async def took(client: httpx.AsyncClient) -> float:
        started_s = asyncio.get_running_loop().time()
        await chat(client)
        return asyncio.get_running_loop().time() - started_s

    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> list[bool]:
        return [await took(client) >= 0.2 for _ in range(4)]

    faults = Faults(delay_s=0.02, slow_every=3)
    assert play(FakeEngine(faults=faults), talk) == [False, False, True, False]


@pytest.mark.parametrize(
    ("faults", "left", "in_all"),
    [
        (Faults(close_idle_after_requests=2), [1, 0, 1, 0], 2),
        (Faults(keepalive_s=0.001), [0, 0, 0, 0], 4),
        (Faults(keepalive_s=10), [1, 1, 1, 1], 1),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_connections_close_without_a_word(
    faults: Faults, left: list[int], in_all: int, stream: bool
) -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient) -> int:
        for connections in left:
            answer = await chat(client, stream=stream)
            assert "connection" not in answer.headers
            await until(lambda: engine.connections == connections)  # noqa: B023  # awaited here
            for _ in range(3):  # the socket itself closes at the end of an iteration of the loop
                await asyncio.sleep(0)
        return engine.stats.connections_total

    assert play(FakeEngine(faults=faults), talk) == in_all
