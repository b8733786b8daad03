"""How long and how often a call is tried again: backoff, Retry-After, and waiting for a server.

One `Patience` is shared by all calls to one server, so that they notice together when it is away
and when it is back. The clock and the sleep are injected.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from evalkit.errors import CallFailed, Failure, ServerLost

T = TypeVar("T")

RETRIED = frozenset({Failure.CONNECT, Failure.TIMEOUT, Failure.SERVER_ERROR, Failure.BAD_REPLY})
"""Tried again a bounded number of times."""
BUSY = frozenset({Failure.RATE_LIMITED, Failure.CONFLICT})
"""Tried again until `wait_s` has passed: the server is there, but not for this call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryLimits:
    """Bounds on one call. None of them changes a result, only whether there is one."""

    attempts: int = 6
    """Tries of a call that keeps failing, waits for an absent server not counted."""
    wait_s: float = 300.0
    """How long a server may be away, starting up or rate-limiting, in seconds."""
    timeout_s: float = 120.0
    """For one complete response, in seconds."""
    backoff_s: float = 0.5
    """Pause before the second try, in seconds; doubled each time."""
    backoff_max_s: float = 20.0


@dataclass(slots=True)
class Patience:
    """Tries calls again within `limits`; knows since when the server is away."""

    limits: RetryLimits
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    retries: int = 0
    """Tries beyond the first, over all calls."""
    away_since: float | None = None
    _jitter: random.Random = field(default_factory=lambda: random.Random(0))

    async def call(self, attempt: Callable[[int], Awaitable[T]]) -> T:
        """Await `attempt(number)`, number from 1, until it succeeds or patience ends.

        Raises:
            CallFailed: the last failure, when it cannot or may not be tried again.
            ServerLost: nobody got an answer for `wait_s`.

        """
        number, counted, since = 0, 0, None
        while True:
            number += 1
            try:
                result = await attempt(number)
            except CallFailed as failure:
                now = self.clock()
                counted += failure.failure in RETRIED
                since = now if since is None else since
                self._give_up(failure, counted, now, since)
                self.retries += 1
                await self.sleep(self._pause(failure, number))
            else:
                self.away_since = None
                return result

    def _give_up(self, failure: CallFailed, counted: int, now: float, since: float) -> None:
        """Raise unless `failure` may be tried again."""
        kind = failure.failure
        if failure.status and kind is not Failure.UNAVAILABLE:
            self.away_since = None  # it answered
        if kind is Failure.UNAVAILABLE:
            self._note_absence(failure, now)
        elif kind in BUSY:
            if now - since > self.limits.wait_s:
                raise failure
        elif kind not in RETRIED or counted >= self.limits.attempts:
            raise failure

    def _note_absence(self, failure: CallFailed, now: float) -> None:
        if self.away_since is None:
            self.away_since = now
        away_s = now - self.away_since
        if away_s > self.limits.wait_s:
            raise ServerLost(f"no answer for {away_s:.0f} s: {failure}") from failure

    def _pause(self, failure: CallFailed, number: int) -> float:
        limits = self.limits
        backoff = min(limits.backoff_max_s, limits.backoff_s * 2.0 ** min(number - 1, 30))
        backoff *= self._jitter.uniform(0.5, 1.0)
        return max(backoff, min(failure.retry_after_s or 0.0, limits.wait_s))
