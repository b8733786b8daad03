"""Servers under load in simulated time, for tests and benchmarks of concurrency.

Minutes pass in moments and every run is the same: nothing waits, the loop's clock jumps to what
comes next. Each server answers as one kind of real one does when it is asked too much.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from heapq import heapify, heappop, heappush
from typing import Any, Self, TypeVar

import orjson

from evalkit.play.transport import Body, ExtraHeaders, Response

T = TypeVar("T")

TOKENS = 40
"""Length of a completion, on average, in tokens."""
SPREAD = 0.5
"""Standard deviation of the logarithm of a completion's length."""


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type, unused-ignore]
    """Waits for nothing: moves a clock on instead."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready now; `timeout` seconds have passed."""
        self.now_s += timeout or 0.0
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the simulated time, in seconds."""
        return self._jumping.now_s


def run_simulated(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in simulated time; its loop's `time()` is the clock."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)


def now_s() -> float:
    """Return the time of the running loop, in seconds."""
    return asyncio.get_running_loop().time()


class SimulatedServer(ABC):
    """A `Transport` to a server that takes its time: longer for longer completions."""

    def __init__(self, *, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self.in_flight = 0
        self.most = 0
        """Calls that it had at once, refused ones included."""
        self.refused = 0

    @abstractmethod
    def service_s(self, length: float) -> float | None:
        """Return how long a call takes, `length` times the mean; None where it is refused."""

    async def post(
        self,
        path: str | bytes,  # noqa: ARG002 - the port's signature
        body: Body,  # noqa: ARG002
        headers: ExtraHeaders = b"",  # noqa: ARG002
        *,
        timeout_s: float,  # noqa: ARG002
    ) -> Response:
        """Answer when it is time."""
        length = self._rng.lognormvariate(-SPREAD * SPREAD / 2, SPREAD)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            service_s = self.service_s(length)
            if service_s is None:
                self.refused += 1
                await asyncio.sleep(0.002)
                error = orjson.dumps({"error": {"message": "too many requests"}})
                return Response(
                    status=429, headers={"retry-after": "1"}, body=error, elapsed_s=0.002
                )
            await asyncio.sleep(service_s)
        finally:
            self.in_flight -= 1
        tokens = max(1, round(TOKENS * length))
        said = {
            "choices": [{"message": {"content": "<action>up</action>"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": tokens},
        }
        return Response(status=200, headers={}, body=orjson.dumps(said), elapsed_s=service_s)

    async def get(
        self, path: str | bytes, headers: ExtraHeaders = b"", *, timeout_s: float
    ) -> Response:
        """Refuse: there is nothing to get."""
        raise NotImplementedError

    async def aclose(self) -> None:  # noqa: B027 - there are no connections
        """Do nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class Queueing(SimulatedServer):
    """Computes `slots` calls at a time, lets the others wait, and thrashes beyond `knee`.

    A full batch takes longer than a single call, but less than in proportion.
    """

    def __init__(
        self, *, slots: int = 32, full_s: float = 0.5, knee: int = 64, thrash: float = 0.01
    ) -> None:
        super().__init__()
        self.full_s = full_s
        self._knee = knee
        self._thrash = thrash
        self._free_s = [0.0] * slots

    def resize(self, slots: int) -> None:
        """Let it compute so many at a time from now on."""
        self._free_s = sorted(self._free_s)[-slots:] + [0.0] * (slots - len(self._free_s))
        heapify(self._free_s)

    def service_s(self, length: float) -> float:
        """Return waiting and computing."""
        slots = len(self._free_s)
        batch = 0.5 + 0.5 * min(self.in_flight, slots) / slots
        strain = 1.0 + self._thrash * max(0, self.in_flight - self._knee)
        now = now_s()
        done_s = max(now, heappop(self._free_s)) + self.full_s * batch * strain * length
        heappush(self._free_s, done_s)
        return done_s - now


class Fitful(Queueing):
    """Computes for as many as ask, at a speed that another one takes over every `lasting_s`.

    As on a machine that others use: one level's throughput differs by half from look to look.
    """

    def __init__(
        self, *, slots: int = 128, spread: float = 0.35, lasting_s: float = 1.5, seed: int = 0
    ) -> None:
        super().__init__(slots=slots, full_s=0.5, knee=10_000)
        self._seed = seed
        self._spread = spread
        self._lasting_s = lasting_s

    def service_s(self, length: float) -> float:
        """Return waiting and computing, at the speed of this moment."""
        moment = random.Random(f"{self._seed} {now_s() // self._lasting_s}")
        return super().service_s(length * moment.lognormvariate(0.0, self._spread))


class Refusing(SimulatedServer):
    """Takes `takes` calls at once, and says 429 to any other."""

    def __init__(self, *, takes: int = 24, latency_s: float = 0.5) -> None:
        super().__init__()
        self.takes = takes
        self._latency_s = latency_s

    def service_s(self, length: float) -> float | None:
        """Return the same for few and many, up to a number."""
        return self._latency_s * length if self.in_flight <= self.takes else None


class Distant(SimulatedServer):
    """Takes as long for many calls as for one: an API whose limits are far away."""

    def __init__(self, *, latency_s: float = 2.0) -> None:
        super().__init__()
        self.latency_s = latency_s

    def service_s(self, length: float) -> float:
        """Return the same however many there are."""
        return self.latency_s * length
