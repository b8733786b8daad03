import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.pool.base import Demand
from serve.pool.scaling import Scaler, Scaling

loads = st.builds(
    Demand,
    in_flight=st.integers(0, 2_000),
    held=st.integers(0, 500),
    idle_s=st.floats(0, 1_000),
)
scalings = st.builds(
    lambda least, more, **rest: Scaling(least=least, most=least + more, **rest),
    st.integers(0, 4),
    st.integers(1, 6),
    target_in_flight=st.integers(1, 64),
    up_after_s=st.floats(0, 20),
    down_after_s=st.floats(0, 200),
    idle_to_zero_s=st.none() | st.floats(1, 500),
)


def follow(scaler: Scaler, demands: list[Demand], current: int, tick_s: float = 1.0) -> list[int]:
    """Return how many replicas were wanted at each tick."""
    wanted = []
    for tick, demand in enumerate(demands):
        current = scaler.wanted(demand, current, tick * tick_s)
        wanted.append(current)
    return wanted


@given(scalings, st.lists(loads, max_size=60), st.integers(0, 10), st.floats(0.1, 50))
def test_never_outside_the_bounds(
    scaling: Scaling, demands: list[Demand], first: int, tick_s: float
) -> None:
    first = min(first, scaling.most)
    floor = max(1, scaling.least)
    for demand, wanted in zip(
        demands, follow(Scaler(scaling), demands, first, tick_s), strict=True
    ):
        assert wanted == 0 or floor <= wanted <= scaling.most
        assert wanted or not (demand.held or demand.in_flight)


@given(scalings, st.integers(1, 2_000), st.integers(0, 100), st.integers(0, 10))
def test_a_constant_demand_is_answered_once(
    scaling: Scaling, in_flight: int, held: int, first: int
) -> None:
    demand = Demand(in_flight=in_flight, held=held)
    wanted = follow(Scaler(scaling), [demand] * 400, min(first, scaling.most), tick_s=10.0)
    changes = {(a < b) for a, b in itertools.pairwise(wanted) if a != b}
    assert len(changes) <= 1, "it went up and down"
    load = in_flight + held
    needed = -(-load // scaling.target_in_flight)
    assert wanted[-1] == min(scaling.most, max(scaling.least, needed, 1))


def test_grows_after_a_while_and_at_once_for_those_who_wait() -> None:
    scaling = Scaling(least=1, most=4, target_in_flight=10, up_after_s=3, down_after_s=5)
    assert follow(Scaler(scaling), [Demand(in_flight=35)] * 5, 1) == [1, 1, 1, 4, 4]
    assert follow(Scaler(scaling), [Demand(in_flight=20, held=1)], 1) == [3]


def test_a_peak_that_passes_changes_nothing() -> None:
    scaling = Scaling(least=1, most=4, target_in_flight=10, up_after_s=3, down_after_s=5)
    peaks = [Demand(in_flight=15), Demand(in_flight=15), Demand(in_flight=5)] * 5
    assert set(follow(Scaler(scaling), peaks, 1)) == {1}
    dips = [Demand(in_flight=5), Demand(in_flight=5), Demand(in_flight=15)] * 5
    assert set(follow(Scaler(scaling), dips, 2)) == {2}


def test_shrinks_by_one_at_a_time() -> None:
    scaling = Scaling(least=1, most=4, target_in_flight=10, down_after_s=2)
    assert follow(Scaler(scaling), [Demand(in_flight=1)] * 8, 4) == [4, 4, 3, 3, 2, 2, 1, 1]


@pytest.mark.parametrize("least", [0, 1, 2])
def test_to_zero_and_back(least: int) -> None:
    scaler = Scaler(Scaling(least=least, most=3, idle_to_zero_s=10))
    floor = max(1, least)
    wanted = [
        scaler.wanted(Demand(in_flight=1), floor, 0),
        scaler.wanted(Demand(idle_s=9.9), floor, 9.9),
        scaler.wanted(Demand(idle_s=10.0), floor, 10),
        scaler.wanted(Demand(idle_s=11.0), 0, 11),
        scaler.wanted(Demand(held=1), 0, 12),
    ]
    assert wanted == [floor, floor, 0, 0, floor]


def test_who_waits_keeps_the_last_replica() -> None:
    scaler = Scaler(Scaling(least=0, most=1, idle_to_zero_s=1))
    assert scaler.wanted(Demand(held=1, idle_s=100.0), 1, 0) == 1
    assert scaler.wanted(Demand(in_flight=1, idle_s=100.0), 1, 0) == 1


def test_none_are_started_for_nobody() -> None:
    assert follow(Scaler(Scaling(least=0, most=2)), [Demand(idle_s=5.0)] * 3, 0) == [0, 0, 0]
    assert follow(Scaler(Scaling(least=0, most=2)), [Demand(held=3)] * 2, 0) == [1, 1]


def test_too_few_are_made_up_for_at_once() -> None:
    assert follow(Scaler(Scaling(least=3, most=4)), [Demand()], 1) == [3]
