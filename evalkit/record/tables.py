"""CSV in and out: the columns of every table, and the rows that come straight from trajectories.

All tables are RFC 4180, in a fixed column order, with their format in the first column, and hold
nothing that depends on the clock: equal runs give equal bytes. `performance.csv` is the exception
and says so by its name.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from evalkit.record.rundir import Raised, WholeFile
from evalkit.record.trajectory import Outcome, Trajectory

EPISODES = (
    "format run_id arm env_seed repetition scored success return turns optimal_turns stop_reason "
    "failure failure_message valid_actions prompt_tokens completion_tokens"
).split() + [outcome.value for outcome in Outcome]

TURNS = (
    "format run_id arm env_seed repetition turn action outcome valid reward event error memory "
    "finish_reason prompt_tokens completion_tokens request_seed prompt_digest policy_version"
).split()


class Table:
    """A CSV that is being written, row by row; it takes its place when the block ends well.

    None is an empty cell. `add` raises KeyError for a row that lacks a column.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._whole = WholeFile(path)
        self._columns = columns

    def __enter__(self) -> Self:
        self._text = io.TextIOWrapper(self._whole.__enter__(), "utf-8", newline="")
        self._writer = csv.writer(self._text)
        self._writer.writerow(self._columns)
        return self

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        self._writer.writerow([_cell(row[column]) for column in self._columns])

    def __exit__(self, *raised: *Raised) -> None:
        self._text.flush()
        self._text.detach()
        self._whole.__exit__(*raised)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table, all or nothing; see `Table`."""
    with Table(path, columns) as table:
        for row in rows:
            table.add(row)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table as texts by column name."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def episode_row(run_id: str, trajectory: Trajectory) -> dict[str, Any]:
    """Return the row of episodes.csv. The counts of outcomes sum to `turns`."""
    turns = trajectory.turns
    outcomes = [turn.outcome for turn in turns]
    return {
        "format": "episodes/1",
        "run_id": run_id,
        "arm": trajectory.key.arm,
        "env_seed": trajectory.key.env_seed,
        "repetition": trajectory.key.repetition,
        "scored": trajectory.scored,
        "success": trajectory.success if trajectory.scored else None,
        "return": trajectory.return_ if trajectory.scored else None,
        "turns": len(turns),
        "optimal_turns": trajectory.optimal_turns,
        "stop_reason": trajectory.stop_reason.value,
        "failure": trajectory.failure,
        "failure_message": trajectory.failure_message,
        "valid_actions": sum(turn.valid for turn in turns),
        "prompt_tokens": total(turn.prompt_tokens for turn in turns),
        "completion_tokens": total(turn.completion_tokens for turn in turns),
        **{outcome.value: outcomes.count(outcome) for outcome in Outcome},
    }


def turn_rows(run_id: str, trajectory: Trajectory) -> Iterable[dict[str, Any]]:
    """Yield the rows of turns.csv; the texts lie in trajectories.jsonl."""
    for turn in trajectory.turns:
        yield {
            "format": "turns/1",
            "run_id": run_id,
            "arm": trajectory.key.arm,
            "env_seed": trajectory.key.env_seed,
            "repetition": trajectory.key.repetition,
            **{name: getattr(turn, name) for name in TURNS[5:]},
        }


def total(values: Iterable[int | None]) -> int | None:
    """Sum what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _cell(value: object) -> object:
    """Return what the csv writer shall write; floats with twelve digits that count."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value + 0.0:.12g}"  # + 0.0 turns -0.0 into 0.0
    return value
