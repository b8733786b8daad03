"""Admission: staleness is bounded, steps are in order, nothing is thrown away."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.rollouts.rows import Group
from train.rollouts.schedule import Schedule


def group(index: int, version: int = 0) -> Group:
    return Group(index=index, env_seed=2**32 + index, episodes=(), started_version=version)


def schedule(**how: int) -> Schedule:
    settings: dict[str, Any] = {
        "groups_per_step": 2,
        "max_staleness": 1,
        "publish_every": 1,
        "steps": 4,
    }
    return Schedule(**(settings | how))


def admitted(plan: Schedule) -> list[int]:
    return list(iter(plan.admit, None))


def test_only_so_many_steps_ahead_of_what_is_live() -> None:
    plan = schedule()
    assert admitted(plan) == [0, 1, 2, 3]
    plan.published(1)
    assert admitted(plan) == [4, 5]
    plan.published(4)
    assert admitted(plan) == [6, 7]


def test_staleness_0_plays_and_learns_in_turns() -> None:
    plan = schedule(max_staleness=0)
    assert admitted(plan) == [0, 1]
    plan.published(1)
    assert admitted(plan) == [2, 3]


def test_versions_that_are_published_every_other_step() -> None:
    plan = schedule(max_staleness=0, publish_every=2, steps=6)
    assert admitted(plan) == [0, 1, 2, 3]
    plan.published(2)
    assert admitted(plan) == [4, 5, 6, 7]


def test_a_step_is_its_groups_in_order_whatever_finishes_first() -> None:
    plan = schedule()
    for index in (3, 1, 2):
        plan.finish(group(index))
    assert plan.take(1, 0.0) is None
    plan.finish(group(0))
    taken = plan.take(1, 0.0)
    assert taken is not None
    assert [each.index for each in taken] == [0, 1]
    assert [each.index for each in plan.waiting()] == [2, 3]


def test_a_resumed_run_plays_only_what_is_missing() -> None:
    plan = schedule(done_steps=1)
    plan = Schedule(
        groups_per_step=2,
        max_staleness=1,
        publish_every=1,
        steps=4,
        done_steps=1,
        groups=[group(1), group(2), group(5)],
    )
    assert admitted(plan) == [3, 4]
    plan.finish(group(3))
    taken = plan.take(2, 0.0)
    assert taken is not None
    assert [each.index for each in taken] == [2, 3]


def test_who_waits_is_woken_and_told() -> None:
    plan = schedule()
    plan.finish(group(1))
    threading.Timer(0.05, lambda: plan.finish(group(0))).start()
    assert plan.take(1, 10.0) is not None
    threading.Timer(0.05, lambda: plan.fail(RuntimeError("gone"))).start()
    with pytest.raises(RuntimeError, match="gone"):
        plan.take(2, 10.0)


@given(
    per_step=st.integers(1, 3),
    staleness=st.integers(0, 3),
    every=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_no_group_is_ever_staler_than_allowed(
    per_step: int, staleness: int, every: int, seed: int
) -> None:
    """Whatever order groups finish in; staleness counts versions, not steps."""
    steps, rng = 12, random.Random(seed)
    plan = Schedule(
        groups_per_step=per_step, max_staleness=staleness, publish_every=every, steps=steps
    )
    version, playing, trained = 0, [], []
    for step in range(1, steps + 1):
        while True:
            playing += [group(index, version) for index in admitted(plan)]
            taken = plan.take(step, 0.0)
            if taken is not None:
                break
            assert playing, "a deadlock: nothing is playing and nothing may start"
            plan.finish(playing.pop(rng.randrange(len(playing))))
        assert all(version - each.started_version <= staleness for each in taken)
        trained += [each.index for each in taken]
        if step % every == 0:
            version += 1
            plan.published(step)
    assert trained == list(range(steps * per_step))
