"""Plans of a comparison in words: seeds, savings, and when a sequential test would stop."""

from __future__ import annotations

import math

from evalkit.judge.design import ExpectedStop, Plan, expected_stop
from evalkit.judge.sequential import StoppingRule

_BUDGET, _MOST_PAIRS = 4, 20_000
_SIMULATIONS = 1_000


def plan_lines(plan: Plan) -> list[str]:
    """Say what it takes to see a difference of success rates."""
    paired = f"{plan.seeds} seeds that both arms play"
    if plan.k > 1:
        paired += f", {plan.k} times each ({plan.episodes_per_arm} episodes per arm)"
    asked = (
        f"{plan.rate_b:.1%} against {plan.rate_a:.1%} success, with {plan.power:.0%} power at "
        f"alpha {plan.alpha:g} (rho {plan.rho:.2f}: {plan.discordant_rate:.1%} of seeds are won "
        "by one arm only)"
    )
    unpaired = f"{plan.unpaired_seeds} seeds of its own for each arm; pairing {_saved(plan.saved)}"
    lines = [asked, f"  paired      {paired}", f"  unpaired    {unpaired}"]
    return [_spaced(line) for line in lines] + _sequential_lines(plan)


def _saved(share: float) -> str:
    return f"saves {share:.0%} of the episodes" if share >= 0.0 else f"takes {-share:.0%} more"


def _sequential_lines(plan: Plan) -> list[str]:
    """Say when `--stop decided` would end, where each seed is played once."""
    if plan.k > 1:
        return []
    budget = _BUDGET * plan.seeds
    if budget > _MOST_PAIRS:
        return [f"  sequential  not simulated beyond {_MOST_PAIRS} seeds"]
    rule = StoppingRule(alpha=plan.alpha, max_pairs=budget)
    stop = expected_stop(plan.rate_a, plan.rate_b, rule, rho=plan.rho, n_sims=_SIMULATIONS)
    return [_spaced(_sequential(plan, stop, budget))]


def _sequential(plan: Plan, stop: ExpectedStop, budget: int) -> str:
    right = stop.better if plan.rate_b > plan.rate_a else stop.worse
    return (
        f"  sequential  {stop.median_pairs:.0f} seeds at the median, {stop.mean_pairs:.0f} on "
        f"average (--stop decided --max-seeds {budget}: {right:.0%} end with the right decision)"
    )


def detectable_line(
    gain: float, *, baseline: float, seeds: int, rho: float, k: int, power: float, alpha: float
) -> str:
    """Say the smallest gain that a number of seeds shows."""
    times = f", {k} times each" if k > 1 else ""
    if baseline >= 1.0:
        return _spaced(f"no gain over {baseline:.1%} is possible")
    if math.isinf(gain):
        return _spaced(
            f"{seeds} seeds{times} show no gain over {baseline:.1%} with {power:.0%} power at "
            f"alpha {alpha:g}: too few"
        )
    return _spaced(
        f"{seeds} seeds{times} show a gain of {100 * gain:.1f} points over {baseline:.1%} with "
        f"{power:.0%} power at alpha {alpha:g} (rho {rho:.2f})"
    )


def _spaced(text: str) -> str:
    return text.replace("%", " %")
