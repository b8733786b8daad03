"""The path that is drawn is the sequential test's, whatever is left out between its points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from evalkit.judge.deciding import Deciding
from evalkit.judge.sequential import StoppingRule, Verdict, judge_sequence, look_path
from evalkit.record.testing import arms_of
from evalkit.show.html.charts.evidence import (
    evidence,
    evidence_path,
    seed_differences,
    stopped_path,
)
from evalkit.show.report import Report
from evalkit.show.sequential import SeedLook, Sequential


@pytest.mark.parametrize("values", [(-1.0, 0.0, 1.0), (-0.5, 0.0, 0.25, 1.0)])
def test_the_path_is_the_judges(values: tuple[float, ...]) -> None:
    diffs = np.random.default_rng(5).choice(values, size=60) + 0.0
    path, looks = evidence_path(diffs), look_path(diffs, StoppingRule())
    assert path.n_pairs.tolist() == [look.n_pairs for look in looks]
    assert path.log_e == pytest.approx([look.log_e for look in looks])
    assert path.diff == pytest.approx([look.diff for look in looks])
    assert path.lo == pytest.approx([look.lo for look in looks], abs=1e-9)
    assert path.hi == pytest.approx([look.hi for look in looks], abs=1e-9)


def test_the_first_decision_is_found_between_the_points() -> None:
    diffs = np.random.default_rng(7).choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=5000)
    path = evidence_path(diffs, points=5)
    assert path.n_pairs.tolist() == [1.0, 1251.0, 2501.0, 3750.0, 5000.0]
    assert path.decided_at == judge_sequence(diffs, StoppingRule()).n_pairs


def test_pairs_come_in_the_order_of_their_seeds() -> None:
    arms = arms_of(A="0110.", B="10101")
    assert seed_differences(arms["A"], arms["B"]).tolist() == [1.0, -1.0, 0.0, 0.0]


def test_what_stopped_the_run_is_shown(reported: Callable[..., Report]) -> None:
    diffs = [1.0] * 12
    looks = look_path(diffs, StoppingRule(alpha=0.1))
    stopped = Sequential(
        a="A",
        b="B",
        deciding=Deciding.SUCCESS,
        margin=None,
        looks=tuple(SeedLook(env_seed=n, look=look) for n, look in enumerate(looks)),
        verdict=Verdict.BETTER,
        n_lost=0,
        n_episodes=24,
        fixed=None,
        tokens_per_episode=None,
    )
    path = stopped_path(stopped)
    assert path is not None
    assert (path.decided_at, path.n_pairs[-1], round(path.alpha, 9)) == (12, 12.0, 0.1)
    report = replace(reported(arms_of(A="0" * 12, B="1" * 12)), sequential=[stopped])
    figure = evidence(report)
    assert figure is not None
    assert figure.finding == "Read after every pair, 12 pairs tell A and B apart"
    assert stopped_path(replace(stopped, looks=())) is None


def test_few_pairs_do_not_decide(reported: Callable[..., Report]) -> None:
    figure = evidence(reported(arms_of(A="01", B="10")))
    assert figure is not None
    assert figure.finding == "Read after every pair, 2 pairs do not tell A and B apart"
    assert evidence(reported(arms_of(A="01"))) is None
