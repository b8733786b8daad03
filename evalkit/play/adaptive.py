"""How many calls at once a server is best asked for: `-c auto`, the part that decides.

A search by throughput: double until that clearly costs, then compare neighbouring levels in turns,
and go on looking now and then. Throughput is noisy, and too many calls mostly wait and cost little:
so a tie goes up, and only what was seen twice goes down. Refusals, timeouts and what a vLLM server
says of itself cut it short. Pure: it is told what happens and when, by any one clock in seconds,
and says how many calls there may be.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from statistics import fmean

from evalkit.play.throughput import FULL, Reading, Window

START = 64
HIGHEST = 1024
QUICK_S, WINDOW_S = 0.5, 2.0
"""Least length of a window, while doubling and later: a server stalls for moments."""
TIE = 0.12
"""Gain or loss of twice the calls below which it is none."""
TIES = 2
"""Doublings in a row that may gain nothing."""
WORTH = {True: 0.01, False: 0.02}
"""Gain that a higher and a lower level must have to be taken: too many calls cost little."""
NOISE = 0.02
"""Least error that one comparison is taken to have."""
CLEAR_GAIN, CLEAR_LOSS = 0.12, -0.1
"""Beyond these one window decides: for a higher level, and against any."""
PAIRS = 5
"""Windows of each of two levels, at most, before it is decided between them."""
SMALL_STEP = 1.25
CHANGED = 0.25
"""Change of throughput at an unchanged level that makes the search begin anew."""
RECENT = 4
"""Windows that are held against all before them, to notice such a change."""
QUIET_WINDOWS = (8, 128)
"""Windows between looks at the neighbours: at first, and at most."""
CEILING_S = (5.0, 120.0)
"""How long a refused level is not tried again: at first, and at most."""

Up = bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What a vLLM server says of itself."""

    running: float
    waiting: float
    kv_usage: float
    """Share of the KV cache that is in use."""
    preemptions: float
    """Since the server began."""

    @property
    def saturated(self) -> bool:
        """Whether more calls would only wait."""
        return self.waiting > max(2.0, 0.1 * self.running) or self.kv_usage > 0.95


@dataclass(frozen=True, slots=True)
class _Measure:
    """What the search wants to know next."""

    level: int
    quick: bool = False


_Search = Generator[_Measure, Reading, None]


