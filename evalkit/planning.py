"""How many seeds a comparison needs, from numbers or from a run: what `evalkit power` answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from evalkit.errors import BadConfig
from evalkit.judge.compare import compare
from evalkit.judge.design import detectable, plan
from evalkit.judge.variance import split_variance
from evalkit.manifest import identities
from evalkit.record.numbers import ArmNumbers, gather
from evalkit.record.rundir import RunDir, episodes
from evalkit.show.planned import detectable_line, plan_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of a design; None is what was left open, and is then taken from a run."""

    effect: float | None = None
    seeds: int | None = None
    rho: float | None = None
    k: int | None = None
    power: float = 0.8
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that no design has."""
        for name, size in (("seeds", self.seeds), ("k", self.k)):
            if size is not None and size < 1:
                raise ValueError(f"{name} is at least 1, not {size}")
        if not 0.0 < self.alpha < self.power < 1.0:
            raise ValueError(
                f"expected 0 < alpha < power < 1, got alpha={self.alpha}, power={self.power}"
            )

    def answer(self, rate: float, rho: float, k: int) -> Iterator[str]:
        """Say what the seeds can show over a success rate, and what the effect would need."""
        power, alpha = self.power, self.alpha
        if self.seeds is not None:
            gain = detectable(rate, self.seeds, rho=rho, k=k, power=power, alpha=alpha)
            yield detectable_line(
                gain, baseline=rate, seeds=self.seeds, rho=rho, k=k, power=power, alpha=alpha
            )
        if self.effect and not 0.0 <= rate + self.effect <= 1.0:
            yield f"no success rate is {100 * self.effect:+.1f} points from {100 * rate:.1f} %"
        elif self.effect:
            yield from plan_lines(plan(rate, self.effect, rho=rho, k=k, power=power, alpha=alpha))


def plan_from_numbers(baseline: float, question: Question) -> Iterator[str]:
    """Answer for a success rate that is supposed. Raises ValueError for numbers out of range."""
    if not 0.0 <= baseline <= 1.0:
        raise ValueError(f"expected a baseline in [0, 1], got {baseline}")
    if question.effect == 0.0:
        raise ValueError("expected an effect other than 0")
    if question.effect is not None and not 0.0 <= baseline + question.effect <= 1.0:
        raise ValueError(
            f"expected baseline + effect in [0, 1], got {baseline} and {question.effect}"
        )
    yield from question.answer(baseline, question.rho or 0.0, question.k or 1)
    if question.rho is None:
        yield (
            "rho, how alike two arms find the same seeds, is taken as 0, the worst case; "
            "evalkit power RUN measures it"
        )


def plan_from_run(path: Path, question: Question) -> Iterator[str]:
    """Answer with the rates and correlations of a run, for every two of its arms.

    Raises:
        BadConfig: there is no run, or none of its episodes is scored.
        ValueError: a number of the question is out of range.

    """
    rundir = RunDir.open(path)
    manifest = rundir.manifest()
    numbers = gather(episodes(rundir.trajectories_path), identities(manifest))
    if not any(arm.success for arm in numbers.values()):
        raise BadConfig(f"{path} has no scored episode: nothing to plan from")
    k = question.k or int(manifest["config"]["k"])
    if len(numbers) == 1:
        ((name, arm),) = numbers.items()
        yield from _of_arm(question, name, arm, k)
    for a, b in combinations(numbers, 2):
        yield from _of_pair(question, numbers, (a, b), k)


def _of_arm(question: Question, name: str, arm: ArmNumbers, k: int) -> Iterator[str]:
    """Plan the comparison of an arm with one that finds its seeds as hard."""
    values = list(arm.success.values())
    icc = split_variance(values).icc if len(values) > 1 else None
    rho, source = icc or 0.0, "as between repetitions of a seed"
    if question.rho is not None:
        rho, source = question.rho, "as given"
    elif icc is None:
        source = "for want of seeds that were repeated and ended unlike"
    rate = arm.n_success / arm.n_ok
    yield f"{name}: {100 * rate:.1f} % success on {len(values)} seeds; rho {rho:.2f}, {source}"
    asked = question if question.seeds else _with(question, seeds=len(values))
    yield from asked.answer(rate, rho, k)


def _of_pair(
    question: Question, numbers: Mapping[str, ArmNumbers], pair: tuple[str, str], k: int
) -> Iterator[str]:
    """Plan with what two arms were found to be."""
    a, b = (numbers[name] for name in pair)
    found = compare(a.success, b.success, binary=True)
    if found.mean_a is None or found.diff is None:
        yield f"{pair[0]} and {pair[1]} share no scored seed"
        return
    rho = _episode_rho(a, b) if question.rho is None else question.rho
    yield (
        f"{pair[1]} against {pair[0]}: {100 * found.diff:+.1f} points of success on "
        f"{found.n_pairs} shared seeds; rho {rho:.2f}"
    )
    effect = found.diff if question.effect is None else question.effect
    asked = _with(question, seeds=question.seeds or found.n_pairs, effect=effect)
    yield from asked.answer(found.mean_a, rho, k)


def _with(question: Question, *, seeds: int, effect: float | None = None) -> Question:
    return Question(
        effect=question.effect if effect is None else effect,
        seeds=seeds,
        rho=question.rho,
        k=question.k,
        power=question.power,
        alpha=question.alpha,
    )


def _episode_rho(a: ArmNumbers, b: ArmNumbers) -> float:
    """Correlate an episode of A with one of B on the same seed; 0 where an arm does not vary."""
    shared = sorted(a.success.keys() & b.success.keys())
    means = np.array([[np.mean(arm.success[seed]) for seed in shared] for arm in (a, b)])
    rates = means.mean(axis=1)
    spread = float(np.sqrt(np.prod(rates * (1.0 - rates))))
    if not spread:
        return 0.0
    covariance = float(np.mean((means[0] - rates[0]) * (means[1] - rates[1])))
    return min(1.0, max(-1.0, covariance / spread))
