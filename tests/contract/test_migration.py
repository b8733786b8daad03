"""A cut stream goes on at another replica: over real sockets, scripted engines and real vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.config import EngineConfig
from serve.engine.command import detect, vllm_command
from serve.engine.launch import LaunchedEngine, free_port
from serve.front.gateway import Gateway
from serve.front.plane.exchange import Exchange
from serve.front.scripted import Script, ScriptedEngine, gateway_over, stream

MODEL = "smollm2-135m-instruct"
SESSION = {"X-Session-ID": "s"}
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello"}],
    "stream": True,
    "temperature": 0,
    "max_tokens": 60,
    "return_token_ids": True,
    "stream_options": {"include_usage": True},
}
TEXT = {k: v for k, v in CHAT.items() if k != "messages"} | {"prompt": [1, 2, 3]}
SCRIPT = Script(
    pieces=tuple('Où est la clé ? 在北边 😀 "là"\n!'.encode()[i : i + 2] for i in range(0, 40, 2))
)


def engine(**how: Any) -> ScriptedEngine:
    return ScriptedEngine(**{"script": SCRIPT} | how)


def path_of(body: dict[str, Any]) -> str:
    return "/v1/chat/completions" if "messages" in body else "/v1/completions"


@dataclass
class Answer:
    """What a client got."""

    status: int
    headers: httpx.Headers
    raw: bytes

    @property
    def events(self) -> list[dict[str, Any]]:
        *raws, rest = self.raw.rstrip(b"\n").split(b"\n\n")
        assert rest == b"data: [DONE]"
        return [json.loads(raw.removeprefix(b"data: ")) for raw in raws]

    @property
    def content(self) -> dict[str, Any]:
        """All that must not depend on who made which part."""
        choices = [choice for event in self.events for choice in event["choices"]]
        usage = [event["usage"] for event in self.events if not event["choices"]]
        return {
            "text": "".join(c["delta"]["content"] if "delta" in c else c["text"] for c in choices),
            "ids": [id_ for choice in choices for id_ in choice.get("token_ids") or []],
            "finish": [choices[-1]["finish_reason"], choices[-1]["stop_reason"]],
            "tokens": [(each["prompt_tokens"], each["completion_tokens"]) for each in usage],
        }


async def ask(
    client: httpx.AsyncClient,
    url: str,
    body: dict[str, Any],
    on_event: Callable[[int], None] = lambda _: None,
) -> Answer:
    raw, path = b"", url + path_of(body)
    async with client.stream("POST", path, json=body, headers=SESSION, timeout=60) as answer:
        async for piece in answer.aiter_raw():
            raw += piece
            on_event(raw.count(b"\n\n"))
    return Answer(answer.status_code, answer.headers, raw)


def assert_balanced(gateway: Gateway) -> None:
    assert [(r.in_flight, len(r.active)) for r in gateway.pool.replicas] == [
        (0, 0) for _ in gateway.pool.replicas
    ]


@contextlib.asynccontextmanager
async def house(
    state: Path, engines: list[ScriptedEngine]
) -> AsyncIterator[tuple[Gateway, str, httpx.AsyncClient]]:
    """All of it; the first engine is asked first."""
    async with contextlib.AsyncExitStack() as stack:
        for each in engines:
            await stack.enter_async_context(each)
        over = gateway_over(state, MODEL, [each.port for each in engines])
        gateway, url = await stack.enter_async_context(over)
        client = await stack.enter_async_context(httpx.AsyncClient())
        yield gateway, url, client
        assert_balanced(gateway)


async def scripted_run(
    state: Path, engines: list[ScriptedEngine], body: dict[str, Any]
) -> tuple[Gateway, Answer]:
    """Ask once."""
    async with house(state, engines) as (gateway, url, client):
        return gateway, await ask(client, url, body)


def uncut(body: dict[str, Any]) -> Answer:
    return Answer(200, httpx.Headers(), b"".join(stream(SCRIPT, body)))


WHOLE = {"chat": CHAT, "text": TEXT}


@pytest.mark.parametrize("body", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("cut_at", [450, 800, 801, 1000, 1111, 1500, 2222, 3333, 4800])
def test_a_cut_stream_goes_on_elsewhere(tmp_path: Path, body: dict[str, Any], cut_at: int) -> None:
    engines = [engine(cut_at=cut_at), engine()]
    gateway, answer = asyncio.run(scripted_run(tmp_path, engines, body))
    assert answer.status == 200
    assert answer.content == uncut(body).content
    assert answer.headers["x-replica"] == "r0"
    assert gateway.meters.migrations == 1
    assert [len(each.asked) for each in engines] == [1, 1]
    assert engines[1].asked[0]["prompt"][:3] == [1, 2, 3]
    assert engines[1].asked[0]["max_tokens"] <= 60


@pytest.mark.parametrize("body", WHOLE.values(), ids=WHOLE)
def test_a_stream_cut_before_its_first_event_is_asked_for_anew(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    engines = [engine(cut_at=0), engine()]
    gateway, answer = asyncio.run(scripted_run(tmp_path, engines, body))
    assert (answer.status, answer.content) == (200, uncut(body).content)
    assert answer.headers["x-replica"] == "r1"
    assert (gateway.meters.migrations, gateway.meters.retries) == (0, 1)


def test_a_completion_cut_after_its_last_token_needs_nobody(tmp_path: Path) -> None:
    size = sum(len(b"%x\r\n\r\n" % len(e)) + len(e) for e in list(stream(SCRIPT, CHAT))[:-2])
    gateway, answer = asyncio.run(scripted_run(tmp_path, [engine(cut_at=size)], CHAT))
    assert answer.content == uncut(CHAT).content
    assert gateway.meters.migrations == 0


@pytest.mark.parametrize("cuts", [2, 3])
def test_it_goes_on_up_to_three_times(tmp_path: Path, cuts: int) -> None:
    engines = [engine(cut_at=1500) for _ in range(cuts)] + [engine()]
    gateway, answer = asyncio.run(scripted_run(tmp_path, engines, CHAT))
    assert answer.content == uncut(CHAT).content
    assert gateway.meters.migrations == cuts


def failed(answer: Answer) -> str:
    last = json.loads(answer.raw.rstrip().rpartition(b"data: ")[2])
    return str(last["error"]["code"])


def test_the_fourth_loss_is_told(tmp_path: Path) -> None:
    whole = sum(len(b"%x\r\n\r\n" % len(e)) + len(e) for e in list(stream(SCRIPT, CHAT))[:3])
    engines = [engine(cut_at=whole)] + [engine(cut_at=0) for _ in range(3)] + [engine()]
    _, answer = asyncio.run(scripted_run(tmp_path, engines, CHAT))
    assert failed(answer) == "replica_lost"
    assert not engines[4].asked


@pytest.mark.parametrize("cut_by", ["hang", "error"])
def test_a_hung_engine_and_one_that_says_it_is_dead_are_lost(tmp_path: Path, cut_by: str) -> None:
    engines = [engine(cut_at=first_events(CHAT, 1), cut_by=cut_by), engine()]

    async def run() -> Answer:
        async with house(tmp_path, engines) as (gateway, url, client):

            def on_event(count: int) -> None:
                if count == 1 and cut_by == "hang":
                    exchange = next(iter(gateway.pool.replicas[0].active))
                    assert isinstance(exchange, Exchange)
                    exchange.read_at = 0.0
                    lose(gateway, "no byte came")
                    assert exchange.read_at  # so that the next one is not too late already
                elif count == 1:
                    engines[0].go_on.set()

            answer = await ask(client, url, CHAT, on_event)
            again = await ask(client, url, CHAT)
            assert again.content == answer.content
            assert_balanced(gateway)
            assert gateway.meters.migrations == 1
            return answer

    assert asyncio.run(run()).content == uncut(CHAT).content


def test_a_stream_that_hangs_has_nowhere_to_go_but_elsewhere(tmp_path: Path) -> None:
    engines = [engine(cut_at=first_events(CHAT, 2), cut_by="hang")]

    async def run() -> Answer:
        async with house(tmp_path, engines) as (gateway, url, client):
            return await ask(client, url, CHAT, at_event(2, lambda: lose(gateway, "hung")))

    assert failed(asyncio.run(run())) == "replica_lost"
    assert len(engines[0].asked) == 1


def test_all_tokens_are_counted_whoever_made_them(tmp_path: Path) -> None:
    body = {k: v for k, v in CHAT.items() if k != "stream_options"}
    engines = [engine(cut_at=first_events(body, 5)), engine()]
    gateway, _ = asyncio.run(scripted_run(tmp_path, engines, body))
    route = gateway.meters.routes[path_of(body), 200, MODEL]
    assert (route.prompt_tokens, route.completion_tokens) == (3, len(SCRIPT.ids))


def lose(gateway: Gateway, reason: str) -> None:
    for exchange in [each for one in gateway.pool.replicas for each in one.active]:
        exchange.replica_lost(reason)


def first_events(body: dict[str, Any], count: int) -> int:
    return sum(len(b"%x\r\n\r\n" % len(e)) + len(e) for e in list(stream(SCRIPT, body))[:count])


@pytest.mark.parametrize("more", [{"temperature": 1}, {"n": 2}, {"return_token_ids": False}])
def test_what_cannot_go_on_ends_visibly_as_ever(tmp_path: Path, more: dict[str, Any]) -> None:
    engines = [engine(cut_at=first_events(CHAT, 3)), engine()]
    gateway, answer = asyncio.run(scripted_run(tmp_path, engines, CHAT | more))
    assert failed(answer) == "replica_lost"
    assert gateway.meters.migrations == 0
    assert not engines[1].asked


def test_an_engine_that_makes_other_tokens_is_not_joined(tmp_path: Path) -> None:
    torn = (b"a", b"\xc3", b"\xa9", b"b")
    engines = [
        engine(script=Script(pieces=torn), cut_at=first_events(CHAT, 3) - 10),
        engine(script=Script(pieces=torn, prompt=(1, 2, 4))),
    ]
    with pytest.raises(httpx.RemoteProtocolError):
        asyncio.run(scripted_run(tmp_path, engines, CHAT))
    assert len(engines[1].asked) == 1


@pytest.mark.parametrize("how", [{"status": 400}, {"status": 503}, {"cut_at": 0, "cut_by": "end"}])
def test_an_engine_that_refuses_or_says_too_little_is_no_help(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    engines = [engine(cut_at=first_events(CHAT, 3)), engine(**how)]
    _, answer = asyncio.run(scripted_run(tmp_path, engines, CHAT))
    assert failed(answer) == "replica_lost"


@pytest.mark.parametrize("swapped", [0, 1])
def test_only_one_version_makes_a_stream(tmp_path: Path, swapped: int) -> None:
    """Neither does another one go on, nor the same one with what a swap in the middle left."""
    engines = [engine(cut_at=first_events(CHAT, 3), cut_by="hang"), engine()]

    async def run() -> Answer:
        async with house(tmp_path, engines) as (gateway, url, client):

            def swap() -> None:
                gateway.pool.replicas[swapped].serve_only(MODEL, 2, MODEL)
                lose(gateway, "hung")

            return await ask(client, url, CHAT, at_event(3, swap))

    assert failed(asyncio.run(run())) == "replica_lost"
    assert not engines[1].asked


def test_a_client_that_leaves_meanwhile_stops_the_next_engine(tmp_path: Path) -> None:
    engines = [engine(cut_at=first_events(CHAT, 3)), engine(cut_at=0, cut_by="hang")]

    async def run() -> None:
        async with house(tmp_path, engines) as (gateway, url, client):
            path = url + path_of(CHAT)
            async with client.stream("POST", path, json=CHAT, headers=SESSION):
                async with asyncio.timeout(5):
                    await engines[1].was_asked.wait()
            async with asyncio.timeout(5):
                await engines[1].gone.wait()
            assert_balanced(gateway)
            assert gateway.meters.aborts == 1

    asyncio.run(run())


# Real engines.

PROMPTS = (
    "Write a short story about a key and a door.",
    "Explain in simple words why the sky is blue.",
    "List five animals with a sentence on each, and an emoji.",
)
LONG = CHAT | {"ignore_eos": True}
REAL: dict[str, dict[str, Any]] = {
    "chat": LONG,
    "stop": LONG | {"stop": ["\n\nand then nobody", "zzz"]},
    "penalty": LONG | {"repetition_penalty": 1.3, "min_tokens": 5},
    "text": {k: v for k, v in LONG.items() if k != "messages"} | {"prompt": "Once upon a time"},
}


@pytest.fixture(scope="module")
def two_engines(
    pulled_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LaunchedEngine, LaunchedEngine]]:
    """Two of the same checkpoint, each on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    engines = []
    for number in range(2):
        port = free_port("127.0.0.1")
        config = EngineConfig(checkpoint=pulled_model, model=MODEL, port=port, max_model_len=1024)
        command = vllm_command(config, detect())
        env = {
            "VLLM_CPU_OMP_THREADS_BIND": str(cores[number % len(cores)]),
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }
        log = tmp_path_factory.mktemp("vllm") / "vllm.log"
        command = replace(command, env=command.env | env)
        engines.append(LaunchedEngine(command, model=MODEL, port=port, log=log))
    with asyncio.Runner() as runner:
        for each in engines:
            runner.run(each.start())
        try:
            for each in engines:
                runner.run(each.wait_ready(timeout_s=300))
            yield engines[0], engines[1]
        finally:
            for each in engines:
                runner.run(each.stop())


