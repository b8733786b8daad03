"""The check of the checks: honest tests pass it, a test repeated without paying does not."""

import pytest

from evalkit.judge.selfcheck import SelfCheck, self_check


@pytest.mark.parametrize("k", [1, 3])
def test_the_tests_of_a_verdict_pass(k: int) -> None:
    check = self_check(300, 100, k, seed=1)
    assert check.passed
    assert check.fixed <= check.allowed == pytest.approx(0.0877, abs=1e-3)
    assert check.sequential <= 0.05
    assert check.naive >= 0.2
    assert check == self_check(300, 100, k, seed=1)
    assert check != self_check(300, 100, k, seed=2)


def test_rates_of_a_run_can_be_given() -> None:
    certain = self_check(20, 50, rates=[0.0, 1.0])
    assert (certain.fixed, certain.sequential, certain.naive) == (0.0, 0.0, 0.0)


def test_too_many_decisions_do_not_pass() -> None:
    numbers = {"comparisons": 1_000, "n_seeds": 100, "k": 1}
    bad = SelfCheck(**numbers, alpha=0.05, fixed=0.05, sequential=0.3, naive=0.3)
    assert not bad.passed


def test_inputs_are_checked() -> None:
    with pytest.raises(ValueError, match="sizes"):
        self_check(0)
    with pytest.raises(ValueError, match="rates"):
        self_check(1, 5, rates=[1.5])
    with pytest.raises(ValueError, match="level"):
        self_check(1, 5, alpha=0.0)
