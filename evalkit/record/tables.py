"""CSV in and out: the columns of every table, and the lines that come straight from trajectories.

All tables are RFC 4180, in a fixed column order, with their format in the first column, and hold
nothing that depends on the clock: equal runs give equal bytes. `performance.csv` is the exception
and says so by its name.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from types import NoneType
from typing import Any, Self

from evalkit.record.rundir import Raised, WholeFile
from evalkit.record.trajectory import UNSCORED, Outcome, Plain

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
        self._values = itemgetter(*columns)

    def __enter__(self) -> Self:
        self._text = io.TextIOWrapper(self._whole.__enter__(), "utf-8", newline="")
        self._text.write(csv_line(self._columns))
        return self

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        self._text.write(csv_line(self._values(row)))

    def write(self, lines: str) -> None:
        """Write lines that `csv_line` made."""
        self._text.write(lines)

    def __exit__(self, *raised: *Raised) -> None:
        self._text.flush()
        self._text.detach()
        self._whole.__exit__(*raised)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table of two columns or more, all or nothing; see `Table`."""
    with Table(path, columns) as table:
        for row in rows:
            table.add(row)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table as texts by column name."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def csv_line(values: Iterable[object]) -> str:
    """Return a line of a table, with its end, of two values or more; quotes where they must be.

    None is an empty cell, and floats have twelve digits that count.
    """
    return csv_cells(values) + "\r\n"


def csv_cells(values: Iterable[object]) -> str:
    """Return a part of a line."""
    cells = [_CELLS.get(type(value), _cell)(value) for value in values]
    line = ",".join(cells)
    if line.count(",") != len(cells) - 1 or '"' in line or "\n" in line or "\r" in line:
        line = ",".join(map(_quoted, cells))
    return line


def episode_line(run_id: str, played: Plain) -> str:
    """Return the line of episodes.csv. The counts of outcomes sum to `turns`."""
    stop = played["stop_reason"]
    scored = stop not in UNSCORED
    counts = zip(*map(_counts, played["turns"]), strict=True) if played["turns"] else [()] * 4
    outcomes, valid, prompt_tokens, completion_tokens = counts
    result = csv_cells(
        (
            scored,
            played["success"] if scored else None,
            played["return_"] if scored else None,
            len(outcomes),
            played["optimal_turns"],
            stop,
            played["failure"],
            played["failure_message"],
            sum(valid),
            total(prompt_tokens),
            total(completion_tokens),
        )
    )
    which = _which("episodes/1", run_id, played["key"])
    return f"{which},{result},{_counted(outcomes)}\r\n"


def turn_lines(run_id: str, played: Plain) -> str:
    """Return the lines of turns.csv; the texts lie in trajectories.jsonl."""
    which = _which("turns/1", run_id, played["key"])
    return "".join(
        [
            f"{which},{turn['turn']},{_told(_happening(turn))},{csv_cells(_call(turn))}\r\n"
            for turn in played["turns"]
        ]
    )


def _which(table: str, run_id: str, key: Plain) -> str:
    """Return the cells that say of which episode a line is."""
    return f"{_of_arm(table, run_id, key['arm'])},{key['env_seed']},{key['repetition']}"


@lru_cache
def _of_arm(table: str, run_id: str, arm: str) -> str:
    return csv_cells((table, run_id, arm))


@lru_cache(maxsize=4096)
def _counted(outcomes: tuple[str, ...]) -> str:
    """Return the cells of how often each outcome is there."""
    return csv_cells(map(outcomes.count, _OUTCOMES))


def _told(happening: tuple[Any, ...]) -> str:
    """Return the cells of what happened in a turn."""
    try:
        return _kept(*happening)
    except TypeError:  # an env's word is a list
        return csv_cells(happening)


@lru_cache(maxsize=4096, typed=True)  # typed: 1, 1.0 and True are different cells
def _kept(*values: Any) -> str:  # noqa: ANN401 - what JSON holds
    """Return cells; they are much the same in many turns."""
    return csv_cells(values)


def total(values: Iterable[int | None]) -> int | None:
    """Sum what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _quoted(cell: str) -> str:
    """Put a cell in quotes where RFC 4180 wants them."""
    if "," in cell or '"' in cell or "\n" in cell or "\r" in cell:
        return '"' + cell.replace('"', '""') + '"'
    return cell


def _float(value: float) -> str:
    return f"{value + 0.0:.12g}"  # + 0.0 turns -0.0 into 0.0


def _cell(value: object) -> str:
    """Return the cell of a value of any type."""
    return _float(value) if isinstance(value, float) else str(value)


_CELLS: Mapping[type, Callable[[Any], str]] = {
    NoneType: lambda _: "",
    bool: lambda value: "true" if value else "false",
    float: _float,
    int: str,
    str: str,
}
"""How values of the commonest types are written; `_cell` is for the others."""
_OUTCOMES = [outcome.value for outcome in Outcome]
_counts = itemgetter("outcome", "valid", "prompt_tokens", "completion_tokens")
_happening = itemgetter(*TURNS[6:14])
_call = itemgetter(*TURNS[14:])
