"""A gateway whose replicas are a server's containers: they come, go, and are woken by requests."""

import asyncio
import contextlib
import logging
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.errors import ConfigError
from serve.front.gateway import Gateway
from serve.policies.store import PolicyStore
from serve.pool.base import Pool
from serve.pool.discovery import DiscoveryFailed
from serve.pool.replicas import ReplicaState
from serve.settings import HealthConfig, ModalConfig, RemoteConfig, ServeConfig
from serve.testing import FakeEngine
from serve.up import opened
from tests.contract.test_two_levels import NAME, run, until, url_of
from tests.unit.serve.pool.edge import Edge
from tests.unit.serve.testing import checkpoints

HEALTH = HealthConfig(interval_s=0.05, down_interval_s=0.02)


@dataclass(kw_only=True)
class World:
    """Two containers that are not listed yet, their edge, and the gateway in front."""

    edge: Edge
    engines: list[FakeEngine]
    inner: list[Gateway]
    outer: Gateway
    pool: Pool
    client: httpx.AsyncClient

    def appear(self, number: int) -> None:
        self.edge.ports[f"ta-{number}"] = self.inner[number].address[1]

    async def ask(self, **headers: str) -> httpx.Response:
        body = {"model": NAME, "prompt": "x", "max_tokens": 3}
        return await self.client.post(
            f"{url_of(self.outer)}/v1/completions", json=body, headers=headers
        )

    async def ready(self, count: int) -> None:
        await until(lambda: sum(r.is_ready for r in self.pool.replicas) == count)


@contextlib.asynccontextmanager
async def a_world(
    folder: Path,
    *,
    tls: ssl.SSLContext | None = None,
    remote: RemoteConfig = RemoteConfig(look_s=0.05),  # noqa: B008  # frozen
    itl_s: float = 0.0,
    **modal: Any,
) -> AsyncIterator[World]:
    boot = folder / "boot"
    checkpoints.full(boot, 1)
    PolicyStore(folder / "policies").register(NAME, boot)
    async with contextlib.AsyncExitStack() as stack:
        edge = await stack.enter_async_context(Edge(tls))
        inner, engines = [], []
        for number in range(2):
            engine = FakeEngine(dev_mode=True, root=boot, itl_s=itl_s)
            engines.append(await stack.enter_async_context(engine))
            config = ServeConfig(
                upstreams=(engine.root_url,),
                port=0,
                state=folder / f"inner-{number}",
                policies=folder / "policies",
                policies_read_only=True,
                health=HEALTH,
            )
            inner.append((await stack.enter_async_context(opened(config)))[0])
        config = ServeConfig(
            modal=ModalConfig(app="a", server="Policy", poll_s=0.02, **modal),
            port=0,
            state=folder / "outer",
            policies=folder / "policies",
            remote=remote,
            health=HEALTH,
        )
        outer, pool = await stack.enter_async_context(opened(config, server=edge))
        for gateway in (*inner, outer):
            stack.push_async_callback(gateway.stop, 1.0)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
        yield World(edge=edge, engines=engines, inner=inner, outer=outer, pool=pool, client=client)


def test_a_request_wakes_the_first_and_waits_for_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_world(tmp_path) as world:
            held = asyncio.gather(*(world.ask() for _ in range(4)))
            await until(lambda: world.edge.wakes > 0 and world.outer.demand().held == 4)
            world.appear(0)
            answers = await held
            assert {(a.status_code, a.headers["x-replica"]) for a in answers} == {
                (200, "ta-0/upstream-0")
            }
            assert {a.headers["x-policy-version"] for a in answers} == {"1"}
            assert world.edge.wakes == 1
            world.appear(1)
            await world.ready(2)
            found = [await world.ask() for _ in range(30)]
            assert {a.headers["x-replica"][:4] for a in found} == {"ta-0", "ta-1"}

    run(test)


