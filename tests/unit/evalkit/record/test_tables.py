"""CSV: fixed columns, RFC 4180, readable by pandas as it is."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import Failure
from evalkit.record.references import Reference, load_references, save_references
from evalkit.record.tables import (
    EPISODES,
    TURNS,
    csv_line,
    episode_line,
    read_csv,
    total,
    turn_lines,
    write_csv,
)
from evalkit.record.trajectory import (
    Key,
    Memory,
    Outcome,
    Plain,
    StopReason,
    Trajectory,
    Turn,
)

NASTY = 'HTTP 500: "oops", he said,\r\nand\nleft; =1+1 é'

TURN = Turn(
    turn=0,
    observation="o",
    completion="c",
    reasoning=None,
    action='say "a, b"',
    outcome=Outcome.OK,
    valid=True,
    reward=0.1,
    event="event",
    error=None,
    memory=Memory.REPLACED,
    finish_reason="stop",
    prompt_tokens=10,
    completion_tokens=2,
    request_seed=99,
    prompt_digest="00ff00ff00ff00ff",
    policy_version=None,
)
PLAYED = Trajectory(
    key=Key(env_seed=7, repetition=1, arm="A"),
    turns=(
        TURN,
        replace(TURN, turn=1, outcome=Outcome.NO_ACTION, valid=False, action=None, reward=-0.5),
        replace(TURN, turn=2, prompt_tokens=None, completion_tokens=None),
    ),
    final_observation="over",
    success=True,
    return_=-0.30000000000000004,
    optimal_turns=4,
    stop_reason=StopReason.TERMINATED,
)
LOST = replace(
    PLAYED,
    success=False,
    stop_reason=StopReason.INFRA_ERROR,
    failure=Failure.SERVER_ERROR,
    failure_message=NASTY,
)


def table(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> Path:
    write_csv(path / "table.csv", columns, rows)
    return path / "table.csv"


def told(path: Path, columns: list[str], line: Callable[[str, Plain], str]) -> Path:
    """Write the lines of both trajectories as a table."""
    lines = [line("run", played.plain()) for played in (PLAYED, LOST)]
    text = "".join([csv_line(columns), *lines])
    (path / "table.csv").write_text(text, encoding="utf-8", newline="")
    return path / "table.csv"


def test_an_episode_as_a_line(tmp_path: Path) -> None:
    first, second = read_csv(told(tmp_path, EPISODES, episode_line))
    assert first == {
        "format": "episodes/1",
        "run_id": "run",
        "arm": "A",
        "env_seed": "7",
        "repetition": "1",
        "scored": "true",
        "success": "true",
        "return": "-0.3",
        "turns": "3",
        "optimal_turns": "4",
        "stop_reason": "terminated",
        "failure": "",
        "failure_message": "",
        "valid_actions": "2",
        "prompt_tokens": "20",
        "completion_tokens": "4",
        "refusal": "0",
        "truncated_tokens": "0",
        "empty": "0",
        "no_action": "1",
        "illegal": "0",
        "multi_action": "0",
        "unclosed": "0",
        "ok": "2",
    }
    assert list(first) == EPISODES
    changed = {name: value for name, value in second.items() if first[name] != value}
    assert changed == {
        "scored": "false",
        "success": "",
        "return": "",
        "stop_reason": "infra_error",
        "failure": "server_error",
        "failure_message": NASTY,
    }


def test_turns_as_lines(tmp_path: Path) -> None:
    rows = read_csv(told(tmp_path, TURNS, turn_lines))
    assert rows[0] == {
        "format": "turns/1",
        "run_id": "run",
        "arm": "A",
        "env_seed": "7",
        "repetition": "1",
        "turn": "0",
        "action": 'say "a, b"',
        "outcome": "ok",
        "valid": "true",
        "reward": "0.1",
        "event": "event",
        "error": "",
        "memory": "replaced",
        "finish_reason": "stop",
        "prompt_tokens": "10",
        "completion_tokens": "2",
        "request_seed": "99",
        "prompt_digest": "00ff00ff00ff00ff",
        "policy_version": "",
    }
    assert [row["turn"] for row in rows] == ["0", "1", "2"] * 2


def test_pandas_reads_a_table_without_being_told_how(tmp_path: Path) -> None:
    frame = pd.read_csv(told(tmp_path, EPISODES, episode_line))
    assert list(frame.columns) == EPISODES
    assert list(frame["scored"]) == [True, False]
    assert list(frame["turns"]) == [3, 3]
    assert frame["return"][0] == -0.3
    assert pd.isna(frame["return"][1])
    assert frame["failure_message"][1] == NASTY


def test_the_bytes_are_those_of_rfc_4180(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"a": 'say "hi"', "b": "x,y"},
        {"a": "two\nlines", "b": None},
        {"a": True, "b": False},
        {"a": 1, "b": -0.0},
        {"a": 1 / 3, "b": 1e300},
        {"a": Outcome.OK, "b": "é"},
    ]
    assert table(tmp_path, ["a", "b"], rows).read_bytes().decode() == (
        'a,b\r\n"say ""hi""","x,y"\r\n"two\nlines",\r\ntrue,false\r\n1,0\r\n'
        "0.333333333333,1e+300\r\nok,é\r\n"
    )


def test_a_row_without_one_of_the_columns_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        table(tmp_path, ["a", "b"], [{"a": 1}])
    assert list(tmp_path.iterdir()) == []


@given(rows=st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=5))
def test_any_text_survives_the_table(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    file = table(folder, ["a", "b"], [{"a": a, "b": b} for a, b in rows])
    with file.open(newline="", encoding="utf-8") as opened:
        assert list(csv.reader(opened)) == [["a", "b"], *rows]


@pytest.mark.parametrize(
    ("values", "expected"), [([], None), ([None], None), ([1, None, 2], 3), ([0, None], 0)]
)
def test_totals_are_of_what_is_known(values: list[int | None], expected: int | None) -> None:
    assert total(values) == expected


def test_references_are_kept_and_read(tmp_path: Path) -> None:
    kept = {
        name: Reference(policy=name, n_episodes=4, successes=1, return_mean=0.1, turns_mean=2.5)
        for name in ("random", "oracle")
    }
    file = tmp_path / "deep" / "references.json"
    save_references(file, kept)
    assert load_references(file) == kept
    assert kept["random"].success_rate == 0.25


@pytest.mark.parametrize(
    "data",
    [None, b"", b"{", b"[]", b"{}", b'{"format":"reference/2"}', b'{"format":"reference/1"}',
     b'{"format":"reference/1","references":[{"policy":"random"}]}'],
)  # fmt: skip
def test_references_that_cannot_be_read_are_as_good_as_none(
    tmp_path: Path, data: bytes | None
) -> None:
    file = tmp_path / "references.json"
    if data is not None:
        file.write_bytes(data)
    assert load_references(file) is None
