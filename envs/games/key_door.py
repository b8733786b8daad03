"""key_door: find the key, then the door, in a grid of which one sees a single room at a time.

Lives here: the game, its texts and its oracle. The player sees the room he stands in, never the
rest; `show_position` and `show_moves` take away what would let him do without a memory.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from envs.base import EpisodeOver, Info, StepResult, TextEnv, choice_tool
from envs.games.key_door_notes import CARRIED, EMPTY, read_claims

MOVES = ("up", "down", "left", "right")
ACTIONS = (*MOVES, "interact")
STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}

_PICK_UP_REWARD = 0.1
_UNLOCK_REWARD = 1.0
_TIME_OUT_REWARD = -0.5

HANDS = ("Your hands are empty. ", "You carry the key. ")
KEY_HERE = "A key lies on the floor. "
DOOR_HERE = "A locked door is in front of you. "
BUMPED = "You walk into a wall. "
NOTHING_HERE = "Nothing is here. "
_QUESTION = "What do you do?"


@dataclass(frozen=True, slots=True)
class _Room:
    """What never changes about one cell: its texts, its open ways, where each move leads."""

    where: str
    choices: str
    ways: tuple[str, ...]
    to: dict[str, int]


class KeyDoor(TextEnv):
    """Pick up the key (+0.1), unlock the door with it (+1.0); running out of turns gives -0.5.

    A move against the wall is a known action: it costs the turn and earns 0. An answer that is no
    action costs the turn too. `size`: rows and columns of the grid, at least 2. `show_position`:
    whether the observation tells where one is and where moves lead. `show_moves`: whether it lists
    the open moves; without them a wall is found by walking into it.
    """

    id = "key_door"

    def __init__(
        self,
        *,
        size: int = 4,
        max_turns: int = 35,
        show_position: bool = True,
        show_moves: bool = True,
    ) -> None:
        if size < 2:
            raise ValueError(f"size must be at least 2 (three distinct rooms), got {size}")
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        self.size = size
        self.max_turns = max_turns
        self.show_position = show_position
        self.show_moves = show_moves
        self._rooms = _rooms(size, show_position, show_moves)
        self._cell = self._key = self._door = self._start = 0
        self._turn = 0
        self._has_key = self._success = False
        self._over = True
        self._visited = 0
        self._walls: frozenset[str] = frozenset()

    @property
    def params(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "size": self.size,
            "max_turns": self.max_turns,
            "show_position": self.show_position,
            "show_moves": self.show_moves,
        }

    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        """Put player, key and door into three distinct rooms.

        Raises:
            ValueError: `options` are given: this env has none.

        """
        if options:
            raise ValueError(f"key_door takes no options, got {dict(options)}")
        rng = random.Random(seed)
        self._cell, self._key, self._door = rng.sample(range(self.size * self.size), 3)
        self._start = self._cell
        self._turn = 0
        self._has_key = self._success = self._over = False
        self._visited = 1 << self._cell
        self._walls = frozenset()
        return self._observe(""), {}

    def step(self, action: str) -> StepResult:
        """Move, bump, interact, or lose the turn; see `TextEnv.step`.

        `info["event"]`: bump, key_picked_up, door_unlocked, interact_locked_door_fail,
        interact_nothing, max_steps_reached, max_steps_reached_on_invalid.
        """
        if self._over:
            raise EpisodeOver("the episode is over or was never reset: call reset first")
        self._turn += 1
        cell = self._cell
        target = self._rooms[cell].to.get(action)
        reward = 0.0
        feedback = ""
        info: Info = {}
        if target is None:
            if action == "interact":
                feedback, reward, info["event"] = self._interact()
            else:
                reason = _why_invalid(action)
                feedback = f"That answer was not valid: {reason}. "
                info["illegal"] = True
                info["error"] = reason
        elif target != cell:
            self._cell = target
            self._visited |= 1 << target
        else:
            feedback = BUMPED
            self._walls |= {action}
            info["event"] = "bump"
        if self._success:
            return feedback, reward, True, False, info
        if self._turn >= self.max_turns:
            self._over = True
            reward = _TIME_OUT_REWARD
            info["event"] = "max_steps_reached" + ("_on_invalid" if "illegal" in info else "")
        return self._observe(feedback), reward, False, self._over, info

    @property
    def success(self) -> bool:
        """Whether the door was unlocked."""
        return self._success

    def legal_actions(self) -> tuple[str, ...]:
        """Return the five actions: a move against a wall is allowed, and costs the turn."""
        return ACTIONS

    def oracle(self) -> str:
        """Return the next action of a shortest way: rows first, then columns."""
        target = self._door if self._has_key else self._key
        rows, columns = _offset(self._cell, target, self.size)
        if rows:
            return "down" if rows > 0 else "up"
        if columns:
            return "right" if columns > 0 else "left"
        return "interact"

    def optimal_turns(self) -> int | None:
        """Return the turns of the shortest way to success, in closed form; None if too few left."""
        if self._over:
            return 0 if self._success else None
        if self._has_key:
            turns = _distance(self._cell, self._door, self.size) + 1
        else:
            to_key = _distance(self._cell, self._key, self.size)
            turns = to_key + 1 + _distance(self._key, self._door, self.size) + 1
        return turns if turns <= self.max_turns - self._turn else None

    def state(self) -> dict[str, Any]:
        """Return the episode; rooms are numbered row by row from the top left, from 0."""
        return {
            "cell": self._cell,
            "key": self._key,
            "door": self._door,
            "start": self._start,
            "turn": self._turn,
            "has_key": self._has_key,
            "success": self._success,
            "over": self._over,
            "visited": [room for room in range(self.size**2) if self._visited >> room & 1],
            "walls": sorted(self._walls),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._cell, self._key, self._door = state["cell"], state["key"], state["door"]
        self._start, self._turn = state["start"], state["turn"]
        self._has_key, self._success = state["has_key"], state["success"]
        self._over = state["over"]
        self._visited = sum(1 << room for room in state["visited"])
        self._walls = frozenset(state["walls"])

    def clone(self) -> Self:
        """Return an independent copy: every field is immutable."""
        return copy.copy(self)

    @property
    def system_prompt(self) -> str:
        """The rules and the answer's format."""
        places = (
            " Places are written (row, column); (0, 0) is the top left."
            if self.show_position
            else ""
        )
        return (
            f"You walk through a grid of {self.size} by {self.size} rooms and see only the room "
            "you are in. One room holds a key, another a locked door. First find the key and pick "
            "it up, then find the door and unlock it.\n"
            "up, down, left and right take you to the next room in that direction. interact picks "
            "up the key, or unlocks the door once you carry the key; you must be in the same room."
            f"{places}\n"
            f"You have {self.max_turns} turns. Answer each one with exactly one action, written "
            "like this: <action>up</action>"
        )

    @property
    def scratchpad_prompt(self) -> str:
        """What is worth noting here."""
        where = "" if self.show_position else " your own place counted from where you started,"
        return (
            "You do not see earlier turns. Before your action, write your notes between "
            "<scratchpad> and </scratchpad>. They replace your old notes and are all you will "
            f"remember, so repeat what still matters:{where} whether you carry the key, where you "
            "saw the key, where you saw the door, and which rooms you found empty. Note facts, not "
            "plans.\n"
            "Example: <scratchpad>No key yet. Door at (0, 2). Empty: (0, 1), (1, 1).</scratchpad>"
            "<action>down</action>"
        )

    def optimal_scratchpad(self) -> str:
        """Return what a perfect note-taker knows: places visited, seen or bumped into.

        Hidden places are counted from the start, as (rows down, columns right) of it.
        """
        seen = [room for room in range(self.size**2) if self._visited >> room & 1]
        empty = [self._place(room) for room in seen if room not in (self._key, self._door)]
        if self._has_key:
            key = "picked up"
        else:
            key = self._place(self._key) if self._key in seen else "not seen yet"
        lines = [
            f"Carrying the key: {'yes' if self._has_key else 'no'}.",
            f"Key: {key}.",
            f"Door: {self._place(self._door) if self._door in seen else 'not seen yet'}.",
            f"Empty rooms seen: {', '.join(empty) or 'none'}.",
        ]
        if not self.show_position:
            here = self._place(self._cell)
            lines.insert(0, f"You are {here} from your start, as (rows down, columns right).")
            lines.append(f"Outer walls met: {self._known_walls()}.")
        return "\n".join(lines)

    def facts(self) -> dict[str, str]:
        """Return key, door and rooms that were visited; places as in `optimal_scratchpad`."""
        facts = {CARRIED: "yes" if self._has_key else "no"}
        for room in range(self.size**2):
            if not self._visited >> room & 1:
                continue
            place = self._place(room)
            if room == self._door:
                facts["door"] = place
            elif room == self._key and not self._has_key:
                facts["key"] = place
            elif room != self._key:
                facts[place] = EMPTY
        return facts

    def claims(self, notes: str) -> dict[str, str]:
        """Read notes in plain English; see `envs.games.key_door_notes`."""
        return read_claims(notes)

    def render(self) -> str:
        """Draw the grid: A the player, K the key, D the door, small letters for rooms visited."""
        marks = ["." if self._visited >> room & 1 else " " for room in range(self.size**2)]
        marks[self._door] = "D"
        if not self._has_key:
            marks[self._key] = "K"
        marks[self._cell] = "A" if marks[self._cell] in ". " else marks[self._cell].lower()
        bar = "+" + "---+" * self.size
        rows = [marks[first : first + self.size] for first in range(0, self.size**2, self.size)]
        lines = [bar]
        for row in rows:
            lines += ["|" + "|".join(f" {mark} " for mark in row) + "|", bar]
        carrying = "carrying the key" if self._has_key else "no key"
        lines.append(f"turn {self._turn} of {self.max_turns}, {carrying}")
        return "\n".join(lines)

    def tools(self) -> list[dict[str, Any]]:
        """Return one tool whose argument is the action."""
        return [
            choice_tool(
                "action", "Walk to the next room, or interact with what is in this one.", ACTIONS
            )
        ]

    def _interact(self) -> tuple[str, float, str]:
        """Return (feedback, reward, event) of interacting with the room."""
        if self._cell == self._key and not self._has_key:
            self._has_key = True
            return "You pick up the key. ", _PICK_UP_REWARD, "key_picked_up"
        if self._cell == self._door and self._has_key:
            self._success = self._over = True
            return "The key turns and the door opens. You made it.", _UNLOCK_REWARD, "door_unlocked"
        if self._cell == self._door:
            return "The door stays shut without a key. ", 0.0, "interact_locked_door_fail"
        return "There is nothing to use here. ", 0.0, "interact_nothing"

    def _observe(self, feedback: str) -> str:
        cell = self._cell
        room = self._rooms[cell]
        if cell == self._door:
            here = DOOR_HERE
        elif cell == self._key and not self._has_key:
            here = KEY_HERE
        else:
            here = NOTHING_HERE
        return _observation(feedback, room.where, HANDS[self._has_key], here, room.choices)

    def _place(self, room: int) -> str:
        """Write a room's place as the player may know it."""
        origin = 0 if self.show_position else self._start
        return f"({', '.join(map(str, _offset(origin, room, self.size)))})"

    def _known_walls(self) -> str:
        """Name the outer walls that were bumped into or seen as a missing move."""
        known = set(self._walls)
        if self.show_moves:
            seen = [room for room in range(self.size**2) if self._visited >> room & 1]
            known |= {way for room in seen for way in STEPS if way not in self._rooms[room].ways}
        rows, columns = divmod(self._start, self.size)
        last = self.size - 1
        lines = {
            "up": f"row {-rows} is the top",
            "down": f"row {last - rows} is the bottom",
            "left": f"column {-columns} is the leftmost",
            "right": f"column {last - columns} is the rightmost",
        }
        return ", ".join(text for way, text in lines.items() if way in known) or "none"


