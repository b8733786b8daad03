"""How the teacher plays key_door by its notes: where it is, where the door is, what it did last.

Only the notes and the observation are read, never the env: what the pupil is taught is a function
of what the pupil sees. Where neither the place nor the ways are shown, nobody gets far without.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Self

from envs.games.key_door import BUMPED, DOOR_HERE, HANDS, KEY_HERE, STEPS

Place = tuple[int, int]
"""(row, column), counted from the top left."""

_UNKNOWN = "unknown"
_NOTES = re.compile(
    r"Row (?P<row>\w+), column (?P<column>\w+)\. "
    r"Door (?:unknown|at row (?P<door_row>\d+), column (?P<door_column>\d+))\. "
    r"Last action (?P<last>\w+)\."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What the teacher knows; None is what it does not."""

    row: int | None = None
    column: int | None = None
    door: Place | None = None
    last: str = ""
    """The action taken when they were written."""

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what `str` wrote; of anything else nothing is known."""
        found = _NOTES.search(text)
        if found is None:
            return cls()
        row, column, door_row, door_column = (
            int(value) if value and value.isdecimal() else None
            for value in found.group("row", "column", "door_row", "door_column")
        )
        return cls(
            row=row,
            column=column,
            door=None if door_row is None or door_column is None else (door_row, door_column),
            last=found["last"],
        )

    def __str__(self) -> str:
        row = _UNKNOWN if self.row is None else self.row
        column = _UNKNOWN if self.column is None else self.column
        door = f"at row {self.door[0]}, column {self.door[1]}" if self.door else _UNKNOWN
        return f"Row {row}, column {column}. Door {door}. Last action {self.last}."

    @property
    def place(self) -> Place | None:
        """Where the player is, once both a wall above or below and one at a side were met."""
        return None if self.row is None or self.column is None else (self.row, self.column)

    def seen(self, observation: str) -> Self:
        """Return what is known after an observation that followed the last action."""
        moved = self._moved(_size(observation), BUMPED in observation)
        place = moved.place
        if DOOR_HERE in observation:
            return dataclasses.replace(moved, door=place)
        return dataclasses.replace(moved, door=None) if moved.door == place else moved

    def _moved(self, size: int, bumped: bool) -> Self:
        """Return where the last action led; a wall that was met says which row or column it is."""
        if self.last not in STEPS:
            return self
        down, right = STEPS[self.last]
        if bumped:
            rim = 0 if down + right < 0 else size - 1
            return dataclasses.replace(self, row=rim) if down else self._in_column(rim)
        return dataclasses.replace(
            self, row=_along(self.row, down, size), column=_along(self.column, right, size)
        )

    def _in_column(self, column: int) -> Self:
        return dataclasses.replace(self, column=column)

    def action(self, observation: str) -> str:
        """Return what to do: use what is here, walk to the door, find the corner, search."""
        carrying = HANDS[True] in observation
        if DOOR_HERE in observation if carrying else KEY_HERE in observation:
            return "interact"
        if self.row is None:
            return "up"
        if self.column is None:
            return "left"
        place = (self.row, self.column)
        if carrying and self.door is not None and self.door != place:
            return _towards(place, self.door)
        return _searching(place, _size(observation))


def _size(observation: str) -> int:
    """Return the grid's rows; as many are its columns."""
    found = re.search(r"in a (\d+)x\d+ grid", observation)
    assert found is not None, f"no key_door observation: {observation!r}"
    return int(found[1])


def _along(at: int | None, by: int, size: int) -> int | None:
    return None if at is None else min(max(at + by, 0), size - 1)


def _towards(place: Place, goal: Place) -> str:
    """Return the next move of a straight way, rows first; `goal` is elsewhere."""
    if goal[0] != place[0]:
        return "down" if goal[0] > place[0] else "up"
    return "right" if goal[1] > place[1] else "left"


def _searching(place: Place, size: int) -> str:
    """Return the next move down one column and up the next; from the last room one turns back."""
    row, column = place
    last = size - 1
    if column % 2:
        return "up" if row else "right" if column < last else "left"
    return "down" if row < last else "right" if column < last else "left"
