"""A loop whose time passes at once, requests without a wire, and engines that do as told."""

import asyncio
import itertools
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any

from serve.errors import EngineDied
from serve.pool.base import Pool
from serve.pool.local import LocalPool
from serve.pool.replicas import Replica, ReplicaState
from serve.testing import FakeEngine

HEALTH: dict[str, Any] = {"interval_s": 0.01, "down_interval_s": 0.005, "timeout_s": 1.0}
"""Health for tests with real sockets."""


class _Hurried(selectors.DefaultSelector):
    """Waits for nothing, and says for how long it would have."""

    passed_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.passed_s += timeout or 0.0
        return super().select(0)


class _HurriedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._hurried = _Hurried()
        super().__init__(self._hurried)

    def time(self) -> float:
        return self._hurried.passed_s


def run_hurried(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run without waiting for time to pass; for tests without sockets and threads."""
    with asyncio.Runner(loop_factory=_HurriedLoop) as runner:
        runner.run(asyncio.wait_for(coroutine, 100_000))


async def until(condition: Callable[[], object], what: str = "it", timeout_s: float = 10.0) -> None:
    """Wait for a condition; the wall clock limits it, whatever the loop's does."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        await asyncio.sleep(0.002)


class Request:
    """A request in flight on a replica."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.lost: list[str] = []
        replica.active.add(self)
        replica.in_flight += 1
        replica.requests += 1

    def replica_lost(self, reason: str) -> None:
        self.lost.append(reason)
        self.finish()

    def finish(self) -> None:
        self.replica.active.discard(self)
        self.replica.in_flight -= 1


class Table(Pool):
    """Replicas and nothing else: its states are changed by the test, or by a Health."""

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.replicas += [Replica(f"r{number}", "127.0.0.1", 1) for number in range(count)]
        self.told: list[str] = []
        self.listeners.append(lambda replica: self.told.append(replica.state.value))

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def wake(self) -> None:
        pass

    def failed(self, replica: Replica, reason: str) -> None:
        raise NotImplementedError

    async def scale(self, count: int) -> None:
        raise NotImplementedError


def ready(count: int, *versions: int, name: str = "m") -> list[Replica]:
    """Return so many replicas that serve these versions, the last one under the bare name."""
    replicas = [Replica(f"r{number}", "127.0.0.1", 1 + number) for number in range(count)]
    for replica in replicas:
        replica.state = ReplicaState.READY
        replica.served = {name: {version: b'"%d"' % version for version in versions or (1,)}}
        replica.current = {name: (versions or (1,))[-1]}
    return replicas


class TestEngine(FakeEngine):
    """A FakeEngine that can be slow to load, or fail to."""

    __test__ = False

    def __init__(self, port: int) -> None:
        super().__init__(port=port)
        self.loaded = asyncio.Event()
        self.loaded.set()
        self.fails: Exception | None = None
        self.stops = 0
        self.is_up = False

    async def start(self) -> None:
        starting = asyncio.ensure_future(super().start())
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await starting
            await super().stop()
            raise
        self.is_up = True

    async def wait_ready(self, timeout_s: float = 600.0) -> None:
        if self.fails is not None:
            raise self.fails
        await self.loaded.wait()

    async def stop(self) -> None:
        self.stops += 1
        self.is_up = False
        await super().stop()

    def kill(self) -> None:
        self.is_up = False
        super().kill()


class Engines:
    """The factory of a LocalPool: keeps what it made, and when."""

    def __init__(self, *plans: Callable[[TestEngine], None] | Exception) -> None:
        self.made: list[TestEngine] = []
        self.indices: list[int] = []
        self.asked_s: list[float] = []
        self._plans = itertools.chain(plans, itertools.repeat(lambda engine: None))

    def __call__(self, index: int, port: int) -> TestEngine:
        self.asked_s.append(time.monotonic())
        plan = next(self._plans)
        if isinstance(plan, Exception):
            raise plan
        engine = TestEngine(port)
        plan(engine)
        self.made.append(engine)
        self.indices.append(index)
        return engine

    @property
    def up(self) -> int:
        """How many run now."""
        return sum(engine.is_up for engine in self.made)


def loads(engine: TestEngine) -> None:
    """Let an engine load until the test lets it be ready."""
    engine.loaded.clear()


def dies(engine: TestEngine) -> None:
    """Let an engine die before it is ready."""
    engine.fails = EngineDied("out of memory")


def are_ready(pool: LocalPool, count: int) -> Callable[[], bool]:
    """Return whether exactly so many replicas are there, all of them ready."""
    return lambda: [replica.is_ready for replica in pool.replicas] == [True] * count
