"""Who gets which cores."""

from __future__ import annotations

import os
from typing import Any

import pytest

from train.config import TrainConfig, resolve
from train.cores import BIND, Placement, here, place

OWN = {"env.name": "e", "model.path": "m"}


def told(**overrides: Any) -> TrainConfig:
    return resolve(
        {}, {**OWN, **{key.replace("__", "."): value for key, value in overrides.items()}}
    )


def placed(
    cores: set[int], environment: dict[str, str] | None = None, **overrides: Any
) -> Placement:
    return place(
        told(**overrides), cores=frozenset(cores), gpu=False, environment=environment or {}
    )


def test_two_cores_are_shared_one_and_one() -> None:
    assert placed({0, 1}) == Placement(
        gateway={BIND: "0"}, learner={"OMP_NUM_THREADS": "1"}, learner_cores=frozenset({1})
    )


def test_more_cores_are_halved_and_gaps_minded() -> None:
    assert placed({2, 3, 7, 9, 10}) == Placement(
        gateway={BIND: "2,3"},
        learner={"OMP_NUM_THREADS": "1"},
        learner_cores=frozenset({7, 9, 10}),
    )


@pytest.mark.parametrize(
    ("cores", "environment", "overrides"),
    [
        ({0}, {}, {}),
        ({0, 1}, {BIND: "1"}, {}),
        ({0, 1, 2, 3}, {}, {"gateway__replicas": 2}),
    ],
    ids=["one core", "bound by the user", "engines share by themselves"],
)
def test_nothing_is_bound(
    cores: set[int], environment: dict[str, str], overrides: dict[str, Any]
) -> None:
    assert placed(cores, environment, **overrides) == Placement(learner={"OMP_NUM_THREADS": "1"})


def test_beside_a_gpu_nothing_is_bound() -> None:
    found = place(told(), cores=frozenset({0, 1}), gpu=True, environment={})
    assert found == Placement(learner={"OMP_NUM_THREADS": "1"})


def test_with_a_gateway_elsewhere_the_machine_is_the_learners() -> None:
    assert placed({0, 1}, gateway__url="http://h/v1") == Placement()


def test_threads_that_were_asked_for_win() -> None:
    assert placed({0}, {"OMP_NUM_THREADS": "3"}, learn__threads=2).learner == {
        "OMP_NUM_THREADS": "2"
    }
    assert placed({0}, {"OMP_NUM_THREADS": "3"}).learner == {}


def test_here_is_where_this_process_runs() -> None:
    assert here() == os.sched_getaffinity(0)
