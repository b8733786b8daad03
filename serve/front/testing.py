"""A control plane over a pool that only pretends: for tests, and for looking at the dashboard.

Keys, sessions, policies and counts are real; replicas are entries in a table.
"""

import asyncio
import random
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn

from serve.accounts.auth import Auth
from serve.accounts.store import AccountStore
from serve.engine.launch import free_port
from serve.errors import ServeError
from serve.front.control.app import control_app
from serve.front.control.services import Services
from serve.front.sight.meters import Meters
from serve.policies.store import PolicyStore
from serve.pool.base import Demand, Pool
from serve.pool.replicas import Replica, ReplicaState
from serve.wire import SwapMode


class StillPool(Pool):
    """Replicas that change only when a test changes them."""

    def __init__(self, count: int = 0) -> None:
        super().__init__()
        self.scaled_to: list[int] = []
        self.demand = self._demand
        for number in range(count):
            self.add(f"r{number}", 9000 + number)

    def add(self, id_: str, port: int) -> Replica:
        """Add a ready replica."""
        replica = Replica(id_, "127.0.0.1", port)
        replica.state = ReplicaState.READY
        self.replicas.append(replica)
        return replica

    async def start(self) -> None:
        """Start nothing."""

    async def stop(self) -> None:
        """Stop nothing."""

    def wake(self) -> None:
        """Wake nothing."""

    def failed(self, replica: Replica, reason: str) -> None:
        """Believe it."""
        replica.state = ReplicaState.DOWN
        replica.reason = reason

    async def scale(self, count: int) -> None:
        """Remember it."""
        self.scaled_to.append(count)

    def _demand(self) -> Demand:
        return Demand(in_flight=sum(replica.in_flight for replica in self.replicas))


class InstantSync:
    """Serves what is published on every replica at once."""

    def __init__(self, pool: Pool, policies: PolicyStore) -> None:
        self._pool = pool
        self._policies = policies
        self.converged: list[tuple[str, SwapMode]] = []
        self.error: ServeError | None = None
        """Raised instead, if set."""

    async def converge(self, name: str, swap: SwapMode) -> None:
        """Do so."""
        self.converged.append((name, swap))
        if self.error is not None:
            raise self.error
        latest = self._policies.latest(name)
        assert latest is not None
        for replica in self._pool.replicas:
            replica.served.setdefault(name, {})[latest] = b'"engine"'
            replica.current[name] = latest


@asynccontextmanager
async def rehearsal(state_dir: Path, *, replicas: int = 2) -> AsyncIterator[Services]:
    """Lend services over a state folder; `pool` is a StillPool and `sync` an InstantSync."""
    store = AccountStore.open(state_dir)
    auth = Auth(store)
    pool = StillPool(replicas)
    policies = PolicyStore(state_dir / "policies")
    await auth.start()
    try:
        yield Services(
            pool=pool,
            policies=policies,
            sync=InstantSync(pool, policies),
            store=store,
            auth=auth,
            meters=Meters(),
        )
    finally:
        await auth.stop()
        store.close()


def client_of(
    services: Services, *, source: str = "127.0.0.1", url: str = "http://127.0.0.1"
) -> httpx.AsyncClient:
    """Return a client of the control plane over these services, without a socket."""
    transport = httpx.ASGITransport(control_app(services), client=(source, 1))
    return httpx.AsyncClient(transport=transport, base_url=url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A rehearsal that listens on loopback, on an event loop of its own."""

    url: str
    services: Services
    stop: Callable[[], None]


@contextmanager
def on_stage(state_dir: Path, prepare: Callable[[Services], Awaitable[None]]) -> Iterator[Stage]:
    """Lend a rehearsal to whom speaks HTTP only: a browser, or a fuzzer."""
    started: Future[Stage] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_perform(state_dir, prepare, started)))
    thread.start()
    try:
        stage = started.result(timeout=60)
        try:
            yield stage
        finally:
            stage.stop()
    finally:
        thread.join(timeout=30)


async def _perform(
    state_dir: Path, prepare: Callable[[Services], Awaitable[None]], started: "Future[Stage]"
) -> None:
    port = free_port("127.0.0.1")
    async with rehearsal(state_dir) as services:
        await prepare(services)
        config = uvicorn.Config(
            control_app(services), port=port, lifespan="off", log_level="warning"
        )
        server = _Server(config)

        def stop() -> None:
            server.should_exit = server.force_exit = True

        url = f"http://127.0.0.1:{port}"
        server.on_started = lambda: started.set_result(Stage(url=url, services=services, stop=stop))
        await server.serve()


class _Server(uvicorn.Server):
    """Says when it listens."""

    on_started: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self.on_started()


def act(services: Services, *, seconds: int = 60, seed: int = 0) -> None:
    """Pretend that there was traffic for so many seconds, the last of them now."""
    rng = random.Random(seed)
    keys = list(services.auth.accounts) or ["anonymous"]
    meters = services.meters
    for second in range(seconds + 1):
        meters.sample(float(second), sum(r.in_flight for r in services.pool.replicas))
        for _ in range(rng.randrange(20, 60)):
            replica = rng.choice(services.pool.replicas)
            name = rng.choice([*replica.current])
            meters.done(
                path="/v1/chat/completions",
                status=rng.choices([200, 429, 502], [97, 2, 1])[0],
                model=name,
                key_id=rng.choice(keys),
                replica_id=replica.id,
                version=replica.current[name],
                duration_s=rng.lognormvariate(-0.5, 0.6),
                first_byte_s=rng.lognormvariate(-3, 0.5),
                prompt_tokens=rng.randrange(50, 900),
                completion_tokens=rng.randrange(5, 120),
                streamed=True,
            )
