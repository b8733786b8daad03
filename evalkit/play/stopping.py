"""Stops a run when its arms are decided: takes in episodes as they end, and judges seed by seed.

Seeds are judged in the order of the run whatever order their episodes end in, so that the stop
depends on the trajectories alone. Episodes that are played ahead of the judged seeds are bounded
by the concurrency. Must not know how a stop is shown.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from evalkit.errors import RunFailed
from evalkit.judge.deciding import Deciding, Pair, SequentialArms, next_look
from evalkit.judge.sequential import Look, StoppingRule
from evalkit.record.trajectory import Key, Trajectory


class Unstopped:
    """What a run may be ended by: nothing. It plays all of its episodes."""

    def drawn(self, keys: Iterable[Key]) -> Iterator[Key]:
        """Pass on episodes to be played."""
        return iter(keys)

    async def admit(self, key: Key) -> None:
        """Wait until an episode may begin."""

    def take(self, trajectory: Trajectory) -> bool:  # noqa: ARG002 - a port
        """Take in an episode that ended, and say whether the run is decided."""
        return False

    def beyond(self, key: Key) -> bool:  # noqa: ARG002 - a port
        """Whether an episode comes after the end of the run."""
        return False

    def resize(self, concurrency: int) -> None:
        """Say how many episodes are played at once."""


class Stopping(Unstopped):
    """The sequential comparison of all arms of one run, while it plays."""

    def __init__(
        self,
        *,
        seeds: Sequence[int],
        k: int,
        arms: Sequence[str],
        deciding: Deciding,
        rule: StoppingRule,
        concurrency: int,
    ) -> None:
        self._seeds = seeds
        self._k = k
        self._arms = list(arms)
        self.deciding = deciding
        self._tests = SequentialArms(list(combinations(self._arms, 2)), rule)
        self._place = {seed: place for place, seed in enumerate(seeds)}
        self._ended: dict[int, dict[Key, float | None]] = {}
        self._judged = 0
        self._begun: set[Key] = set()
        self._moved = asyncio.Event()
        self._looks: dict[Pair, Look] = {}
        self.resize(concurrency)

    @property
    def decided(self) -> bool:
        """Whether every pair of arms has its verdict."""
        return self._tests.done

    @property
    def judged(self) -> Sequence[int]:
        """The seeds of the result, in the order of the run: once it has ended, all it counts."""
        return self._seeds[: self._judged]

    @property
    def wasted(self) -> int:
        """Episodes beyond the stop that were begun nevertheless."""
        return sum(map(self.beyond, self._begun))

    def beyond(self, key: Key) -> bool:
        """Whether an episode's seed comes after those that were judged."""
        return self._place[key.env_seed] >= self._judged

    def drawn(self, keys: Iterable[Key]) -> Iterator[Key]:
        """Pass on episodes to be played until it is decided."""
        for key in keys:
            if self.decided:
                return
            yield key

    def resize(self, concurrency: int) -> None:
        """Say how many episodes are played at once."""
        self._at_once = concurrency
        self._wake()

    async def admit(self, key: Key) -> None:
        """Wait until an episode is not too far ahead of what is judged."""
        while self._place[key.env_seed] - self._judged >= self._window:
            await self._moved.wait()
        self._begun.add(key)

    @property
    def _window(self) -> int:
        """How many seeds from the first that is not judged on may be in play.

        At first as many episodes may wait for their turn to be judged as are played at once; the
        nearer a verdict, the fewer, because those beyond it are in vain.
        """
        episodes = self._at_once * (2.0 - self._tests.progress)
        return max(1, math.ceil(episodes / (self._k * len(self._arms))))

    def take(self, trajectory: Trajectory) -> bool:
        """Take in an episode that ended, judge what is complete, and say whether it is decided.

        Raises:
            RunFailed: two returns differ by more than was declared possible.

        """
        key = trajectory.key
        value = self._value(trajectory) if trajectory.scored else None
        self._begun.add(key)
        self._ended.setdefault(self._place[key.env_seed], {})[key] = value
        before = self._judged
        while not self.decided and self._complete():
            self._judge()
        if self._judged > before:
            self._wake()
        return self.decided

    def looks(self) -> dict[Pair, Look]:
        """Say what is known of every pair of arms; a little stale where many seeds are judged."""
        for pair, test in self._tests.tests.items():
            seen = self._looks.get(pair)
            due = seen is None or test.n_pairs >= next_look(seen.n_pairs)
            if due or (seen and seen.verdict is not test.verdict):
                self._looks[pair] = test.look()
        return dict(self._looks)

    def _wake(self) -> None:
        """Let everyone who waits look again."""
        self._moved.set()
        self._moved.clear()

    def _complete(self) -> bool:
        """Whether all episodes of the next seed have ended."""
        ended = self._ended.get(self._judged, {})
        return len(ended) == self._k * len(self._arms)

    def _judge(self) -> None:
        ended = self._ended.pop(self._judged)
        means: dict[str, float | None] = {}
        for arm in self._arms:
            values = [ended[key] for key in sorted(ended) if key.arm == arm]
            known = [value for value in values if value is not None]
            means[arm] = sum(known) / self._k if len(known) == self._k else None
        try:
            self._tests.add(means)
        except ValueError as error:
            seed = self._seeds[self._judged]
            raise RunFailed(
                f"env seed {seed}: {error} in {self.deciding.value}; start a new run with a "
                f"--span that holds"
            ) from error
        self._judged += 1
        self._begun.difference_update(ended)

    def _value(self, trajectory: Trajectory) -> float:
        if self.deciding is Deciding.SUCCESS:
            return float(trajectory.success)
        if self.deciding is Deciding.RETURN:
            return trajectory.return_
        turns = trajectory.turns
        return sum(turn.valid for turn in turns) / len(turns) if turns else 0.0
