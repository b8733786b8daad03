"""One arm's rows: those of summary.csv and of pass.csv.

Which statistic answers which question is decided in `evalkit.judge`; this module knows what the
columns are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evalkit.judge.compare import normalised_score
from evalkit.judge.intervals import Interval, bca_bootstrap, clustered_mean, wilson_clustered
from evalkit.judge.passk import PassEstimate, pass_at_k, pass_hat_k
from evalkit.judge.proportion import rate_interval
from evalkit.record.numbers import ArmNumbers
from evalkit.record.references import Reference
from evalkit.record.trajectory import Memory, Outcome, StopReason
from evalkit.show.pairs import known
from evalkit.show.turns import Endings, endings, mean_turns

SUMMARY = (
    "format run_id arm model base_url_host model_fingerprint env env_version env_hash env_args "
    "strategy guided n_seeds k n_episodes n_ok n_error success_rate success_lo success_hi "
    "ci_method success_lo_worst success_hi_worst pass_at_k pass_at_k_lo pass_at_k_hi pass_hat_k "
    "pass_hat_k_lo pass_hat_k_hi return_mean return_se_cluster return_lo return_hi "
    "return_bca_lo return_bca_hi "
    "norm_score random_success oracle_success random_return oracle_return spl spl_lo spl_hi "
    "steps_mean oracle_steps_mean steps_rmst steps_rmst_lo steps_rmst_hi steps_horizon "
    "valid_action_rate parse_fail_rate illegal_rate truncated_token_rate "
    "truncated_step_rate ctx_overflow_rate scratchpad_missing_rate loop_rate turns prompt_tokens "
    "completion_tokens tokens_per_success usd_per_mtok_in usd_per_mtok_out cost_usd "
    "cost_per_success run_seed temperature max_tokens git_sha evalkit_version"
).split()

PASS = (
    "format run_id arm k n_seeds dropped pass_at_k pass_at_k_lo pass_at_k_hi pass_hat_k "
    "pass_hat_k_lo pass_hat_k_hi"
).split()


def summary_row(
    identity: Mapping[str, Any],
    numbers: ArmNumbers,
    references: Mapping[str, Reference],
    tries: Mapping[str, Any] | None = None,
    until: float | None = None,
    ends: Endings | None = None,
) -> dict[str, Any]:
    """Return an arm's row of summary.csv; `identity` holds what the run knows of it.

    `tries` is the arm's row of pass.csv for all of its repetitions, and `until` the horizon of the
    mean turns to success, in turns; `ends` are the arm's `endings`, where they are known already.
    """
    ends = endings(numbers) if ends is None else ends
    return {
        **identity,
        **_success_columns(numbers),
        **{name: tries and tries[name] for name in PASS[6:]},
        **_return_columns(numbers, references),
        **_path_columns(numbers, ends, until),
        **_turn_columns(numbers),
        **_cost_columns(identity, numbers),
        **_reference_columns(references),
    }


def _reference_columns(references: Mapping[str, Reference]) -> dict[str, float | None]:
    """Return what random and oracle score; None where they are not known: in imported runs."""
    random, oracle = references.get("random"), references.get("oracle")
    return {
        "random_success": random.success_rate if random else None,
        "oracle_success": oracle.success_rate if oracle else None,
        "random_return": random.return_mean if random else None,
        "oracle_return": oracle.return_mean if oracle else None,
        "oracle_steps_mean": oracle.turns_mean if oracle else None,
    }


def success_interval(by_seed: Mapping[int, Sequence[float]]) -> Interval:
    """Return the interval of a success rate, from successes (0 or 1) by env seed.

    Blaker's, adjusted, where each seed was played once; else Wilson's, clustered by seed.
    """
    counts = [(int(sum(values)), len(values)) for values in by_seed.values()]
    if all(n == 1 for _, n in counts):
        return rate_interval(sum(won for won, _ in counts), len(counts))
    return wilson_clustered([won for won, _ in counts], [n for _, n in counts])


def _success_columns(numbers: ArmNumbers) -> dict[str, Any]:
    interval = success_interval(numbers.success)
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
    some = mean.n > 0
    several = mean.n_clusters > 1
    bca = bca_bootstrap([_mean(values) for values in numbers.return_.values()]) if several else None
    random, oracle = references.get("random"), references.get("oracle")
    norm_score = None
    if some and random and oracle:
        norm_score = normalised_score(mean.mean, random.return_mean, oracle.return_mean)
    return {
        "return_mean": mean.mean if some else None,
        "return_se_cluster": mean.se if several else None,
        "return_lo": mean.lo if several else None,
        "return_hi": mean.hi if several else None,
        "return_bca_lo": bca.lo if bca else None,
        "return_bca_hi": bca.hi if bca else None,
        "norm_score": norm_score,
    }


def _path_columns(
    numbers: ArmNumbers, ends: Endings, until: float | None
) -> dict[str, float | None]:
    """Return how directly the goal was reached, and in how many turns."""
    spl = clustered_mean(list(numbers.efficiency.values()))
    turns = mean_turns(ends, until)
    return {
        "spl": known(spl.mean),
        "spl_lo": _cut(spl.lo),
        "spl_hi": _cut(spl.hi),
        "steps_rmst": turns.value if turns else None,
        "steps_rmst_lo": known(turns.lo) if turns else None,
        "steps_rmst_hi": known(turns.hi) if turns else None,
        "steps_horizon": turns.horizon if turns else None,
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
        "loop_rate": _ratio(numbers.repeated_turns, turns),
        "turns": turns,
        "prompt_tokens": numbers.prompt_tokens,
        "completion_tokens": numbers.completion_tokens,
        "tokens_per_success": _ratio(tokens, numbers.n_success) if tokens else None,
    }


def _cost_columns(identity: Mapping[str, Any], numbers: ArmNumbers) -> dict[str, float | None]:
    """Return what the scored episodes cost, where prices and tokens are known."""
    price_in, price_out = identity["usd_per_mtok_in"], identity["usd_per_mtok_out"]
    if price_in is None or not numbers.prompt_tokens + numbers.completion_tokens:
        return {"cost_usd": None, "cost_per_success": None}
    cost = (numbers.prompt_tokens * price_in + numbers.completion_tokens * price_out) / 1e6
    return {"cost_usd": cost, "cost_per_success": _ratio(cost, numbers.n_success)}


def pass_rows(identity: Mapping[str, Any], numbers: ArmNumbers) -> list[dict[str, Any]]:
    """Return an arm's rows of pass.csv, one for each number of tries; none where k is 1."""
    won = [int(sum(values)) for values in numbers.success.values()]
    played = [len(values) for values in numbers.success.values()]
    rows = []
    for k in range(1, identity["k"] + 1) if identity["k"] > 1 else ():
        at_k, hat_k = pass_at_k(won, played, k), pass_hat_k(won, played, k)
        rows.append(
            {
                "format": "pass/1",
                "run_id": identity["run_id"],
                "arm": identity["arm"],
                "k": k,
                "n_seeds": at_k.n_seeds,
                "dropped": at_k.dropped,
                **_pass_columns("pass_at_k", at_k),
                **_pass_columns("pass_hat_k", hat_k),
            }
        )
    return rows


def _pass_columns(name: str, estimate: PassEstimate) -> dict[str, float | None]:
    interval = estimate.interval
    return {
        name: estimate.value,
        f"{name}_lo": known(interval.lo) if interval else None,
        f"{name}_hi": known(interval.hi) if interval else None,
    }


def _cut(bound: float) -> float | None:
    """Return a bound of a mean that lies in [0, 1]."""
    return None if math.isnan(bound) else min(1.0, max(0.0, bound))


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(values) == 1 else sum(values) / len(values)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
