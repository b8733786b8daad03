"""Plays the episodes of a run: which ones, how many at once, from where after a crash."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import orjson

from evalkit.errors import BadConfig, DamagedRun, EvalkitError, Failure, first_error
from evalkit.play.crew import Crew, gates_of
from evalkit.play.policy import Ask, Completion, Policy
from evalkit.play.rollout import Arm, play, session_id
from evalkit.play.stopping import Unstopped
from evalkit.record.journal import FORMAT, Appender, read_journal
from evalkit.record.rundir import RunDir, TrajectoryFile
from evalkit.record.tally import Tally
from evalkit.record.trajectory import Key, Trajectory


class RecordedPolicy(Policy):
    """A policy whose answers are journaled, and given from the journal where they are in it."""

    def __init__(
        self,
        policy: Policy,
        journal: Appender,
        recorded: dict[str, tuple[str, Completion]],
        tally: Tally,
    ) -> None:
        self._policy = policy
        self._journal = journal
        self._recorded = recorded
        self._tally = tally

    async def complete(self, ask: Ask) -> Completion:
        """Answer from the journal, or else ask and write the answer down before it is used."""
        known = self._recorded.get(ask.request_id)
        if known is not None and known[0] == ask.prompt:
            return known[1]
        completion = await self._policy.complete(ask)
        self._journal.write(
            orjson.dumps(
                {
                    "format": FORMAT,
                    "request_id": ask.request_id,
                    "seed": ask.seed,
                    "prompt": ask.prompt,
                    "at": round(time.time(), 3),
                    "completion": completion,
                }
            )
        )
        self._tally.turns += 1
        return completion


def episode_keys(seeds: Sequence[int], k: int, arms: Iterable[str]) -> Iterator[Key]:
    """Yield every episode, the arms of one seed side by side, so that drift meets all arms."""
    names = list(arms)
    for env_seed in seeds:
        for repetition in range(k):
            for arm in names:
                yield Key(env_seed=env_seed, repetition=repetition, arm=arm)


async def play_all(
    arms: Sequence[Arm],
    keys: Iterable[Key],
    rundir: RunDir,
    tally: Tally,
    *,
    concurrency: int,
    stopping: Unstopped | None = None,
) -> None:
    """Play every episode of `keys` that the run directory does not hold yet, and put them in order.

    At most `concurrency` at once; where policies have gates, as many as these allow. Once
    `stopping` is decided, episodes in flight are given up, and those beyond the stop left out.

    Raises:
        EvalkitError: something that concerns the whole run; what was played until then is kept.

    """
    stopping = stopping or Unstopped()
    with Appender(rundir.journal_path) as journal:
        with Appender(rundir.trajectories_path) as file:
            trajectories = TrajectoryFile(rundir.trajectories_path)
            _count_finished(trajectories, tally, stopping)
            recorded = _recorded(rundir, arms, trajectories)
            by_name = {arm.name: _journaled(arm, journal, recorded, tally) for arm in arms}
            todo = (key for key in stopping.drawn(keys) if key not in trajectories.scored)
            gate = _FirstAnswer({key.arm for key in trajectories.scored})

            async def play_next() -> bool:
                key = next(todo, None)
                if key is None:
                    return False
                await stopping.admit(key)
                trajectory = await play(by_name[key.arm], key)
                gate.check(trajectory)
                trajectories.append(file, trajectory)
                tally.add(trajectory)
                if stopping.take(trajectory):
                    raise _Decided
                return True

            try:
                with rare_collections():
                    await _crew(play_next, arms, tally, concurrency, stopping).work()
            except BaseExceptionGroup as several:
                _, others = several.split(_Decided)
                if others is not None:
                    raise first_error(others, EvalkitError) from several
        trajectories.leave_out(stopping.beyond)
        trajectories.arrange()  # under the journal's lock: nobody else plays this run meanwhile


def _crew(
    play_next: Callable[[], Awaitable[bool]],
    arms: Sequence[Arm],
    tally: Tally,
    most: int,
    stopping: Unstopped,
) -> Crew:
    """Return who plays, as many at once as `most` and the gates of the arms allow."""
    gates = gates_of(arm.policy for arm in arms)

    def resized(size: int) -> None:
        tally.at_once = size
        stopping.resize(size)

    return Crew(play_next, most=most, gates=gates, resized=resized)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let the cyclic garbage collector look seldom, and not at what was there before.

    Episodes make many objects and no cycles; at the default thresholds the collector takes half of
    the loop's time to find nothing. Of several runs in one process, the last to end puts back what
    the first one found.
    """
    with _RARE.lock:
        if not _RARE.users:
            _RARE.before = gc.get_threshold()
            gc.freeze()
            gc.set_threshold(50_000, 20, 100)
        _RARE.users += 1
    try:
        yield
    finally:
        with _RARE.lock:
            _RARE.users -= 1
            if not _RARE.users:
                gc.set_threshold(*_RARE.before)
                gc.unfreeze()


@dataclass(slots=True)
class _Rare:
    """Who wants rare collections, in this process."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    before: tuple[int, int, int] = (700, 10, 10)


_RARE = _Rare()


class _Decided(Exception):
    """The run is decided: no further episode counts."""


class _FirstAnswer:
    """Tells a request that a server takes from no episode of an arm from one bad episode."""

    def __init__(self, answered: set[str]) -> None:
        self.answered = answered
        """Arms that got an answer, in this session or before."""

    def check(self, trajectory: Trajectory) -> None:
        """Raise when the first thing a server said to a whole arm is that it refuses."""
        arm, refused = trajectory.key.arm, trajectory.failure is Failure.REFUSED
        if arm not in self.answered and refused and not trajectory.turns:
            message = f"{arm}: the server refuses the request: {trajectory.failure_message}"
            raise BadConfig(message)
        if trajectory.turns:
            self.answered.add(arm)


def _count_finished(trajectories: TrajectoryFile, tally: Tally, stopping: Unstopped) -> None:
    """Start the tally, and what may stop the run, with what earlier sessions finished."""
    for trajectory in trajectories:
        if trajectory.scored:
            tally.add(trajectory)
            stopping.take(trajectory)
    tally.episodes_before = tally.episodes


def _recorded(
    rundir: RunDir, arms: Sequence[Arm], trajectories: TrajectoryFile
) -> dict[str, tuple[str, Completion]]:
    """Read the journal's answers to episodes that are not finished, by request id."""
    finished = {session_id(arms[0].run_id, key) for key in trajectories.scored} if arms else set()
    recorded = {}
    for entry in read_journal(rundir.journal_path):
        try:
            request_id = entry["request_id"]
            if request_id.rpartition("-")[0] not in finished:
                recorded[request_id] = (entry["prompt"], Completion(**entry["completion"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedRun(f"{rundir.journal_path}: an entry lacks something: {error}") from error
    return recorded


def _journaled(
    arm: Arm,
    journal: Appender,
    recorded: dict[str, tuple[str, Completion]],
    tally: Tally,
) -> Arm:
    return replace(arm, policy=RecordedPolicy(arm.policy, journal, recorded, tally))
