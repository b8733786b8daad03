"""What the fault suite is made of: `make_gateway` is the one place that puts a gateway together."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from serve import wire
from serve.accounts.limits import Account, Limits
from serve.front.gateway import Gateway, Parts, policy_names
from serve.front.ports import Message
from serve.front.relay.naming import Resolver
from serve.front.sight.meters import Meters
from serve.pool.replicas import ReplicaState, encoded
from serve.pool.routing import Router
from serve.settings import FrontConfig, RoutingRules
from serve.wire import Scope
from tests.faults.backend import Backend
from tests.faults.wire import KEY
from tests.faults.world import OneKey, WatchedPool, World

Worlds = Callable[..., World]


async def make_gateway(world: World) -> Gateway:
    """Put a gateway together as `serve up` does, with the suite's pool, key and control plane."""
    urls = [f"http://127.0.0.1:{backend.port}" for backend in world.backends]
    pool = world.pool = WatchedPool(urls, world.probe_s, world.probe_timeout_s)
    for number, replica in enumerate(pool.replicas):
        replica.id = f"r{number}"
        replica.serve_only("m", 1, "m")
        if world.versions:
            names = world.versions[number]
            replica.served = {"m": {v: encoded(name) for v, name in names.items()}}
            replica.current = {"m": max(names)}
        replica.state = ReplicaState.READY if world.ready else ReplicaState.STARTING
    parts = Parts(
        pool=pool,
        router=Router(pool.replicas),
        resolver=Resolver(RoutingRules(), lambda: policy_names(pool)),
        auth=cast("Any", OneKey(b"Bearer " + KEY, world.account)),
        ledger=cast("Any", world.ledger),
        meters=Meters(),
        limits=FrontConfig(**world.options),
    )
    gateway = Gateway(parts, host="127.0.0.1", port=0)
    gateway.app = _control_plane(world)
    await gateway.start()
    await pool.start()
    return gateway


def _control_plane(world: World) -> Any:
    """Return an application that knows no path, and keeps the ones that it was asked for."""

    async def app(scope: Message, receive: Any, send: Any) -> None:
        world.control.append(scope["raw_path"])
        body = wire.error_body("Not Found", status=404, kind="invalid_request_error")
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


@pytest.fixture
def worlds() -> Iterator[Worlds]:
    """Make gateways with `worlds(Backend(...), ..., limit=value)`; afterwards all gauges are 0."""
    opened: list[World] = []

    def make(
        *backends: Backend,
        versions: tuple[dict[int, str], ...] = (),
        probe_s: float = 0.05,
        probe_timeout_s: float = 5.0,
        ready: bool = True,
        limits: Limits | None = None,
        **options: Any,
    ) -> World:
        account = Account("fa017500", "faults", list(Scope), limits or Limits())
        world = World(
            backends=list(backends) or [Backend()],
            options=options,
            versions=versions,
            probe_s=probe_s,
            probe_timeout_s=probe_timeout_s,
            ready=ready,
            account=account,
        )
        world.open(make_gateway)
        opened.append(world)
        return world

    yield make
    failures: list[object] = []
    for world in opened:
        try:
            world.settle()
        except AssertionError as error:
            failures.append(error)
        world.close()
        failures += world.errors
    assert failures == []


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port that answers no SYN: it listens, and its queue is full."""
    with socket.socket() as listening, contextlib.ExitStack() as stack:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]
