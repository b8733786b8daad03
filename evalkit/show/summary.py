"""From trajectories to the rows of summary.csv, compare.csv and paired.csv.

Which statistic answers which question is
decided in `evalkit.judge`; this module knows what the metrics are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evalkit.judge.compare import Comparison, Decision, compare, decide, normalised_score
from evalkit.judge.intervals import bca_bootstrap, clustered_mean, wilson_clustered
from evalkit.judge.multiple import holm
from evalkit.record.numbers import ArmNumbers, divergent_turns
from evalkit.record.references import Reference
from evalkit.record.trajectory import Memory, Outcome, StopReason

SUMMARY = (
    "format run_id arm model base_url_host model_fingerprint env env_version env_hash env_args "
    "strategy guided n_seeds k n_episodes n_ok n_error success_rate success_lo success_hi "
    "ci_method success_lo_worst success_hi_worst return_mean return_se_cluster return_lo return_hi "
    "return_bca_lo return_bca_hi "
    "norm_score random_success oracle_success random_return oracle_return spl steps_mean "
    "oracle_steps_mean valid_action_rate parse_fail_rate illegal_rate truncated_token_rate "
    "truncated_step_rate ctx_overflow_rate scratchpad_missing_rate turns prompt_tokens "
    "completion_tokens tokens_per_success run_seed temperature max_tokens git_sha evalkit_version"
).split()

COMPARE = (
    "format run_id a b env strategy metric slice n_pairs dropped_a dropped_b mean_a mean_b diff lo "
    "hi ci_method test p p_mid p_holm a_only b_only both neither effect_size rho "
    "var_reduction_vs_unpaired mde80 n_for_observed verdict"
).split()

PAIRED = (
    "format run_id a b env_seed success_a success_b return_a return_b steps_a steps_b valid_a "
    "valid_b diff flip first_divergent_turn"
).split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number per episode on which arms are compared."""

    name: str
    values: Callable[[ArmNumbers], Mapping[int, Sequence[float]]]
    binary: bool = False
    higher_is_better: bool = True
    most: float = math.inf
    """The largest difference that there can be."""


