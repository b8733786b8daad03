"""A run that stops when it is decided: every look at it, its verdict in words, what it saved.

A `Sequential` per pair of arms stands in `Report.sequential` and makes the rows of sequential.csv:
functions of the trajectories alone. The looks of a run that is being played go through
`look_words`. Must not know how a run is stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evalkit.judge.deciding import Deciding, Pair, SequentialArms, next_look
from evalkit.judge.saved import FixedSizes, fixed_sizes
from evalkit.judge.sequential import Look, StoppingRule, Verdict
from evalkit.record.numbers import ArmNumbers
from evalkit.show.verdict import p_value

SEQUENTIAL = (
    "format run_id a b metric n_pairs env_seed diff lo hi level log_e p_anytime verdict"
).split()
STOPPED_NOTE = (
    "This run looked after every seed and stopped on what it saw. Confidence sequences, e-values "
    "and anytime p, those of the verdicts it stopped on, hold nevertheless; the other intervals "
    "and p-values here and in the tables are those of a run of fixed size, and say too much."
)
_POWER = 0.8
_WORDS = {
    Deciding.SUCCESS: "success",
    Deciding.VALID_ACTION_RATE: "valid actions",
    Deciding.RETURN: "return",
}
_VERDICTS = {
    Verdict.BETTER: "better",
    Verdict.WORSE: "worse",
    Verdict.EQUIVALENT: "equivalent",
    Verdict.OUT_OF_BUDGET: "out_of_budget",
    Verdict.CONTINUE: "undecided",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedLook:
    """What was known after a seed."""

    env_seed: int
    look: Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequential:
    """The sequential comparison of two arms, up to the seed at which it was decided."""

    a: str
    b: str
    deciding: Deciding
    margin: float | None
    """Differences below it count as none, in the metric's unit."""
    looks: tuple[SeedLook, ...]
    """One per pair up to 200, then every twentieth part; the last pair always."""
    verdict: Verdict
    n_lost: int
    """Seeds that it went without, because an episode of one of the arms was lost to errors."""
    n_episodes: int
    """Episodes of both arms that it counted."""
    fixed: FixedSizes | None
    """What runs of fixed size need, in episodes of one arm; None where that is not defined."""
    tokens_per_episode: float | None

    @property
    def last(self) -> Look | None:
        """What is known at the end; None where no pair was complete."""
        return self.looks[-1].look if self.looks else None

    @property
    def word(self) -> str:
        """The verdict as tables have it."""
        return _VERDICTS[self.verdict]


def sequential(
    config: Mapping[str, Any], numbers: Mapping[str, ArmNumbers], pairs: Sequence[Pair]
) -> list[Sequential]:
    """Judge a run anew as it was judged while it played; nothing where it had no `stop`.

    `config` is the run's, as its manifest has it. A run that is not finished is judged as far as
    it goes.
    """
    if config.get("stop") is None:
        return []
    path = _Path(config, numbers, pairs)
    over = all(map(path.judge, path.upcoming()))
    return [path.result(pair, over=over) for pair in pairs]


