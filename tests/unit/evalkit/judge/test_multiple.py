"""Holm against statsmodels."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from evalkit.judge.multiple import holm


@settings(max_examples=25)  # statsmodels takes 45 ms a call
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30))
def test_holm_equals_statsmodels(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(expected.tolist(), abs=1e-12)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_p_values_are_probabilities(bad: float) -> None:
    with pytest.raises(ValueError, match="p-values"):
        holm([0.5, bad])
