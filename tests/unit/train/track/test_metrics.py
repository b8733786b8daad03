"""metrics.csv: no step lost, none counted twice, and columns that say what happened."""

from __future__ import annotations

import resource
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.judge.intervals import wilson
from train.errors import BadConfig, SaveFailed
from train.rollouts.rows import Episode, Group, Row
from train.track.metrics import COLUMNS, MetricsFile, StepMetrics, of_groups, read_metrics


def steps(path: Path) -> list[int]:
    return [int(row["step"]) for row in read_metrics(path)]


def filled(path: Path, last: int) -> None:
    file = MetricsFile(path, after_step=0)
    for step in range(1, last + 1):
        file.step(StepMetrics(step=step, loss=step / 8))
    file.close()


def test_the_columns_are_these() -> None:
    assert (
        list(COLUMNS)
        == (
            "step version episodes groups flat_groups return_mean reward_mean success success_lo "
            "success_hi turns_mean rows tokens_trained tokens_forwarded loss grad_norm lr entropy "
            "ratio_mean ratio_max clip_low clip_high kl gap_mean gap_max weight_mean "
            "staleness_mean staleness_max mixed_rows step_s wait_s learn_s sync_s probe_gap "
            "dropped replayed tokens_per_s idle_share wall_s"
        ).split()
    )
    assert [field.name for field in fields(StepMetrics)] == list(COLUMNS)


def test_a_row_is_on_disk_as_soon_as_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, after_step=0)
    assert path.read_text() == f"schema,{','.join(COLUMNS)}\n"
    file.step(StepMetrics(step=1, version=2, loss=0.1, success=1 / 3, rows=4))
    head, line = path.read_text().splitlines()
    cells = dict(zip(head.split(","), line.split(","), strict=True))
    assert cells["schema"] == "train-metrics/1"
    assert (cells["step"], cells["version"], cells["loss"]) == ("1", "2", "0.1")
    assert (cells["success"], cells["kl"]) == ("0.333333333", "")
    file.close()


def test_a_resumed_run_counts_no_step_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    filled(path, 7)
    file = MetricsFile(path, after_step=4)
    assert steps(path) == [1, 2, 3, 4]
    assert file.last_step == 4
    for step in (5, 6):
        file.step(StepMetrics(step=step, loss=-1.0))
    file.close()
    assert [row["loss"] for row in read_metrics(path)] == "0.125 0.25 0.375 0.5 -1 -1".split()


def test_begun_anew_it_is_empty(tmp_path: Path) -> None:
    filled(tmp_path / "metrics.csv", 3)
    MetricsFile(tmp_path / "metrics.csv", after_step=0).close()
    assert steps(tmp_path / "metrics.csv") == []


def test_a_step_cannot_be_told_twice(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv", after_step=0)
    file.step(StepMetrics(step=2))
    with pytest.raises(ValueError, match="count twice"):
        file.step(StepMetrics(step=2))
    file.close()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.integers(0, 3000))
def test_wherever_the_last_line_is_torn_the_rest_stands(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.csv"
    filled(path, 5)
    whole = path.read_bytes()
    torn = whole[: max(0, len(whole) - cut)]
    path.write_bytes(torn)
    lines = max(0, torn.count(b"\n") - 1)
    assert steps(path) == list(range(1, lines + 1))
    file = MetricsFile(path, after_step=5)
    file.step(StepMetrics(step=6))
    file.close()
    assert steps(path) == [*range(1, lines + 1), 6]


def test_a_line_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    filled(path, 3)
    text = path.read_text()
    path.write_text(text + text.splitlines()[2].replace("0.25", "0.75") + "\n")
    MetricsFile(path, after_step=3).close()
    assert [row["loss"] for row in read_metrics(path)] == ["0.125", "0.75", "0.375"]


def test_columns_that_an_older_file_lacks_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("schema,step,loss,gone\ntrain-metrics/1,1,0.5,7\n")
    file = MetricsFile(path, after_step=1, columns=("step", "kl", "loss"))
    file.step(StepMetrics(step=2, kl=0.25))
    file.close()
    assert path.read_text() == (
        "schema,step,kl,loss\ntrain-metrics/1,1,,0.5\ntrain-metrics/1,2,0.25,\n"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "is not a file of train-metrics/1"),
        ("schema,step\ntrain-metrics/1,1\ntrain-metrics/1\n", "line 3"),
        ("schema,step\ntrain-metrics/9,1\n", "line 2"),
        ("schema,step\ntrain-metrics/1,one\n", "line 2"),
    ],
)
def test_another_file_is_not_overwritten(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(BadConfig, match=said):
        MetricsFile(path, after_step=9)
    assert path.read_text() == text


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(SaveFailed, match="cannot write"):
        MetricsFile(tmp_path / "absent" / "metrics.csv", after_step=0)


def test_a_row_that_does_not_fit_on_the_disk_leaves_no_half(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, after_step=0)
    file.step(StepMetrics(step=1))
    before, soft = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, soft[1]))
    try:
        with pytest.raises(SaveFailed, match="step 2"):
            file.step(StepMetrics(step=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert path.read_bytes() == before
    file.step(StepMetrics(step=2))
    file.close()
    assert steps(path) == [1, 2]


def a_row(versions: list[int]) -> Row:
    """A row with one prompt token and a sampled one of each version."""
    n = 1 + len(versions)
    return Row(
        ids=np.arange(n, dtype=np.int32),
        trained=np.array([0] + [1] * len(versions), np.int8),
        logprobs=np.zeros(n, np.float32),
        versions=np.array([-1, *versions], np.int32),
    )


def an_episode(reward: float, *rows: Row, success: bool = False) -> Episode:
    return Episode(
        env_seed=2**32,
        repetition=0,
        rows=rows,
        env_return=reward / 2,
        reward=reward,
        success=success,
        turns=len(rows),
    )


def test_groups_tell_their_columns() -> None:
    flat = Group(
        index=0,
        env_seed=2**32,
        episodes=(an_episode(1.0, a_row([4, 4]), success=True), an_episode(1.0, a_row([4]))),
        started_version=4,
        dropped=2,
    )
    mixed = Group(
        index=1,
        env_seed=2**32 + 1,
        episodes=(an_episode(0.0, a_row([3, 4]), a_row([2])), an_episode(2.0, a_row([]))),
        started_version=3,
    )
    told = of_groups([flat, mixed], version=4)
    assert told["episodes"] == 4
    assert (told["groups"], told["flat_groups"], told["dropped"]) == (2, 1, 2)
    assert (told["reward_mean"], told["return_mean"]) == (1.0, 0.5)
    assert told["success"] == 0.25
    assert told["turns_mean"] == 1.25
    assert (told["rows"], told["mixed_rows"]) == (5, 1)
    assert (told["tokens_trained"], told["tokens_forwarded"]) == (6, 11)
    assert (told["staleness_mean"], told["staleness_max"]) == (0.5, 2.0)
    StepMetrics(step=1, **told)


def test_the_interval_of_success_is_wilsons() -> None:
    groups = [
        Group(
            index=n,
            env_seed=2**32 + n,
            episodes=(an_episode(1.0, success=n < 3),),
            started_version=0,
        )
        for n in range(10)
    ]
    told, expected = of_groups(groups, version=0), wilson(3, 10)
    assert (told["success_lo"], told["success_hi"]) == (expected.lo, expected.hi)


def test_no_groups_tell_nothing() -> None:
    told = of_groups([], version=3)
    assert (told["success"], told["staleness_mean"], told["rows"]) == (None, None, 0)
    assert (told["success_lo"], told["success_hi"]) == (0.0, 1.0)