class _Path:
    """The looks of all pairs of arms, seed by seed."""

    def __init__(
        self, config: Mapping[str, Any], numbers: Mapping[str, ArmNumbers], pairs: Sequence[Pair]
    ) -> None:
        self.config = config
        self.numbers = numbers
        self.deciding = Deciding(config["stop_on"])
        self.values = {arm: _values(each, self.deciding) for arm, each in numbers.items()}
        self.rule = StoppingRule(
            alpha=config["alpha"], margin=config["margin"], span=config["span"]
        )
        self.arms = SequentialArms(pairs, self.rule)
        self.seen: dict[Pair, list[tuple[float, float]]] = {pair: [] for pair in pairs}
        self.looks: dict[Pair, list[SeedLook]] = {pair: [] for pair in pairs}
        self.last_seed: dict[Pair, int] = {}

    def upcoming(self) -> Iterable[int]:
        """Yield the seeds in the order of the run, until all is decided."""
        for seed in self.config["seeds"]:
            if self.arms.done:
                return
            yield seed

    def judge(self, seed: int) -> bool:
        """Take in a seed; return whether it was played in full."""
        k = self.config["k"]
        means: dict[str, float | None] = {}
        for arm, numbers in self.numbers.items():
            values = self.values[arm].get(seed, ())
            if len(values) + numbers.lost[seed] < k:
                return False
            means[arm] = sum(values) / k if len(values) == k else None
        for pair in self.arms.add(means):
            left, right = means[pair[0]], means[pair[1]]
            if left is not None and right is not None:
                self.seen[pair].append((left, right))
            self.last_seed[pair] = seed
            looks, test = self.looks[pair], self.arms.tests[pair]
            if test.n_pairs >= (next_look(looks[-1].look.n_pairs) if looks else 1):
                looks.append(SeedLook(env_seed=seed, look=test.look()))
        return True

    def result(self, pair: Pair, *, over: bool) -> Sequential:
        """Return what was found of a pair of arms; `over` when no seed is left to be played."""
        test, looks = self.arms.tests[pair], self.looks[pair]
        undecided = test.verdict is Verdict.CONTINUE
        verdict = Verdict.OUT_OF_BUDGET if over and undecided else test.verdict
        if test.n_pairs:  # the last look says how it ended
            if looks[-1].look.n_pairs == test.n_pairs:
                looks.pop()
            end = replace(test.look(), verdict=verdict)
            looks.append(SeedLook(env_seed=self.last_seed[pair], look=end))
        return Sequential(
            a=pair[0],
            b=pair[1],
            deciding=self.deciding,
            margin=self.rule.margin,
            looks=tuple(looks),
            verdict=verdict,
            n_lost=self.arms.lost[pair],
            n_episodes=2 * self.config["k"] * test.n_pairs,
            fixed=self._fixed(pair, verdict),
            tokens_per_episode=self._tokens_per_episode(pair),
        )

    def _fixed(self, pair: Pair, verdict: Verdict) -> FixedSizes | None:
        """Size runs for the observed difference; for the margin where it was found to be none."""
        if verdict in {Verdict.CONTINUE, Verdict.OUT_OF_BUDGET}:
            return None
        k = self.config["k"]
        found = fixed_sizes(
            [a for a, _ in self.seen[pair]],
            [b for _, b in self.seen[pair]],
            margin=self.rule.margin if verdict is Verdict.EQUIVALENT else None,
            binary=self.deciding is Deciding.SUCCESS and k == 1,
            power=_POWER,
            alpha=self.arms.tests[pair].rule.alpha,
        )
        return found and replace(found, paired=k * found.paired, unpaired=k * found.unpaired)

    def _tokens_per_episode(self, pair: Pair) -> float | None:
        both = [self.numbers[arm] for arm in pair]
        tokens = sum(each.prompt_tokens + each.completion_tokens for each in both)
        episodes = sum(each.n_ok for each in both)
        return tokens / episodes if tokens and episodes else None


def _values(numbers: ArmNumbers, deciding: Deciding) -> Mapping[int, Sequence[float]]:
    """Return the deciding number of every episode of an arm, by env seed."""
    if deciding is Deciding.SUCCESS:
        return numbers.success
    return numbers.return_ if deciding is Deciding.RETURN else numbers.valid


def sequential_rows(run_id: str, found: Iterable[Sequential]) -> Iterable[dict[str, Any]]:
    """Yield the rows of sequential.csv: one per pair of arms and look."""
    for each in found:
        for seen in each.looks:
            look = seen.look
            yield {
                "format": "sequential/1",
                "run_id": run_id,
                "a": each.a,
                "b": each.b,
                "metric": each.deciding.value,
                "n_pairs": look.n_pairs,
                "env_seed": seen.env_seed,
                "diff": look.diff,
                "lo": look.lo,
                "hi": look.hi,
                "level": look.level,
                "log_e": look.log_e,
                "p_anytime": look.p_anytime,
                "verdict": _VERDICTS[look.verdict],
            }


def decisions(found: Sequence[Sequential]) -> list[str]:
    """Return the verdict on every pair of arms, then what each stop saved."""
    return [
        *(sequential_words(each) for each in found),
        *(words for each in found if (words := savings_words(each))),
    ]


