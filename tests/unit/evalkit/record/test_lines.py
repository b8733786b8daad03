"""The tables of what was recorded, against rows that the standard library's csv module writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import DamagedRun, Failure
from evalkit.record.lines import write_lines
from evalkit.record.rundir import RunDir
from evalkit.record.tables import (
    EPISODES,
    TURNS,
    csv_line,
    episode_line,
    read_csv,
    total,
    turn_lines,
)
from evalkit.record.trajectory import Key, Memory, Outcome, StopReason, Trajectory, Turn

MANIFEST = {"run_id": "run-1", "arms": [{"name": "A"}, {"name": "b, c"}]}
texts = st.text(alphabet=st.sampled_from("a,\"\n\r;' é\u2028\t="), max_size=6) | st.text(max_size=4)
words = st.none() | texts
counts = st.none() | st.integers(0, 2**40)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1, 1.0])

turns = st.builds(
    Turn,
    turn=st.integers(0, 99),
    observation=texts,
    completion=texts,
    reasoning=words,
    action=words,
    outcome=st.sampled_from(Outcome),
    valid=st.booleans(),
    reward=numbers,
    event=words,
    error=words,
    memory=st.none() | st.sampled_from(Memory),
    finish_reason=words,
    prompt_tokens=counts,
    completion_tokens=counts,
    request_seed=st.integers(0, 2**31),
    prompt_digest=texts,
    policy_version=words,
)
trajectories = st.builds(
    Trajectory,
    key=st.builds(
        Key, env_seed=st.integers(0, 9), repetition=st.integers(0, 2), arm=st.just("A") | texts
    ),
    turns=st.lists(turns, max_size=4).map(tuple),
    final_observation=texts,
    success=st.booleans(),
    return_=numbers,
    optimal_turns=counts,
    stop_reason=st.sampled_from(StopReason),
    failure=st.none() | st.sampled_from(Failure),
    failure_message=words,
)


def cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value + 0.0:.12g}" if isinstance(value, float) else value


def written(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([cell(value) for value in row] for row in rows)
    return text.getvalue()


def episode_row(played: Trajectory) -> list[object]:
    outcomes = [turn.outcome for turn in played.turns]
    return [
        *("episodes/1", "run, 1", played.key.arm, played.key.env_seed, played.key.repetition),
        played.scored,
        played.success if played.scored else None,
        played.return_ if played.scored else None,
        *(len(outcomes), played.optimal_turns, played.stop_reason.value),
        *(played.failure, played.failure_message),
        sum(turn.valid for turn in played.turns),
        total(turn.prompt_tokens for turn in played.turns),
        total(turn.completion_tokens for turn in played.turns),
        *(outcomes.count(outcome) for outcome in Outcome),
    ]


def turn_rows(played: Trajectory) -> Iterator[list[object]]:
    for turn in played.turns:
        which = (played.key.arm, played.key.env_seed, played.key.repetition)
        yield ["turns/1", "run, 1", *which, *(getattr(turn, name) for name in TURNS[5:])]


@given(played=trajectories)
def test_lines_are_what_the_csv_module_writes(played: Trajectory) -> None:
    plain = played.plain()
    assert episode_line("run, 1", plain) == written([episode_row(played)])
    assert turn_lines("run, 1", plain) == written(list(turn_rows(played)))


@given(
    values=st.lists(
        st.none() | st.booleans() | st.integers() | numbers | texts | st.sampled_from(Outcome),
        min_size=2,
        max_size=5,
    )
)
def test_any_line_is_what_the_csv_module_writes(values: list[Any]) -> None:
    assert csv_line(values) == written([values])


def test_cells_that_are_equal_but_look_different_are_told_apart() -> None:
    raw = orjson.loads(rundir_lines(1)[0])
    shown = []
    for reward in (10**12, 1e12, True, 1):
        raw["turns"][0]["reward"] = reward
        shown.append(turn_lines("run", raw).split(",")[9])
    assert shown == ["1000000000000", "1e+12", "true", "1"]
    raw["turns"][0]["event"] = []  # an env's word that is none
    assert turn_lines("run", raw).split(",")[10] == "[]"


def rundir_lines(n: int) -> list[bytes]:
    """Return lines of seeds 0 to n - 1, both arms of each, a turn for each seed's number."""
    turn: dict[str, Any] = dict.fromkeys([*TURNS[5:], "observation", "completion", "reasoning"])
    turn |= {"outcome": "ok", "valid": True, "reward": 0.5}
    return [
        orjson.dumps(
            {
                "format": "trajectory/1",
                "key": {"env_seed": seed, "repetition": 0, "arm": arm},
                "turns": [turn | {"turn": number} for number in range(seed + 1)],
                "final_observation": "",
                "success": seed % 2 == 0,
                "return_": 0.5,
                "optimal_turns": 1,
                "stop_reason": "terminated",
                "failure": None,
                "failure_message": None,
            }
        )
        for seed in range(n)
        for arm in ("A", "b, c")
    ]


