"""What one level of concurrency yields: a window of answers, measured once the level is reached.

Pure: times come in as seconds of any one clock. Knows nothing of what is done with a reading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FULL = 0.85
"""Share of a level that has to be in flight, on average, for a window to say something of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a server gave at one level."""

    level: int
    calls_per_s: float
    tokens_per_s: float | None
    """Of completions; None where an answer did not say how many it had."""

    def gain(self, before: Reading) -> float:
        """Return the logarithm of how many times as much this is as `before`.

        By tokens where both have them: how long answers are does not matter then.
        """
        if self.tokens_per_s and before.tokens_per_s:
            return math.log(self.tokens_per_s / before.tokens_per_s)
        return math.log(self.calls_per_s / before.calls_per_s)


class Window:
    """Measures one level, from `at_s` on.

    It begins when `settle` calls that were begun at this level have been answered, and ends after
    whole rounds of `level` answers: servers answer in batches, and a part of one would mislead.
    What comes before is no measure: calls that are added are worked on before they are answered.
    """

    def __init__(
        self,
        level: int,
        at_s: float,
        *,
        settle: int,
        fewest: int,
        shortest_s: float,
    ) -> None:
        self.level = level
        self._at_s = at_s
        self._settle = settle
        self._fewest = fewest
        self._shortest_s = shortest_s
        self._since_s: float | None = None
        self._last_s = at_s
        self._busy_s = 0.0
        self._calls = 0
        self._tokens: int | None = 0
        if not settle:
            self._start(at_s)

    def passed(self, now_s: float, in_flight: int) -> None:
        """Note that so many calls were in flight until now."""
        self._busy_s += in_flight * (now_s - self._last_s)
        self._last_s = now_s

    def answered(self, began_s: float, now_s: float, tokens: int | None) -> Reading | None:
        """Count an answer; return the reading when this was the last of the window."""
        if self._since_s is None:
            self._settle -= began_s >= self._at_s
            if self._settle <= 0:
                self._start(now_s)
            return None
        self._calls += 1
        self._tokens = None if tokens is None or self._tokens is None else self._tokens + tokens
        lasted_s = now_s - self._since_s
        whole = self._calls >= self._fewest and self._calls % min(self.level, self._fewest) == 0
        if not whole or lasted_s < self._shortest_s or lasted_s <= 0:
            return None
        if self._busy_s < FULL * self.level * lasted_s:
            self._start(now_s)  # there was not enough to do: this says nothing of the server
            return None
        tokens_per_s = None if self._tokens is None else self._tokens / lasted_s
        return Reading(
            level=self.level, calls_per_s=self._calls / lasted_s, tokens_per_s=tokens_per_s
        )

    def _start(self, now_s: float) -> None:
        self._since_s = self._last_s = now_s
        self._busy_s = 0.0
        self._calls = self._tokens = 0