METRICS = (
    Metric(name="success", values=lambda numbers: numbers.success, binary=True, most=1.0),
    Metric(name="return", values=lambda numbers: numbers.return_),
    Metric(name="valid_action_rate", values=lambda numbers: numbers.valid, most=1.0),
    Metric(name="steps", values=lambda numbers: numbers.steps, higher_is_better=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One comparison of a report: metric, arms, what was found."""

    a: str
    b: str
    metric: Metric
    found: Comparison
    p_holm: float | None

    @property
    def decision(self) -> Decision:
        """The verdict, corrected for the number of pairs that were compared."""
        return decide(
            self.found.diff,
            self.p_holm,
            alpha=1.0 - self.found.level,
            higher_is_better=self.metric.higher_is_better,
        )


def summary_row(
    identity: Mapping[str, Any], numbers: ArmNumbers, references: Mapping[str, Reference]
) -> dict[str, Any]:
    """Return an arm's row of summary.csv; `identity` holds what the run knows of it."""
    return {
        **identity,
        **_success_columns(numbers),
        **_return_columns(numbers, references),
        **_turn_columns(numbers),
        "random_success": references["random"].success_rate,
        "oracle_success": references["oracle"].success_rate,
        "random_return": references["random"].return_mean,
        "oracle_return": references["oracle"].return_mean,
        "oracle_steps_mean": references["oracle"].turns_mean,
    }


def _success_columns(numbers: ArmNumbers) -> dict[str, Any]:
    counts = [(int(sum(values)), len(values)) for values in numbers.success.values()]
    interval = wilson_clustered([s for s, _ in counts], [n for _, n in counts])
    n_ok, n_all = numbers.n_ok, numbers.stops.total()
    return {
        "n_episodes": n_all,
        "n_ok": n_ok,
        "n_error": numbers.n_error,
        "success_rate": _ratio(numbers.n_success, n_ok),
        "success_lo": interval.lo,
        "success_hi": interval.hi,
        "ci_method": interval.method.value,
        "success_lo_worst": _ratio(numbers.n_success, n_all),
        "success_hi_worst": _ratio(numbers.n_success + numbers.n_error, n_all),
    }


def _return_columns(
    numbers: ArmNumbers, references: Mapping[str, Reference]
) -> dict[str, float | None]:
    mean = clustered_mean(list(numbers.return_.values()))
    known = mean.n > 0
    several = mean.n_clusters > 1
    bca = bca_bootstrap([_mean(values) for values in numbers.return_.values()]) if several else None
    random, oracle = references["random"].return_mean, references["oracle"].return_mean
    return {
        "return_mean": mean.mean if known else None,
        "return_se_cluster": mean.se if several else None,
        "return_lo": mean.lo if several else None,
        "return_hi": mean.hi if several else None,
        "return_bca_lo": bca.lo if bca else None,
        "return_bca_hi": bca.hi if bca else None,
        "norm_score": normalised_score(mean.mean, random, oracle) if known else None,
        "spl": _ratio(sum(numbers.efficiency), len(numbers.efficiency)),
    }


def _turn_columns(numbers: ArmNumbers) -> dict[str, Any]:
    outcomes, turns, n_ok = numbers.outcomes, numbers.turns, numbers.n_ok
    unread = outcomes[Outcome.NO_ACTION] + outcomes[Outcome.EMPTY] + outcomes[Outcome.REFUSAL]
    tokens = numbers.prompt_tokens + numbers.completion_tokens
    return {
        "steps_mean": _ratio(turns, n_ok),
        "valid_action_rate": _ratio(sum(map(sum, numbers.valid.values())), n_ok),
        "parse_fail_rate": _ratio(unread, turns),
        "illegal_rate": _ratio(outcomes[Outcome.ILLEGAL], turns),
        "truncated_token_rate": _ratio(outcomes[Outcome.TRUNCATED_TOKENS], turns),
        "truncated_step_rate": _ratio(numbers.stops[StopReason.TRUNCATED], n_ok),
        "ctx_overflow_rate": _ratio(numbers.stops[StopReason.CONTEXT_OVERFLOW], n_ok),
        "scratchpad_missing_rate": _ratio(numbers.memory[Memory.MISSING], numbers.memory.total()),
        "turns": turns,
        "prompt_tokens": numbers.prompt_tokens,
        "completion_tokens": numbers.completion_tokens,
        "tokens_per_success": _ratio(tokens, numbers.n_success) if tokens else None,
    }


def compare_arms(
    numbers: Mapping[str, ArmNumbers], pairs: Sequence[tuple[str, str]]
) -> list[Compared]:
    """Compare every pair of arms on every metric; Holm's correction is over the pairs of one."""
    compared: list[Compared] = []
    for metric in METRICS:
        found = [_compare_pair(metric, numbers[a], numbers[b]) for a, b in pairs]
        tested = [comparison.p for comparison in found if comparison.p is not None]
        corrected = iter(holm(tested))
        compared += [
            Compared(
                a=a,
                b=b,
                metric=metric,
                found=comparison,
                p_holm=None if comparison.p is None else next(corrected),
            )
            for (a, b), comparison in zip(pairs, found, strict=True)
        ]
    return compared


def _compare_pair(metric: Metric, a: ArmNumbers, b: ArmNumbers) -> Comparison:
    """Compare two arms; an interval ends where the metric does."""
    found = compare(
        metric.values(a),
        metric.values(b),
        binary=metric.binary,
        higher_is_better=metric.higher_is_better,
    )
    if found.lo is None or found.hi is None:
        return found
    return replace(found, lo=max(found.lo, -metric.most), hi=min(found.hi, metric.most))


def compare_row(run_id: str, env: str, strategy: str, compared: Compared) -> dict[str, Any]:
    """Return a row of compare.csv; `strategy` is both arms', or "X | Y" where they differ."""
    found = compared.found
    named = {name: getattr(found, name) for name in COMPARE[8:-1] if name != "p_holm"}
    return {
        "format": "compare/1",
        "run_id": run_id,
        "a": compared.a,
        "b": compared.b,
        "env": env,
        "strategy": strategy,
        "metric": compared.metric.name,
        "slice": "all",
        **named,
        "ci_method": found.ci_method and found.ci_method.value,
        "test": found.test and found.test.value,
        "p_holm": compared.p_holm,
        "verdict": decision_word(compared),
    }


def decision_word(compared: Compared) -> str:
    """Return the word of a decision: better, worse, undecided, no_data; of turns fewer, more."""
    word = compared.decision.name.lower()
    if compared.metric.name == "steps":
        return {"better": "fewer", "worse": "more"}.get(word, word)
    return word


def paired_rows(
    run_id: str, numbers: Mapping[str, ArmNumbers], pairs: Sequence[tuple[str, str]]
) -> Iterable[dict[str, Any]]:
    """Yield the rows of paired.csv: one per pair of arms and seed that both finished."""
    for a, b in pairs:
        left, right = numbers[a], numbers[b]
        divergent = _first_by_seed(divergent_turns(left, right))
        for seed in sorted(left.success.keys() & right.success.keys()):
            success_a, success_b = _mean(left.success[seed]), _mean(right.success[seed])
            yield {
                "format": "paired/1",
                "run_id": run_id,
                "a": a,
                "b": b,
                "env_seed": seed,
                "success_a": success_a,
                "success_b": success_b,
                "return_a": _mean(left.return_[seed]),
                "return_b": _mean(right.return_[seed]),
                "steps_a": _mean(left.steps[seed]),
                "steps_b": _mean(right.steps[seed]),
                "valid_a": _mean(left.valid[seed]),
                "valid_b": _mean(right.valid[seed]),
                "diff": success_b - success_a,
                "flip": _flip(success_a, success_b),
                "first_divergent_turn": divergent.get(seed),
            }


def _first_by_seed(divergent: Iterable[tuple[int, int, int]]) -> dict[int, int]:
    """Return the earliest differing turn over the repetitions of every seed that has one."""
    first: dict[int, int] = {}
    for seed, _, turn in divergent:
        first[seed] = min(turn, first.get(seed, turn))
    return first


def _flip(success_a: float, success_b: float) -> str:
    if success_a == success_b:
        return ""
    return "b_only" if success_b > success_a else "a_only"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