class AdaptiveLimit:
    """The number of calls that one server may have in flight, now."""

    def __init__(self, *, start: int = START, highest: int = HIGHEST) -> None:
        self.highest = max(1, highest)
        self.limit = 0
        """Calls that may be in flight now; a level on trial, at times."""
        self.settled = 0
        """The best level that is known."""
        self.in_flight = 0
        self._now_s = 0.0
        self._gauges: Gauges | None = None
        self._saturated = False
        self._ceiling, self._ceiling_until_s, self._ceiling_s = self.highest, 0.0, CEILING_S[0]
        self._cut_s, self._cut_floor, self._answered_since_cut = -math.inf, 1, True
        self._search: _Search
        self._window: Window
        self._restart(min(start, self.highest), quick=True)

    def began(self, now_s: float) -> None:
        """Count a call that goes out."""
        self._passed(now_s)
        self.in_flight += 1

    def answered(self, began_s: float, now_s: float, tokens: int | None) -> None:
        """Count a call's answer; `tokens` is the length of its completion, where that is known."""
        self.left(now_s)
        self._answered_since_cut |= began_s >= self._cut_s
        reading = self._window.answered(began_s, now_s, tokens)
        if reading is None:
            return
        if self._window.level > self._ceiling:
            self._ceiling, self._ceiling_s = self.highest, CEILING_S[0]
        self._measure(self._search.send(reading))

    def refused(self, now_s: float, retry_after_s: float | None) -> None:
        """Cut: the server has said that it takes no more (429, 503). What it holds it has taken."""
        self.left(now_s)
        full = self.in_flight >= FULL * self.limit
        self._cut(self.limit - 1 if full else self.in_flight, retry_after_s or 0.0)

    def timed_out(self, now_s: float) -> None:
        """Cut: an answer did not come in time."""
        self.left(now_s)
        self._cut(self.limit * 3 // 4)

    def left(self, now_s: float) -> None:
        """Count a call that ended in a way that says nothing of the server's load."""
        self._passed(now_s)
        self.in_flight -= 1

    def told(self, gauges: Gauges, now_s: float) -> None:
        """Take in what the server says of itself: no growth while it is full, a cut if it thrashes.

        One look may fall on a moment: it is full when two in a row say so.
        """
        self._passed(now_s)
        before, self._gauges = self._gauges, gauges
        self._saturated = gauges.saturated and before is not None and before.saturated
        if before is not None and gauges.preemptions > before.preemptions:
            self._cut(self.limit * 9 // 10)

    def _passed(self, now_s: float) -> None:
        self._now_s = now_s
        self._window.passed(now_s, self.in_flight)

    def _cut(self, level: int, wait_s: float = 0.0) -> None:
        """Lower the limit to `level`; to half at most until a later call has been answered."""
        if self._answered_since_cut:
            self._answered_since_cut, self._cut_s = False, self._now_s
            self._cut_floor = max(1, self.limit // 2)
            self._ceiling_s = min(CEILING_S[1], 2 * self._ceiling_s)
        level = max(self._cut_floor, min(self.limit, level))
        self._ceiling = level
        self._ceiling_until_s = self._now_s + max(wait_s, self._ceiling_s)
        self._restart(level, quick=False)

    def _restart(self, level: int, *, quick: bool) -> None:
        self._search = self._searching(level, quick=quick)
        self._measure(next(self._search))

    def _measure(self, wanted: _Measure) -> None:
        """Go to a level and begin to measure it."""
        level, before = wanted.level, self.limit
        self.limit = level
        brief = wanted.quick and before > 0
        self._window = Window(
            level,
            self._now_s,
            settle=0 if level == before else -(-level // (4 if brief else 2)),
            fewest=max(16, level // 2) if wanted.quick else max(32, level),
            shortest_s=QUICK_S if wanted.quick else WINDOW_S,
        )

    def _allowed(self, level: int) -> int:
        """Return `level`, or less: a refused level is left alone for a while, then felt for."""
        ceiling = self._ceiling
        if self._now_s >= self._ceiling_until_s:
            ceiling += max(1, ceiling // 8)
        return min(level, ceiling, self.highest)

    def _searching(self, level: int, *, quick: bool) -> _Search:
        """Look for the best level for ever, from `level` on."""
        self.settled = level
        plan: list[tuple[Up, float]] = []
        quiet = QUIET_WINDOWS[0]
        if quick:
            first = level
            level, lost = yield from self._climb(level)
            if lost:
                plan = [(False, 2.0) if level == first else (True, 1.4)]
            else:  # fewer calls are known to be no better
                quiet = 4 * quiet
        base = yield _Measure(level)
        while True:
            if not plan:
                base, changed = yield from self._hold(level, base, quiet)
                quiet = QUIET_WINDOWS[0] if changed else min(QUIET_WINDOWS[1], 2 * quiet)
                step = 1.5 if changed else SMALL_STEP
                plan = [(True, step), (False, step)]
            up, step = plan.pop(0)
            other = self._neighbour(level, step, up=up)
            if other == level:
                continue
            gain, base = yield from self._compare(level, base, other)
            if gain > 0:
                level = self.settled = other
                plan = [(up, min(2.0, step * 1.5)), (up, SMALL_STEP), (not up, SMALL_STEP)]
            elif up and gain < CLEAR_LOSS:
                plan = [(False, 1.4), *((up, step) for up, step in plan if not up)]
            elif gain < CLEAR_LOSS:
                quiet = min(QUIET_WINDOWS[1], 2 * quiet)

    def _neighbour(self, level: int, step: float, *, up: Up) -> int:
        """Return a level `step` times as high or as low, or the same where there is none."""
        if not up:
            return max(1, min(level - 1, round(level / step)))
        if self._saturated:
            return level
        return max(level, self._allowed(max(level + 1, round(level * step))))

    def _climb(self, level: int) -> Generator[_Measure, Reading, tuple[int, bool]]:
        """Go up in doublings; return where, and whether the next one lost, twice."""
        base = yield _Measure(level, quick=True)
        ties = 0
        while ties < TIES and (higher := self._neighbour(level, 2.0, up=True)) > level:
            trial = yield _Measure(higher, quick=True)
            gain = trial.gain(base)
            if gain < -TIE:
                after = yield _Measure(level, quick=True)
                trial = yield _Measure(higher, quick=True)
                if trial.gain(after) < -TIE:
                    return level, True
                gain = 0.0
            ties = ties + 1 if gain < TIE else 0
            level, base = higher, trial
            self.settled = level
        return level, False

    def _compare(
        self, level: int, base: Reading, other: int
    ) -> Generator[_Measure, Reading, tuple[float, Reading]]:
        """Measure two levels in turns; return what the other gains, and the better one's reading.

        The gain is positive where the other shall be taken.

        In turns, because a server's throughput drifts: each trial is held against the windows of
        the present level before it and after it.
        """
        gains: list[float] = []
        drifts: list[float] = []
        while True:
            trial = yield _Measure(other)
            gain = trial.gain(base)
            if other > level and gain > CLEAR_GAIN:
                return gain, trial
            after = yield _Measure(level)
            gains.append((gain + trial.gain(after)) / 2)
            drifts.append(abs(after.gain(base)) / 2)
            base = after
            found = fmean(gains) - WORTH[other > level]
            error = max(NOISE, fmean(drifts)) / math.sqrt(len(gains))
            decided = len(gains) > 1 and abs(found) > error
            if decided or len(gains) == PAIRS or gain < CLEAR_LOSS:
                won = found > (0 if other > level else error)
                return (found, trial) if won else (min(found, 0.0), base)

    def _hold(
        self, level: int, base: Reading, quiet: int
    ) -> Generator[_Measure, Reading, tuple[Reading, bool]]:
        """Stay; return the last reading, and whether the throughput has changed meanwhile."""
        gains = [0.0]
        reading = base
        for _ in range(quiet):
            reading = yield _Measure(level)
            gains.append(reading.gain(base))
            before, lately = gains[:-RECENT], gains[-RECENT:]
            if len(before) >= RECENT and abs(fmean(lately) - fmean(before)) > CHANGED:
                return reading, True
        return reading, False
