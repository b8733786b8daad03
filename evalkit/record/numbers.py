"""What statistics need of the trajectories: of each episode only its numbers are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from evalkit.record.trajectory import (
    OUTCOMES,
    UNSCORED,
    Memory,
    Outcome,
    Plain,
    StopReason,
    Trajectory,
)

T = TypeVar("T")


@dataclass(slots=True)
class ArmNumbers:
    """The numbers of one arm, by env seed."""

    success: dict[int, Sequence[float]] = field(default_factory=dict)
    return_: dict[int, Sequence[float]] = field(default_factory=dict)
    steps: dict[int, Sequence[float]] = field(default_factory=dict)
    valid: dict[int, Sequence[float]] = field(default_factory=dict)
    """Share of an episode's turns in which a legal action was taken."""
    efficiency: dict[int, Sequence[float]] = field(default_factory=dict)
    """Success, weighted by optimal turns over turns taken (SPL), where the optimum is known."""
    cut: dict[int, Sequence[bool]] = field(default_factory=dict)
    """Whether the env's turn budget ended the episode: it could have gone on."""
    lost: Counter[int] = field(default_factory=Counter)
    """Episodes that are not scored."""
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    memory: Counter[Memory] = field(default_factory=Counter)
    stops: Counter[StopReason] = field(default_factory=Counter)
    turns: int = 0
    repeated_turns: int = 0
    """Turns whose observation and action were together in an earlier turn of the episode."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    traces: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    """What was seen and said in every turn, hashed, by (env seed, repetition)."""

    def add(self, played: Trajectory | Plain) -> None:
        """Take in one episode; one that is not scored counts as nothing but itself."""
        played = played.plain() if isinstance(played, Trajectory) else played
        seed, stop = played["key"]["env_seed"], StopReason(played["stop_reason"])
        self.stops[stop] += 1
        if stop in UNSCORED:
            self.lost[seed] += 1
            return
        turns, optimal = played["turns"], played["optimal_turns"]
        valid = sum([turn["valid"] for turn in turns])
        _keep(self.success, seed, 1.0 if played["success"] else 0.0)
        _keep(self.return_, seed, played["return_"])
        _keep(self.steps, seed, float(len(turns)))
        _keep(self.valid, seed, valid / len(turns) if turns else 0.0)
        if optimal is not None:
            ideal = optimal / max(len(turns), optimal, 1)
            _keep(self.efficiency, seed, ideal if played["success"] else 0.0)
        _keep(self.cut, seed, stop is StopReason.TRUNCATED)
        self._add_turns(turns)
        self.traces[seed, played["key"]["repetition"]] = tuple(
            [hash((turn["prompt_digest"], turn["completion"], turn["action"])) for turn in turns]
        )

    def _add_turns(self, turns: Sequence[Plain]) -> None:
        self.turns += len(turns)
        self.repeated_turns += len(turns)
        self.repeated_turns -= len({(turn["observation"], turn["action"]) for turn in turns})
        outcomes = self.outcomes
        for turn in turns:
            outcomes[OUTCOMES[turn["outcome"]]] += 1
            if turn["memory"] is not None:
                self.memory[Memory(turn["memory"])] += 1
            self.prompt_tokens += turn["prompt_tokens"] or 0
            self.completion_tokens += turn["completion_tokens"] or 0

    @property
    def n_error(self) -> int:
        """Episodes lost to infrastructure or to the env."""
        return self.stops[StopReason.INFRA_ERROR] + self.stops[StopReason.ENV_ERROR]

    @property
    def n_ok(self) -> int:
        """Episodes that count."""
        return self.stops.total() - self.n_error

    @property
    def n_success(self) -> int:
        """Successful episodes."""
        return int(sum(map(sum, self.success.values())))


def gather(
    trajectories: Iterable[Trajectory | Plain], arms: Iterable[str]
) -> dict[str, ArmNumbers]:
    """Take in every trajectory, by arm."""
    numbers = {arm: ArmNumbers() for arm in arms}
    for played in trajectories:
        arm = played.key.arm if isinstance(played, Trajectory) else played["key"]["arm"]
        numbers[arm].add(played)
    return numbers


def divergent_turns(left: ArmNumbers, right: ArmNumbers) -> list[tuple[int, int, int]]:
    """Return (env seed, repetition, first turn that differs) of every episode that differs."""
    found = []
    for episode, trace in left.traces.items():
        other = right.traces.get(episode, trace)
        if other != trace:
            found.append((*episode, _first_difference(trace, other)))
    return sorted(found)


def _keep(values: dict[int, Sequence[T]], seed: int, value: T) -> None:
    """Add a value of a seed."""
    values[seed] = (*values[seed], value) if seed in values else _single(value)


@lru_cache(maxsize=4096, typed=True)
def _single(value: T) -> Sequence[T]:
    """Return one value alone: one object for all seeds that have it."""
    return (value,)


def _first_difference(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Return the turn in which two traces part, that are not the same."""
    for turn, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return turn
    return min(len(left), len(right))
