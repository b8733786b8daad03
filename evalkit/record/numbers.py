"""What statistics need of the trajectories: of each episode only its numbers are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from evalkit.record.trajectory import Memory, Outcome, StopReason, Trajectory


@dataclass(slots=True)
class ArmNumbers:
    """The numbers of one arm, by env seed."""

    success: dict[int, list[float]] = field(default_factory=dict)
    return_: dict[int, list[float]] = field(default_factory=dict)
    steps: dict[int, list[float]] = field(default_factory=dict)
    valid: dict[int, list[float]] = field(default_factory=dict)
    """Share of an episode's turns in which a legal action was taken."""
    efficiency: list[float] = field(default_factory=list)
    """Success, weighted by optimal turns over turns taken (SPL), per scored episode."""
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    memory: Counter[Memory] = field(default_factory=Counter)
    stops: Counter[StopReason] = field(default_factory=Counter)
    turns: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    traces: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    """What was seen and said in every turn, hashed, by (env seed, repetition)."""

    def add(self, trajectory: Trajectory) -> None:
        """Take in one episode; one that is not scored counts as nothing but itself."""
        self.stops[trajectory.stop_reason] += 1
        if not trajectory.scored:
            return
        seed, turns = trajectory.key.env_seed, trajectory.turns
        valid = sum(turn.valid for turn in turns)
        self.success.setdefault(seed, []).append(float(trajectory.success))
        self.return_.setdefault(seed, []).append(trajectory.return_)
        self.steps.setdefault(seed, []).append(float(len(turns)))
        self.valid.setdefault(seed, []).append(valid / len(turns) if turns else 0.0)
        if trajectory.optimal_turns is not None:
            ideal = trajectory.optimal_turns / max(len(turns), trajectory.optimal_turns, 1)
            self.efficiency.append(ideal if trajectory.success else 0.0)
        self.turns += len(turns)
        for turn in turns:
            self.outcomes[turn.outcome] += 1
            if turn.memory is not None:
                self.memory[turn.memory] += 1
            self.prompt_tokens += turn.prompt_tokens or 0
            self.completion_tokens += turn.completion_tokens or 0
        self.traces[seed, trajectory.key.repetition] = tuple(
            hash((turn.prompt_digest, turn.completion, turn.action)) for turn in turns
        )

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


def gather(trajectories: Iterable[Trajectory], arms: Iterable[str]) -> dict[str, ArmNumbers]:
    """Take in every trajectory, by arm."""
    numbers = {arm: ArmNumbers() for arm in arms}
    for trajectory in trajectories:
        numbers[trajectory.key.arm].add(trajectory)
    return numbers


def divergent_turns(left: ArmNumbers, right: ArmNumbers) -> list[tuple[int, int, int]]:
    """Return (env seed, repetition, first turn that differs) of every episode that differs."""
    found = []
    for seed, repetition in sorted(left.traces.keys() & right.traces.keys()):
        turn = _first_difference(left.traces[seed, repetition], right.traces[seed, repetition])
        if turn is not None:
            found.append((seed, repetition, turn))
    return found


def _first_difference(left: tuple[int, ...], right: tuple[int, ...]) -> int | None:
    for turn, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return turn
    return None if len(left) == len(right) else min(len(left), len(right))
