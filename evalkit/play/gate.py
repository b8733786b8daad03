"""Where calls to one server wait for their turn, as many at once as its limit allows.

An episode that is further on goes first: what is begun is finished before more is begun, so that
the arms of a seed end close in time, and no half-played episode starves. One `Gate` for a server,
whoever its arms are. What to learn from an answer is decided in `adaptive`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from heapq import heappop, heappush
from typing import Protocol, TypeVar

from evalkit.errors import CallFailed, Failure
from evalkit.play.adaptive import AdaptiveLimit, Gauges

OVERLOADED = frozenset({429, 503, 529})
"""Statuses by which a server says that it takes no more for now."""
LATE = frozenset({408, 502, 504})
"""Statuses by which a proxy says that the server did not answer in time."""


class Answer(Protocol):
    """What a call returns, as far as its length goes."""

    @property
    def completion_tokens(self) -> int | None:
        """Length, where the server says it."""
        ...


A = TypeVar("A", bound=Answer)


class Gate:
    """Admits the calls to one server."""

    def __init__(
        self, limit: AdaptiveLimit | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = AdaptiveLimit() if limit is None else limit
        self._clock = clock
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = 0
        self.moved: Callable[[], object] = lambda: None
        """Called when the limit has changed."""

    @property
    def limit(self) -> int:
        """Calls that may be in flight now."""
        return self._limit.limit

    @property
    def settled(self) -> int:
        """The best number of calls in flight that is known."""
        return self._limit.settled

    async def call(self, turn: int, attempt: Callable[[], Awaitable[A]]) -> A:
        """Await `attempt`, the call of an episode's turn, when its turn has come."""
        await self._enter(turn)
        began_s = self._clock()
        lesson: Callable[[float], None] = self._limit.left
        try:
            answer = await attempt()
            tokens = answer.completion_tokens
            lesson = lambda now_s: self._limit.answered(began_s, now_s, tokens)  # noqa: E731
        except CallFailed as failure:
            lesson = self._lesson(failure)
            raise
        else:
            return answer
        finally:
            before = self._limit.limit
            lesson(self._clock())
            self._admit(before)

    def told(self, gauges: Gauges) -> None:
        """Take in what the server says of itself."""
        before = self._limit.limit
        self._limit.told(gauges, self._clock())
        self._admit(before)

    def _lesson(self, failure: CallFailed) -> Callable[[float], None]:
        if failure.status in OVERLOADED:
            return lambda now_s: self._limit.refused(now_s, failure.retry_after_s)
        if failure.status in LATE or failure.failure is Failure.TIMEOUT:
            return self._limit.timed_out
        return self._limit.left

    async def _enter(self, turn: int) -> None:
        """Wait for a place and take it."""
        if not self._waiting and self._limit.in_flight < self._limit.limit:
            self._limit.began(self._clock())
            return
        place = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        heappush(self._waiting, (-turn, self._arrivals, place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given, and is not taken
                self._limit.left(self._clock())
                self._admit(self._limit.limit)
            raise

    def _admit(self, before: int) -> None:
        """Give free places away; say so if the limit is another than `before`."""
        while self._waiting and self._limit.in_flight < self._limit.limit:
            place = heappop(self._waiting)[2]
            if not place.cancelled():
                self._limit.began(self._clock())
                place.set_result(None)
        if self._limit.limit != before:
            self.moved()
