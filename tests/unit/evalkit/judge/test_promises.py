"""Promises: what is kept, what is broken, what is only told."""

from __future__ import annotations

import pytest

from evalkit.judge.intervals import IntervalMethod
from evalkit.judge.promises import Promise, promises


@pytest.mark.parametrize(
    ("found", "limits", "made", "kept"),
    [
        (0.04, {"at_most": 0.05}, True, True),
        (0.06, {"at_most": 0.05}, True, False),
        (0.94, {"at_least": 0.935}, True, True),
        (0.90, {"at_least": 0.935}, True, False),
        (0.10, {}, False, True),
    ],
)
def test_a_promise_is_a_limit(
    found: float, limits: dict[str, float], made: bool, kept: bool
) -> None:
    promise = Promise(name="p", case="c", n_seeds=9, found=found, **limits)
    assert (promise.made, promise.kept) == (made, kept)


def test_all_promises_are_checked_and_kept() -> None:
    found = list(promises(simulations=60))
    assert [promise for promise in found if not promise.kept] == []
    made = {(promise.name, promise.case) for promise in found if promise.made}
    for k in (1, 4):
        case = f"a policy against itself, k={k}"
        assert ("false decisions: fixed test", case) in made
        assert ("false decisions: sequential test, a look after every pair", case) in made
    lowest = {promise.case: promise.at_least for promise in found if "exact" in promise.case}
    assert lowest == {
        "blaker-adjusted, lowest of rates .02 to .98, exact": pytest.approx(0.935, abs=1e-6)
    }
    told = {promise.name for promise in found if not promise.made}
    assert told == {"false decisions: t test, a look after every pair (not used)", "covers: mean"}
    methods = {promise.case.split(",")[0] for promise in found if "covers" in promise.name}
    assert methods == {
        method.value
        for method in (
            IntervalMethod.BLAKER_ADJUSTED,
            IntervalMethod.TANGO,
            IntervalMethod.NEWCOMBE,
            IntervalMethod.WILSON_CLUSTERED,
            IntervalMethod.T,
            IntervalMethod.BCA,
            IntervalMethod.BETTING,
        )
    }


def test_the_rates_of_a_run_are_taken() -> None:
    found = promises(simulations=60, n_seeds=30, k=2, rates=[0.0, 1.0])
    first = next(found)
    assert (first.n_seeds, first.case) == (30, "a policy against itself, k=2")
    assert first.found == 0.0  # seeds that always end alike never differ
    next(found)
    naive = next(found)
    assert not naive.made