@lru_cache(maxsize=4096)
def _observation(*parts: str) -> str:
    """Join the parts of an observation; the many episodes that see the same share one text."""
    return "".join(parts)


@lru_cache(maxsize=64)
def _rooms(size: int, show_position: bool, show_moves: bool) -> tuple[_Room, ...]:
    """Write down every room's texts once: the hot path only joins them."""
    return tuple(_room(cell, size, show_position, show_moves) for cell in range(size * size))


def _room(cell: int, size: int, show_position: bool, show_moves: bool) -> _Room:
    row, column = divmod(cell, size)
    to: dict[str, int] = {}
    ways: list[str] = []
    choices: list[str] = []
    for way, (down, right) in STEPS.items():
        next_row, next_column = row + down, column + right
        inside = 0 <= next_row < size and 0 <= next_column < size
        to[way] = next_row * size + next_column if inside else cell
        if inside:
            ways.append(way)
            choices.append(f"{way} to ({next_row}, {next_column})" if show_position else way)
    place = f"You are at ({row}, {column})" if show_position else "You are somewhere"
    options = f"You can go {', '.join(choices)}, or interact. " if show_moves else ""
    return _Room(
        where=f"{place} in a {size}x{size} grid. ",
        choices=options + _QUESTION,
        ways=tuple(ways),
        to=to,
    )


def _offset(origin: int, target: int, size: int) -> tuple[int, int]:
    """Return (rows down, columns right) from one room to another."""
    origin_row, origin_column = divmod(origin, size)
    row, column = divmod(target, size)
    return row - origin_row, column - origin_column


def _distance(origin: int, target: int, size: int) -> int:
    rows, columns = _offset(origin, target, size)
    return abs(rows) + abs(columns)


def _why_invalid(action: str) -> str:
    if not action:
        return "it names no action"
    shown = action if len(action) <= 40 else f"{action[:40]}..."
    return f"{shown!r} is not an action"