def test_one_that_is_listed_no_more_finishes_what_it_has(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_world(tmp_path, itl_s=0.1) as world:
            world.appear(0)
            await world.ready(1)
            last = asyncio.create_task(world.ask())
            await until(lambda: world.engines[0].stats.requests == 1)
            old = world.pool.replicas[0]
            del world.edge.ports["ta-0"]
            await until(lambda: old.state is ReplicaState.DRAINING)
            held = asyncio.create_task(world.ask())
            await until(lambda: world.outer.demand().held == 1)
            world.edge.ports["ta-1"] = world.inner[1].address[1]
            assert (await last).headers["x-replica"] == "ta-0/upstream-0"
            assert (await held).headers["x-replica"] == "ta-1/upstream-0"
            await until(lambda: old not in world.pool.replicas)
            assert old.state is ReplicaState.STOPPED

    run(test)


def test_while_the_list_fails_the_last_one_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with a_world(tmp_path) as world:
            world.appear(0)
            await world.ready(1)
            world.edge.problem = DiscoveryFailed("Modal is away")
            await until(lambda: "stay as they were: Modal is away" in caplog.text)
            world.appear(1)
            assert (await world.ask()).status_code == 200
            assert [replica.id for replica in world.pool.replicas] == ["ta-0"]
            world.edge.problem = None
            await world.ready(2)

    with caplog.at_level(logging.WARNING):
        run(test)


def test_the_only_one_that_says_503_is_waited_for(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_world(tmp_path, quiet_after_s=0.0) as world:  # probes do not find it out
            world.appear(0)
            await world.ready(1)
            world.edge.problem = DiscoveryFailed("away")
            port = world.edge.ports.pop("ta-0")
            held = asyncio.create_task(world.ask())
            await until(lambda: world.outer.demand().held == 1)
            assert len(world.edge.asked("POST")) == 1
            world.edge.ports["ta-0"] = port
            answer = await held
            assert (answer.status_code, answer.headers["x-policy-version"]) == (200, "1")
            assert len(world.edge.asked("POST")) == 2

    run(test)


def test_where_nothing_can_be_listed_the_server_is_one_replica(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with a_world(tmp_path) as world:
            assert not world.pool.replicas
            world.edge.problem = DiscoveryFailed("no such call", is_final=True)
            await until(lambda: bool(world.pool.replicas))
            assert "all of them together count as one replica" in caplog.text
            held = asyncio.create_task(world.ask())
            await until(lambda: world.outer.demand().held == 1)
            world.appear(1)
            answer = await held
            assert answer.headers["x-replica"] == "server/upstream-0"
            assert all("flash" not in head for head in world.edge.asked("POST"))
            world.edge.problem = None  # now they are known one by one
            await until(lambda: [r.id for r in world.pool.replicas] == ["ta-1"])

    with caplog.at_level(logging.WARNING):
        run(test)


def test_an_idle_pool_is_left_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_world(tmp_path, quiet_after_s=0.2) as world:
            world.appear(0)
            await world.ready(1)
            await until(lambda: world.pool.is_quiet)
            await until(lambda: world.outer.demand().idle_s > 0.4)
            before = len(world.edge.heads)
            await until(lambda: world.outer.demand().idle_s > 1.0)
            assert len(world.edge.heads) == before
            looks = len(world.edge.asked("GET"))
            while len(world.edge.asked("GET")) == looks:  # then it is looked after again
                assert (await world.ask()).status_code == 200

    run(test)


def test_scaling_is_passed_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_world(tmp_path) as world:
            await world.pool.scale(3)
            assert (world.edge.scaled_to, world.pool.desired) == ([3], 3)
            with pytest.raises(ConfigError, match="cannot scale the server to 100: too many"):
                await world.pool.scale(100)

    run(test)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for loopback, its key beside it."""
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    key = path.with_suffix(".key")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=loopback"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(path)]
    try:
        subprocess.run(["openssl", *words.split(), *names], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl command to make a certificate with")
    return path


def test_over_https_with_our_headers_and_none_of_the_clients_secrets(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INNER_KEY", "ak_inner")
    monkeypatch.setenv("EDGE_ID", "wk-1")
    monkeypatch.setenv("EDGE_SECRET", "ws-1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    remote = RemoteConfig(
        key_env="INNER_KEY",
        proxy_id_env="EDGE_ID",
        proxy_secret_env="EDGE_SECRET",
        ca=certificate,
        look_s=0.05,
    )

    async def test() -> None:
        async with a_world(tmp_path, tls=context, remote=remote) as world:
            world.appear(0)
            await world.ready(1)
            stray = {
                "Authorization": "Bearer ak_client",
                "Modal-Key": "wk-client",
                "Modal-Flash-Upstream": "10.0.0.9:1",
                "Modal-Session-ID": "other",
                "X-Session-ID": "episode-7",
            }
            assert (await world.ask(**stray)).status_code == 200
            (head,) = world.edge.asked("POST")
            lines = head.lower().split("\r\n")
            assert f"modal-flash-upstream: 10.0.0.1:{world.inner[0].address[1]}" in lines
            assert "authorization: bearer ak_inner" in lines
            assert {"modal-key: wk-1", "modal-secret: ws-1"} <= set(lines)
            assert "modal-session-id: episode-7" in lines
            assert "modal-routing-affinity-key: episode-7" in lines
            assert "client" not in head
            assert "other" not in head
            assert head.lower().count("authorization:") == 1
            for look in world.edge.asked("GET /serving"):
                assert "Bearer ak_inner" in look

    run(test)