def sequential_words(found: Sequential) -> str:
    """Say in one line what was decided, after how many pairs, and how sure it is."""
    a, b, look = found.a, found.b, found.last
    if look is None:
        return f"no data: {a} and {b} share no finished seed{_lost(found)}"
    size = f"{_amount(found.deciding, look.diff)} {_WORDS[found.deciding]}"
    level = f"{100 * look.level:.3g} % confidence sequence {_interval(found.deciding, look)}"
    facts = f"({level}, {_evidence(look)}){_lost(found)}"
    after = f"after {look.n_pairs:,} pairs"
    if found.verdict in {Verdict.BETTER, Verdict.WORSE}:
        word = "better" if found.verdict is Verdict.BETTER else "worse"
        return f"{b} is {word} than {a}: decided {after}: {size} {facts}"
    if found.verdict is Verdict.EQUIVALENT:
        within = _amount(found.deciding, found.margin, signed=False)
        return f"{a} and {b} are equivalent within {within} {after}: {size} {facts}"
    spent = ", out of budget" if found.verdict is Verdict.OUT_OF_BUDGET else ""
    return f"undecided between {a} and {b}{spent}: {after}: {size} {facts}"


def savings_words(found: Sequential) -> str:
    """Say in one line what stopping took, against runs of fixed size; "" where nothing compares."""
    if found.fixed is None:
        return ""
    effect = _amount(found.deciding, abs(found.fixed.effect), signed=False)
    what = "the margin" if found.verdict is Verdict.EQUIVALENT else "the observed difference"
    paired, unpaired = (
        _fewer(found, size) for size in (2 * found.fixed.paired, 2 * found.fixed.unpaired)
    )
    return (
        f"{found.a} against {found.b} took {found.n_episodes:,} episodes: {paired} a paired run of "
        f"fixed size, {unpaired} an unpaired one. Those see {what}, {effect}, "
        f"{100 * _POWER:.0f} % of the time"
    )


def look_words(pair: Pair, look: Look, deciding: Deciding) -> str:
    """Say in one line what is known of a pair of arms while the run plays."""
    if look.diff is None:
        return f"{pair[1]} - {pair[0]}: no pair yet"
    end = "" if look.verdict is Verdict.CONTINUE else f", {_VERDICTS[look.verdict]}"
    return (
        f"{pair[1]} - {pair[0]} after {look.n_pairs:,} pairs: {_amount(deciding, look.diff)} "
        f"({_interval(deciding, look)}), e={look.e_value:.3g}{end}"
    )


def _fewer(found: Sequential, fixed: int) -> str:
    """Say how many episodes and tokens fewer it took, or more, than a number of episodes."""
    fewer = fixed - found.n_episodes
    if not fewer:
        return f"as many as the {fixed:,} of"
    each = found.tokens_per_episode
    tokens = "" if each is None else f", about {abs(fewer) * each:,.0f} tokens"
    word = "fewer" if fewer >= 0 else "more"
    share = f"{100 * abs(fewer) / fixed:.0f} %{tokens}"
    return f"{abs(fewer):,} {word} ({share}) than the {fixed:,} of"


def _evidence(look: Look) -> str:
    return f"e = {look.e_value:.3g}, anytime {p_value(look.p_anytime)}"


def _lost(found: Sequential) -> str:
    number = "1 seed was" if found.n_lost == 1 else f"{found.n_lost} seeds were"
    return f"; {number} lost to errors" if found.n_lost else ""


def _interval(deciding: Deciding, look: Look) -> str:
    lo, hi = (_amount(deciding, bound, unit=False) for bound in (look.lo, look.hi))
    return f"{lo}..{hi}"


def _amount(
    deciding: Deciding, value: float | None, *, unit: bool = True, signed: bool = True
) -> str:
    if value is None:
        return "?"
    sign = "+z" if signed else "z"  # z: no -0.0
    if deciding is Deciding.RETURN:
        return f"{value:{sign}.2f}"
    return f"{100 * value:{sign}.1f}" + (" points" if unit else "")
