"""A gateway behind somebody who speaks HTTPS with everybody, and maybe proves who they are."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.accounts.limits import Limits
from serve.accounts.store import AccountStore
from serve.errors import ConfigError
from serve.settings import HealthConfig, ServeConfig
from serve.testing import FakeEngine
from serve.up import opened
from serve.wire import Scope

EVERYWHERE = "0.0.0.0"
ASKED = {"model": "fake", "prompt": "x", "max_tokens": 1}


@contextlib.asynccontextmanager
async def behind_an_edge(state: Path, **told: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client that has come through an edge: it knows the gateway by another name."""
    async with FakeEngine() as engine:
        config = ServeConfig(
            upstreams=(engine.root_url,),
            host=EVERYWHERE,
            port=0,
            state=state,
            health=HealthConfig(interval_s=0.05, down_interval_s=0.01),
            **told,
        )
        async with opened(config) as (gateway, _):
            url = f"http://127.0.0.1:{gateway.address[1]}"
            host = {"host": "app--policy.modal.example", "x-forwarded-for": "203.0.113.7"}
            async with httpx.AsyncClient(base_url=url, headers=host, timeout=30) as client:
                yield client
            await gateway.stop(1.0)


def test_beyond_loopback_somebody_must_prove_who_asks(tmp_path: Path) -> None:
    async def run() -> None:
        for told in ({}, {"edge_tls": True}):
            with pytest.raises(ConfigError, match=r"refusing to listen on 0\.0\.0\.0 .*edge_auth"):
                async with behind_an_edge(tmp_path / "state", **told):
                    pass

    asyncio.run(run())


def test_an_edge_that_proves_who_asks_takes_the_place_of_keys(tmp_path: Path) -> None:
    async def run() -> None:
        async with behind_an_edge(tmp_path, edge_auth=True) as client:
            assert (await client.post("/v1/completions", json=ASKED)).status_code == 200
            for path in ("/serving", "/v1/models", "/admin/pool"):
                assert (await client.get(path)).status_code == 200
            foreign = {"origin": "https://elsewhere.example"}
            body = {"name": "fake", "version": 1}
            answer = await client.post("/admin/rollback", json=body, headers=foreign)
            assert answer.status_code == 403

    asyncio.run(run())


def test_an_edge_that_only_ends_tls_leaves_the_keys_to_us(tmp_path: Path) -> None:
    store = AccountStore.open(tmp_path)
    _, key = store.create_key("k", [Scope.INFER], Limits(), actor="test")
    store.close()

    async def run() -> None:
        async with behind_an_edge(tmp_path, edge_tls=True) as client:
            assert (await client.post("/v1/completions", json=ASKED)).status_code == 401
            ours = {"authorization": f"Bearer {key}"}
            answer = await client.post("/v1/completions", json=ASKED, headers=ours)
            assert answer.status_code == 200
            assert (await client.get("/serving", headers=ours)).json()["ready"]
            assert (await client.get("/admin/pool", headers=ours)).status_code == 403
        async with behind_an_edge(tmp_path) as client:
            answer = await client.post("/v1/completions", json=ASKED, headers=ours)
            assert (answer.status_code, "expects HTTPS" in answer.text) == (400, True)

    asyncio.run(run())
