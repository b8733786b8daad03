"""A gateway and its backends on a loop in a thread; the test is the clients. Counts are compared.

How a gateway is put together is `conftest.make_gateway`'s business.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop

from serve.accounts.limits import Account, Denied
from serve.front.gateway import Gateway
from serve.pool.replicas import Replica, ReplicaState
from serve.pool.static import StaticPool
from tests.faults.backend import Backend
from tests.faults.wire import Client, eventually

T = TypeVar("T")

Build = Callable[["World"], Coroutine[Any, Any, Gateway]]


class OneKey:
    """Auth with one key that is always right."""

    open = False

    def __init__(self, header: bytes, account: Account) -> None:
        self._accounts = {header: account}

    def known(self, header: bytes | None) -> Account | None:
        return None if header is None else self._accounts.get(header)

    async def verify(self, header: bytes | None, source: str) -> Account | Denied:
        return Denied(
            message="The API key is wrong.",
            code="invalid_api_key",
            kind="invalid_request_error",
            status=401,
        )


class Rows:
    """A ledger that keeps totals."""

    def __init__(self) -> None:
        self.requests = self.prompt_tokens = self.completion_tokens = self.estimated = 0

    def add(
        self, key_id: str, model: str, prompt_tokens: int, completion_tokens: int, estimated: bool
    ) -> None:
        self.requests += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.estimated += estimated


class WatchedPool(StaticPool):
    """A static pool that keeps what it was told; with `probe_s` 0 the test sets the states."""

    def __init__(self, urls: Sequence[str], probe_s: float, timeout_s: float) -> None:
        super().__init__(urls, interval_s=probe_s, down_interval_s=probe_s, timeout_s=timeout_s)
        self.probe_s = probe_s
        self.failures: list[tuple[str, str]] = []
        self.wakes = 0

    async def start(self) -> None:
        if self.probe_s:
            await super().start()

    def wake(self) -> None:
        self.wakes += 1

    def failed(self, replica: Replica, reason: str) -> None:
        self.failures.append((replica.id, reason))
        super().failed(replica, reason)

    def set(self, replica: Replica, state: ReplicaState) -> None:
        """Change a replica's state, and tell."""
        replica.state = state
        self.tell(replica)


@dataclass(slots=True, kw_only=True)
class World:
    """One gateway, its backends, and what they count. Entered by the `worlds` fixture."""

    backends: list[Backend]
    options: dict[str, Any]
    """Fields of the gateway's limits that differ from the suite's usual ones."""
    versions: tuple[dict[int, str], ...] = ()
    """For each backend: version -> the engine's name for it; else version 1 under `m`."""
    probe_s: float = 0.05
    probe_timeout_s: float = 5.0
    """Long, lest a busy machine looks like a hung replica."""
    ready: bool = True
    account: Account
    gateway: Gateway = field(init=False)
    pool: WatchedPool = field(init=False)
    ledger: Rows = field(default_factory=Rows)
    control: list[bytes] = field(default_factory=list)
    """Paths that went to the control plane."""
    errors: list[dict[str, Any]] = field(default_factory=list)
    """What nobody caught on the loop."""
    loop: asyncio.AbstractEventLoop = field(init=False)
    _thread: threading.Thread = field(init=False)

    def open(self, build: Build) -> None:
        """Start the loop, the backends and the gateway."""
        self.loop = uvloop.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        for backend in self.backends:
            self.run(backend.start())
        self.gateway = self.run(build(self))

    def close(self) -> None:
        """Stop everything."""
        self.run(self.gateway.stop(0.0))
        self.run(self.pool.stop())
        for backend in self.backends:
            self.run(backend.kill())
        self.run(asyncio.sleep(0.01))  # what was aborted is closed in the next turn of the loop
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()

    def client(self, **options: Any) -> Client:
        """Connect to the gateway."""
        return Client(self.gateway.address, **options)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float = 30.0) -> T:
        """Run on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call on the loop."""

        async def run() -> T:
            return function(*args)

        return self.run(run())

    @property
    def backend(self) -> Backend:
        """The first backend."""
        return self.backends[0]

    @property
    def replica(self) -> Replica:
        """The first backend's replica."""
        return self.pool.replicas[0]

    @property
    def seen(self) -> int:
        """Requests that reached any backend."""
        return sum(len(backend.seen) for backend in self.backends)

    def set(self, state: ReplicaState, number: int = 0) -> None:
        """Change a replica's state, where the pool does not probe."""
        self.call(self.pool.set, self.pool.replicas[number], state)

    def counts(self) -> dict[str, int]:
        """Return every gauge that must be zero when nothing is under way."""
        return self.call(self._counts)

    def settle_requests(self) -> None:
        """Wait until nothing is under way; connections may be open."""
        eventually(lambda: not any(n for k, n in self.counts().items() if k != "lanes"), "settled")

    def settle(self, within_s: float = 5.0) -> float:
        """Wait until every gauge is zero and no task is left; return how long that took."""
        try:
            return eventually(lambda: not any(self.counts().values()), "", within_s=within_s)
        except AssertionError:
            raise AssertionError(f"not zero: {self.counts()}") from None

    def _counts(self) -> dict[str, int]:
        replicas = self.pool.replicas
        return {
            "in_flight": sum(replica.in_flight for replica in replicas),
            "active": sum(len(replica.active) for replica in replicas),
            "account": self.account.in_flight,
            "held": self.gateway.demand().held,
            "lanes": self.gateway.connections,
            "busy": sum(backend.busy for backend in self.backends),
            "tasks": self._task_count(),
        }

    def _task_count(self) -> int:
        return sum(_is_a_request_s(task) for task in asyncio.all_tasks(self.loop))


def _is_a_request_s(task: asyncio.Task[Any]) -> bool:
    """Whether the gateway made the task for a request; others are probes and the sweeper."""
    return getattr(task.get_coro(), "__qualname__", "").startswith(("Exchange.", "Call."))