def journal_line(arm: str, seed: int, at_s: float, elapsed_s: float, attempts: int = 1) -> bytes:
    said = {"elapsed_s": elapsed_s, "attempts": attempts, "cached_tokens": 8 if seed else None}
    request_id = f"run-1-{arm}-{seed}-0-0"
    return orjson.dumps(
        {"format": "journal/1", "request_id": request_id, "at": at_s, "completion": said}
    )


def a_run(path: Path, lines: Sequence[bytes], journal: Sequence[bytes] = ()) -> dict[str, bytes]:
    """Write the files of a run, then its three tables; return these."""
    path.mkdir()
    rundir = RunDir(path)
    rundir.trajectories_path.write_bytes(b"".join(line + b"\n" for line in lines))
    rundir.journal_path.write_bytes(b"".join(line + b"\n" for line in journal))
    write_lines(rundir, MANIFEST, path)
    return {file.name: file.read_bytes() for file in path.glob("*.csv")}


def test_the_order_of_the_lines_and_lines_that_no_longer_count_change_nothing(
    tmp_path: Path,
) -> None:
    lines = rundir_lines(12)
    arranged = a_run(tmp_path / "arranged", lines)
    stale = lines[3].replace(b'"return_":0.5', b'"return_":0.75')
    mixed = [stale, *reversed(lines)]
    assert a_run(tmp_path / "mixed", mixed) == arranged
    assert sorted(arranged) == ["episodes.csv", "performance.csv", "turns.csv"]
    rows = read_csv(tmp_path / "arranged" / "episodes.csv")
    assert list(rows[0]) == EPISODES
    assert [(row["env_seed"], row["arm"]) for row in rows[:3]] == [
        ("0", "A"), ("0", "b, c"), ("1", "A"),
    ]  # fmt: skip
    assert len(read_csv(tmp_path / "arranged" / "turns.csv")) == 2 * sum(range(1, 13))


@pytest.mark.parametrize("arranged", [True, False])
def test_a_damaged_line_is_named_by_its_place(tmp_path: Path, arranged: bool) -> None:
    lines = rundir_lines(3)
    lines[2] = lines[2].replace(b'"outcome":"ok"', b'"outcome":"fine"')
    order = lines if arranged else [lines[1], lines[0], *lines[2:]]
    place = len(lines[0]) + len(lines[1]) + 2
    with pytest.raises(DamagedRun, match=rf"byte {place}: .*unknown outcome"):
        a_run(tmp_path / "run", order)
    assert not list((tmp_path / "run").glob("*.csv"))


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    lines = rundir_lines(3)
    whole = a_run(tmp_path / "whole", lines[:-1])
    (tmp_path / "torn").mkdir()
    rundir = RunDir(tmp_path / "torn")
    rundir.trajectories_path.write_bytes(b"\n".join(lines)[:-4])
    rundir.journal_path.write_bytes(b"")
    write_lines(rundir, MANIFEST, rundir.path)
    for name, data in whole.items():
        assert (rundir.path / name).read_bytes() == data


def test_how_long_calls_took(tmp_path: Path) -> None:
    journal = [journal_line("A", seed, 100.0 + seed, 0.001 * seed, 1) for seed in range(1, 101)]
    journal += [journal_line("A", 0, 150.0, 51.0, 3)]
    a_run(tmp_path / "run", rundir_lines(4), journal)
    first, second = read_csv(tmp_path / "run" / "performance.csv")
    assert first == {
        "format": "performance/1",
        "run_id": "run-1",
        "arm": "A",
        "calls": "101",
        "retried_calls": "1",
        "attempts_mean": "1.0198019802",
        "lat_p50_ms": "51",
        "lat_p95_ms": "96",
        "lat_p99_ms": "100",
        "wall_s": "101",
        "calls_per_s": "1",
        "turns_per_s": "0.0990099009901",
        "cached_tokens": "800",
    }
    assert (second["arm"], second["calls"], second["lat_p99_ms"]) == ("b, c", "0", "")
    assert (second["wall_s"], second["turns_per_s"]) == ("", "")


@pytest.mark.parametrize(
    "entry", [journal_line("C", 0, 1.0, 1.0), b'{"format":"journal/1"}', b'{"format":"journal/2"}']
)
def test_a_call_of_nobody_is_damage(tmp_path: Path, entry: bytes) -> None:
    with pytest.raises(DamagedRun, match=r"journal\.jsonl"):
        a_run(tmp_path / "run", rundir_lines(2), [entry])
