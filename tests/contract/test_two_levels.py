"""A gateway in front of gateways: labels pass, versions are found, and nobody's death is felt.

All of them run on one event loop and talk over loopback; under each of the inner ones is a
FakeEngine that says with every token which weights made it.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.client import AdminClient
from serve.front.gateway import Gateway
from serve.policies.store import PolicyStore
from serve.pool.base import Pool
from serve.pool.replicas import ReplicaState
from serve.settings import FrontConfig, HealthConfig, RemoteConfig, ServeConfig
from serve.testing import FakeEngine, Faults
from serve.up import opened
from serve.wire import SwapMode
from tests.unit.serve.testing import checkpoints

NAME = "fake"
HEALTH = HealthConfig(interval_s=0.05, down_interval_s=0.02)


@dataclass(kw_only=True)
class World:
    """Two engines, each behind a gateway of its own, and the gateway in front of those."""

    folder: Path
    engines: list[FakeEngine]
    inner: list[Gateway]
    outer: Gateway
    pool: Pool
    client: httpx.AsyncClient

    @property
    def url(self) -> str:
        return url_of(self.outer)

    async def ask(self, model: str = NAME, **told: Any) -> httpx.Response:
        headers = told.pop("headers", {})
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
        return await self.client.post(
            f"{self.url}/v1/chat/completions", json=body | told, headers=headers
        )

    async def publish(self, version: int, swap: SwapMode = SwapMode.WAIT) -> str:
        """Publish at the outer gateway; return what the new weights say."""
        source = self.folder / f"full-{version}"
        word = await asyncio.to_thread(checkpoints.full, source, version)

        def publish() -> None:
            with AdminClient(self.url) as admin:
                assert admin.publish(NAME, source, swap=swap).version == version

        await asyncio.to_thread(publish)
        return word

    async def wait_ready(self, version: int) -> None:
        def wait() -> None:
            with AdminClient(self.url) as admin:
                admin.wait_ready(NAME, version, timeout_s=60)

        await asyncio.to_thread(wait)


@contextlib.asynccontextmanager
async def a_world(
    folder: Path,
    *,
    faults: tuple[Faults, Faults] = (Faults(), Faults()),
    itl_s: float = 0.0,
    hold_s: float = 30.0,
) -> AsyncIterator[World]:
    boot = folder / "boot"
    checkpoints.full(boot, 1)
    policies = folder / "policies"
    PolicyStore(policies).register(NAME, boot)
    async with contextlib.AsyncExitStack() as stack:
        engines = [
            FakeEngine(dev_mode=True, versioned_reply=True, root=boot, itl_s=itl_s, faults=each)
            for each in faults
        ]
        inner = []
        for number, engine in enumerate(engines):
            await stack.enter_async_context(engine)
            config = ServeConfig(
                upstreams=(engine.root_url,),
                port=0,
                state=folder / f"inner-{number}",
                policies=policies,
                policies_read_only=True,
                health=HEALTH,
            )
            inner.append((await stack.enter_async_context(opened(config)))[0])
        config = ServeConfig(
            upstreams=tuple(map(url_of, inner)),
            port=0,
            state=folder / "outer",
            policies=policies,
            remote=RemoteConfig(look_s=0.05),
            health=HEALTH,
            front=FrontConfig(hold_s=hold_s),
        )
        outer, pool = await stack.enter_async_context(opened(config))
        for gateway in (*inner, outer):
            stack.push_async_callback(gateway.stop, 1.0)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
        yield World(
            folder=folder, engines=engines, inner=inner, outer=outer, pool=pool, client=client
        )


def url_of(gateway: Gateway) -> str:
    return f"http://127.0.0.1:{gateway.address[1]}"


def said(answer: httpx.Response) -> set[str]:
    """Return the words of an answer, which are the names of weights."""
    assert answer.status_code == 200, answer.text
    return set(answer.json()["choices"][0]["message"]["content"].split()) - {"weights"}


async def until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.005)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(200):
            await test()

    asyncio.run(bounded())


async def all_ready(world: World) -> None:
    await until(lambda: all(replica.is_ready for replica in world.pool.replicas))


def test_labels_versions_and_constraints_reach_through(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_world(tmp_path) as world:
            first = await world.ask()  # held until one is ready
            word = (said(first)).pop()
            assert first.headers["x-policy-version"] == "1"
            outer, _, inner = first.headers["x-replica"].partition("/")
            assert (outer[:9], inner) == ("upstream-", "upstream-0")
            await all_ready(world)
            assert all(replica.labels for replica in world.pool.replicas)
            assert said(await world.ask(f"{NAME}@1")) == {word}
            for asked in (
                await world.ask(f"{NAME}@2"),
                await world.ask(headers={"X-Policy-Constraint": ">=2"}),
            ):
                assert (asked.status_code, asked.headers["retry-after"]) == (409, "1")
            new = await world.publish(2)
            await world.wait_ready(2)
            assert said(await world.ask(f"{NAME}@2")) == {new}
            later = await world.ask(headers={"X-Policy-Constraint": ">=2"})
            assert (said(later), later.headers["x-policy-version"]) == ({new}, "2")
            gone = await world.ask(f"{NAME}@1")
            assert (gone.status_code, gone.json()["error"]["code"]) == (
                409,
                "policy_version_not_ready",
            )
            unknown = await world.ask("nobody")
            assert unknown.status_code == 404

    run(test)


def test_both_follow_a_publish_under_load_and_no_label_lies(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_world(tmp_path, itl_s=0.002) as world:
            await all_ready(world)
            words = {"1": said(await world.ask()).pop()}
            answers: list[httpx.Response] = []
            done = asyncio.Event()

            async def client(number: int) -> None:
                while not done.is_set():
                    answers.append(await world.ask(headers={"X-Session-ID": f"s{number}"}))

            clients = [asyncio.create_task(client(number)) for number in range(8)]
            for version in (2, 3):
                words[str(version)] = await world.publish(version)
                await world.wait_ready(version)
            done.set()
            await asyncio.gather(*clients)
            assert {answer.status_code for answer in answers} == {200}
            for answer in answers:
                assert "x-policy-version-end" not in answer.headers
                assert said(answer) == {words[answer.headers["x-policy-version"]]}
            assert {answer.headers["x-policy-version"] for answer in answers} >= {"1", "3"}
            assert world.outer.meters.totals()["migrations"] == 0
            await until(lambda: all(r.in_flight == 0 for r in world.pool.replicas))

    run(test)


def test_a_gateway_that_dies_under_load_fails_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_world(tmp_path, itl_s=0.005) as world:
            await all_ready(world)
            answers: list[httpx.Response] = []
            stopped_at = 0
            done = asyncio.Event()

            async def client(number: int) -> None:
                while not done.is_set():
                    answers.append(await world.ask(headers={"X-Session-ID": f"s{number}"}))

            clients = [asyncio.create_task(client(number)) for number in range(16)]
            await until(lambda: min(r.in_flight for r in world.pool.replicas) > 2)
            await world.inner[0].stop(0.0)  # its connections are cut
            stopped_at = len(answers)
            await until(lambda: len(answers) > stopped_at + 100)
            done.set()
            await asyncio.gather(*clients)
            assert {answer.status_code for answer in answers} == {200}
            assert world.outer.meters.retries > 0
            assert world.pool.replicas[0].state is ReplicaState.DOWN
            assert world.pool.replicas[0].in_flight == 0

    run(test)


def test_requests_wait_for_an_engine_that_is_cold(tmp_path: Path) -> None:
    async def test() -> None:
        cold = Faults(cold_s=1.5)
        async with a_world(tmp_path, faults=(cold, cold)) as world:
            held = asyncio.gather(*(world.ask() for _ in range(8)))
            await until(lambda: world.outer.demand().held == 8)
            assert {answer.status_code for answer in await held} == {200}

    run(test)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Faults(too_many_every=1, retry_after_s=3), 429),
        (Faults(cold_requests=10**6, retry_after_s=3), 503),
    ],
)
def test_one_that_turns_away_is_not_the_last_word(
    tmp_path: Path, fault: Faults, status: int
) -> None:
    async def test() -> None:
        async with a_world(tmp_path, faults=(fault, Faults())) as world:
            await all_ready(world)
            found = [await world.ask(headers={"X-Session-ID": f"s{n}"}) for n in range(12)]
            assert {answer.status_code for answer in found} == {200}
            assert {a.headers["x-replica"] for a in found} == {"upstream-1/upstream-0"}
            assert sum(engine.stats.requests for engine in world.engines) > 12

    run(test)


def test_where_all_turn_away_their_word_passes_on(tmp_path: Path) -> None:
    async def test() -> None:
        full = Faults(too_many_every=1, retry_after_s=3)
        async with a_world(tmp_path, faults=(full, full)) as world:
            await all_ready(world)
            answer = await world.ask()
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
            assert [engine.stats.requests for engine in world.engines] == [1, 1]

    run(test)


def test_streams_pass_byte_for_byte_and_end_with_their_trailer(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_world(tmp_path, itl_s=0.02) as world:
            await all_ready(world)
            short = await raw(world.url, max_tokens=4)
            assert b"x-policy-version: 1\r\n" in short.partition(b"\r\n\r\n")[0]
            direct = await raw(url_of(world.inner[0]), max_tokens=4)
            assert short.partition(b"\r\n\r\n")[2] == direct.partition(b"\r\n\r\n")[2]
            long = asyncio.create_task(raw(world.url, max_tokens=200))
            await until(lambda: sum(r.in_flight for r in world.pool.replicas) == 1)
            await world.publish(2, SwapMode.KEEP)
            head, _, body = (await long).partition(b"\r\n\r\n")
            assert b"x-policy-version: 1\r\n" in head
            assert body.endswith(b"0\r\nx-policy-version-end: 2\r\n\r\n")

    run(test)


async def raw(url: str, *, max_tokens: int) -> bytes:
    """Return all bytes of a stream's answer, its trailer included."""
    body = json.dumps(
        {"model": NAME, "prompt": "x", "max_tokens": max_tokens, "stream": True, "seed": 1}
    ).encode()
    host = url.removeprefix("http://")
    reader, writer = await asyncio.open_connection(*host.split(":"))
    try:
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\n"
            b"x-request-id: one\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (host.encode(), len(body), body)
        )
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def test_a_cut_stream_ends_visibly_and_is_not_joined(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_world(tmp_path, itl_s=0.02) as world:
            await all_ready(world)
            stream = asyncio.create_task(raw(world.url, max_tokens=200))
            await until(lambda: sum(r.in_flight for r in world.pool.replicas) == 1)
            busy = next(n for n, r in enumerate(world.pool.replicas) if r.in_flight)
            active = world.pool.replicas[busy].active
            await until(lambda: any(getattr(one, "bytes_out", 0) > 200 for one in active))
            await world.inner[busy].stop(0.0)
            got = await stream
            assert b"replica_lost" in got or not got.endswith(b"0\r\n\r\n")
            assert world.outer.meters.migrations == 0

    run(test)