def kill(engine: LaunchedEngine) -> None:
    """Kill the server with -9; its keeper kills what it leaves behind."""
    port = engine.base_url.rpartition(":")[2].partition("/")[0]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (process / "cmdline").read_bytes().split(b"\0")
            if b"vllm.entrypoints.launchers.api_server.entry" in argv[:4] and port.encode() in argv:
                os.kill(int(process.name), signal.SIGKILL)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - what it waits for sets no event
        await asyncio.sleep(0.05)


def at_event(number: int, act: Callable[[], None]) -> Callable[[int], None]:
    """Return what acts once, as soon as so many events have come."""
    left = [act]

    def look(count: int) -> None:
        if count >= number and left:
            left.pop()()

    return look


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_real_engines_go_on_bit_for_bit(
    two_engines: tuple[LaunchedEngine, LaunchedEngine], tmp_path: Path
) -> None:
    """First each stream moves off an engine that hangs, then several off one that is killed."""
    ports = [int(each.base_url.rpartition(":")[2].partition("/")[0]) for each in two_engines]
    long = LONG | {"max_tokens": 200}  # so much that a slow machine still kills in mid-stream
    messages = [long | {"messages": [{"role": "user", "content": p}]} for p in PROMPTS]

    async def run() -> None:
        async with (
            gateway_over(tmp_path, MODEL, ports) as (gateway, url),
            httpx.AsyncClient() as client,
        ):
            for body in REAL.values():
                whole = await ask(client, url, body)
                moves = gateway.meters.migrations
                moved = await ask(client, url, body, at_event(20, lambda: lose(gateway, "hung")))
                assert gateway.meters.migrations == moves + 1
                assert moved.content == whole.content
                assert len(whole.content["ids"]) == 60
            wholes = [await ask(client, url, body) for body in messages]
            pinned = next(each for each in gateway.pool.replicas if each.sessions)
            victim = two_engines[gateway.pool.replicas.index(pinned)]
            await until(lambda: all(each.is_ready for each in gateway.pool.replicas))
            moves = gateway.meters.migrations
            killing = at_event(15, lambda: kill(victim))
            streams = [ask(client, url, body, killing) for body in messages]
            answers = await asyncio.gather(*streams)
            assert [answer.content for answer in answers] == [each.content for each in wholes]
            assert gateway.meters.migrations == moves + len(messages)
            assert_balanced(gateway)

    asyncio.run(run())
