"""Further routers for the control plane, named in the config: `mounts: ["package.module:factory"]`.

serve imports nothing by itself: a factory is found by its name when the gateway starts, gets a
`MountContext`, and returns a FastAPI router. Its routes are guarded as ours are, once they ask
`context.require(SCOPE)`; a route that asks nothing is open to everybody.

    def router(context: MountContext) -> APIRouter:
        made = APIRouter(prefix="/train", tags=["train"])
        jobs = Jobs(context.state / "train", gateway=context.base_url)
        context.on_stop(jobs.stop)
        Admin = Annotated[Caller, context.require(Scope.ADMIN)]

        @made.get("/jobs", dependencies=[context.require(Scope.TRAIN)])
        async def listed() -> list[str]:
            return jobs.names()

        @made.post("/jobs", status_code=201)
        async def start(body: JobBody, caller: Admin) -> Job:
            job = await jobs.start(body)
            await context.audit(caller.actor, "train.start", job.id)
            return job

        return made

FastAPI reads annotations, so that module must not have `from __future__ import annotations`.
"""

import importlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from serve.errors import ConfigError
from serve.wire import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class MountContext:
    """What a mounted router gets of the gateway."""

    require: Callable[[Scope], Any]
    """Return FastAPI's `Depends` that admits callers with this scope and gives the `Caller`.

    Everybody else gets an error object: 401 without a key that is known, 403 without the scope.
    """
    state: Path
    """The gateway's state folder; make a folder of your own in it."""
    base_url: Callable[[], str]
    """Where this gateway listens, `http://127.0.0.1:8000` without a path; once it has started."""
    audit: Callable[[str, str, str], Awaitable[None]]
    """Note an administrative action: who (`caller.actor`), what, on what."""
    on_stop: Callable[[Callable[[], Awaitable[None]]], None]
    """Have something awaited when the gateway stops, before its replicas go."""


Mount = Callable[[MountContext], APIRouter]
"""What a name in `mounts` stands for."""


def mounted(names: Sequence[str]) -> list[Mount]:
    """Import the factories with these names; raise ConfigError."""
    return [_mount(name) for name in names]


def routers(mounts: Sequence[Mount], context: MountContext) -> list[APIRouter]:
    """Return what the factories make; raise ConfigError where that is no router."""
    made = [mount(context) for mount in mounts]
    for mount, router in zip(mounts, made, strict=True):
        if not isinstance(router, APIRouter):
            raise ConfigError(
                f"mounts: {mount.__module__}:{getattr(mount, '__name__', mount)} returned "
                f"{type(router).__name__}; expected a fastapi.APIRouter"
            )
    return made


def _mount(name: str) -> Mount:
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"mounts: cannot import {name}: {error}; expected an importable MODULE:FACTORY"
        ) from error
    if not callable(found):
        raise ConfigError(f"mounts: {name} is no function; expected one that returns a router")
    mount: Mount = found
    return mount
