"""Routers from elsewhere in the control plane: found by name, guarded like ours."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter

from serve.accounts.limits import Limits
from serve.errors import ConfigError
from serve.front.control.app import control_app
from serve.front.control.guard import Caller, needing
from serve.front.control.mounts import MountContext, mounted, routers
from serve.front.testing import rehearsal
from serve.wire import Scope

HERE = __name__


def guest(context: MountContext) -> APIRouter:
    made = APIRouter(prefix="/guest")
    Trainer = Annotated[Caller, context.require(Scope.TRAIN)]  # noqa: N806  # a type

    @made.get("/open")
    async def anybody() -> dict[str, str]:
        return {"state": str(context.state), "gateway": context.base_url()}

    @made.post("/jobs", status_code=201)
    async def start(caller: Trainer) -> dict[str, str]:
        await context.audit(caller.actor, "guest.start", "job-1")
        return {"actor": caller.actor}

    return made


def stranger(context: MountContext) -> Any:
    return object()


NOT_CALLABLE = 5


def context_for(state: Path, audit: Callable[..., Awaitable[None]]) -> MountContext:
    return MountContext(
        require=needing,
        state=state,
        base_url=lambda: "http://127.0.0.1:8000",
        audit=audit,
        on_stop=lambda _: None,
    )


async def no_audit(actor: str, action: str, target: str) -> None: ...


def test_a_mounted_router_is_reached_and_guarded(tmp_path: Path) -> None:
    async def run() -> None:
        async with rehearsal(tmp_path) as services:
            audited: list[tuple[str, str, str]] = []

            async def audit(actor: str, action: str, target: str) -> None:
                audited.append((actor, action, target))

            made = routers(mounted([f"{HERE}:guest"]), context_for(tmp_path, audit))
            app = control_app(services, made)
            keys = {
                scope: services.store.create_key(scope.value, [scope], Limits(), actor="test")[1]
                for scope in (Scope.INFER, Scope.TRAIN, Scope.ADMIN)
            }
            await services.auth.reload()
            transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
            async with httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1"
            ) as client:

                async def start(key: str | None) -> httpx.Response:
                    headers = {} if key is None else {"authorization": f"Bearer {key}"}
                    return await client.post("/guest/jobs", headers=headers)

                said = (await client.get("/guest/open")).json()
                assert said == {"state": str(tmp_path), "gateway": "http://127.0.0.1:8000"}
                assert (await start(None)).status_code == 401
                refused = await start(keys[Scope.INFER])
                assert refused.status_code == 403
                assert "needs a key with the scope train" in refused.json()["error"]["message"]
                answer = await start(keys[Scope.TRAIN])
                assert answer.status_code == 201
                assert audited == [(answer.json()["actor"], "guest.start", "job-1")]
                assert (await start(keys[Scope.ADMIN])).status_code == 201
                assert "/guest/jobs" in (await client.get("/openapi.json")).json()["paths"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no.such.module:router", "cannot import no.such.module:router: No module named"),
        (f"{HERE}:nothing", "has no attribute 'nothing'"),
        (f"{HERE}:NOT_CALLABLE", "is no function; expected one that returns a router"),
    ],
)
def test_what_cannot_be_mounted(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        mounted([name])


def test_what_is_no_router(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stranger returned object; expected a fastapi"):
        routers(mounted([f"{HERE}:stranger"]), context_for(tmp_path, no_audit))
