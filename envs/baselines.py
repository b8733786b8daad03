"""What simple policies reach in the shipped envs: `python -m envs.baselines` prints the tables.

Lives here: policies that read nothing but the observation, one without and one with a memory, and
the measurement. They show what a setting demands: where the memoryless one succeeds, success says
nothing about memory.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import fmean
from typing import Any

from envs.base import TextEnv
from envs.games.key_door import BUMPED, DOOR_HERE, HANDS, KEY_HERE, MOVES, STEPS
from envs.games.tic_tac_toe import OPPONENTS, TicTacToe
from envs.games.wordle_players import RememberingGuesser, forgetful_guesser
from envs.playing import Policy, oracle_policy, play, random_policy
from envs.registry import make

Place = tuple[int, int]
"""(row, column)."""

_CLOCKWISE = {"up": "right", "right": "down", "down": "left", "left": "up"}
"""Along which move to keep the wall on the left, by the side on which the wall is."""
_INWARD = 0.3

MEMORY_SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "odd size": {"size": 5, "max_turns": 50},
    "tight budget": {"max_turns": 22},
    "hidden coordinates": {"show_position": False},
    "memory, 4x4": {"max_turns": 25, "show_position": False, "show_moves": False},
    "memory, 5x5": {"size": 5, "max_turns": 36, "show_position": False, "show_moves": False},
}
"""Parameters of key_door, from one that needs no memory to two that cannot do without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A key_door observation, read; None is what it does not tell."""

    size: int
    place: Place | None
    moves: tuple[str, ...] | None
    carrying: bool
    key_here: bool
    door_here: bool
    bumped: bool

    @property
    def can_use(self) -> bool:
        return (self.key_here and not self.carrying) or (self.door_here and self.carrying)


def memoryless(rng: random.Random) -> Policy:
    """Play key_door on the current observation alone, as well as we know how.

    Where the place is told: round a cycle through all rooms (all but one if the size is odd).
    Where only the open moves are told: round the rim, now and then inward. Else: a random walk.
    """

    def act(env: TextEnv, observation: str) -> str:  # noqa: ARG001 - a Policy's signature
        view = _read(observation)
        if view.can_use:
            return "interact"
        if view.place is not None:
            return cycle(view.size)[view.place]
        if view.moves is not None:
            return _along_the_rim(view.moves, rng)
        return rng.choice(MOVES)

    return act


class Remembering:
    """Play key_door with a memory: note what was seen, sweep the grid, then walk straight.

    Counts places from the start until the top and the left wall are met. One object an episode.
    """

    def __init__(self) -> None:
        self._at: Place = (0, 0)
        self._seen: set[Place] = set()
        self._key: Place | None = None
        self._door: Place | None = None
        self._top: int | None = None
        self._leftmost: int | None = None
        self._last = ""

    def __call__(self, env: TextEnv, observation: str) -> str:  # noqa: ARG002 - a Policy
        """Choose the next action; never asks `env`."""
        view = _read(observation)
        self._note(view)
        self._last = self._choose(view)
        return self._last

    def _note(self, view: _View) -> None:
        if view.place is not None:
            self._at, self._top, self._leftmost = view.place, 0, 0
        elif view.bumped:
            self._note_wall(self._last)
        elif self._last in STEPS:
            self._at = _next_to(self._at, self._last)
        for wall in set(MOVES) - set(view.moves or MOVES):
            self._note_wall(wall)
        self._seen.add(self._at)
        if view.key_here:
            self._key = self._at
        if view.door_here:
            self._door = self._at

    def _note_wall(self, wall: str) -> None:
        if wall == "up":
            self._top = self._at[0]
        if wall == "left":
            self._leftmost = self._at[1]

    def _choose(self, view: _View) -> str:
        goal = self._door if view.carrying else self._key
        if goal is not None:
            return "interact" if goal == self._at else _towards(self._at, goal)
        if self._top is None:
            return "up"
        if self._leftmost is None:
            return "left"
        sweep = (
            (self._top + row, self._leftmost + column)
            for column in range(view.size)
            for row in (range(view.size) if column % 2 == 0 else reversed(range(view.size)))
        )
        return _towards(self._at, next(place for place in sweep if place not in self._seen))


def perfect(env: TextEnv, observation: str) -> str:  # noqa: ARG001 - a Policy's signature
    """Play tic_tac_toe as if the opponent were perfect: never loses, wins less than the oracle."""
    view = TicTacToe(opponent="minimax", max_turns=env.max_turns)
    view.load(env.state())
    return view.oracle()


@lru_cache(maxsize=16)
def cycle(size: int) -> dict[Place, str]:
    """Return each room's move on a closed way through all rooms of the grid.

    Of an odd number of rooms one must stay out, here the bottom left, from which one goes up.
    """
    even = size if size % 2 == 0 else size - 2
    way: list[Place] = []
    for row in range(even):
        columns = range(1, size)
        way += [(row, column) for column in (columns if row % 2 == 0 else reversed(columns))]
    if size % 2:
        for column in range(size - 1, 0, -1):
            rows = (size - 2, size - 1) if (size - 1 - column) % 2 == 0 else (size - 1, size - 2)
            way += [(row, column) for row in rows]
    last = size - 1 if size % 2 == 0 else size - 2
    way += [(row, 0) for row in range(last, -1, -1)]
    moves = {(size - 1, 0): "up"}
    for place, following in zip(way, [*way[1:], way[0]], strict=True):
        moves[place] = _towards(place, following)
    return moves


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy in one setting, over `seeds` episodes; turns of successes and failures alike."""

    setting: str
    policy: str
    seeds: int
    successes: int
    mean_return: float
    mean_turns: float

    @property
    def interval(self) -> tuple[float, float]:
        """The success rate's 95 % Wilson interval."""
        return wilson(self.successes, self.seeds)

    def __str__(self) -> str:
        low, high = (100 * bound for bound in self.interval)
        rate = 100 * self.successes / self.seeds
        return (
            f"| {self.setting} | {self.policy} | {rate:.1f} % [{low:.1f}, {high:.1f}] "
            f"| {self.mean_return:.3f} | {self.mean_turns:.2f} |"
        )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a rate (evalkit's is out of reach: envs imports nothing).

    Raises:
        ValueError: `n` is not positive.

    """
    if n <= 0:
        raise ValueError(f"n must be positive, got {n}")
    z = 1.959963984540054
    rate = successes / n
    centre = rate + z * z / (2 * n)
    margin = z * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def measure(
    setting: str,
    env: TextEnv,
    policy: str,
    fresh: Callable[[], Policy],
    *,
    seeds: int,
) -> Row:
    """Play seeds 0 to `seeds` - 1, each with a policy that `fresh` makes."""
    played = [play(env, seed, fresh()) for seed in range(seeds)]
    return Row(
        setting=setting,
        policy=policy,
        seeds=seeds,
        successes=sum(one.success for one in played),
        mean_return=fmean(one.return_ for one in played),
        mean_turns=fmean(one.turns for one in played),
    )


def memory_table(seeds: int) -> list[Row]:
    """Measure key_door's policies without and with a memory in `MEMORY_SETTINGS`."""
    rows = []
    for name, params in MEMORY_SETTINGS.items():
        env = make("key_door", **params)
        given = " ".join(f"{key}={value}" for key, value in params.items())
        setting = f"{name}: `{given}`" if given else name
        unaware = _always(memoryless(random.Random(0)))
        rows.append(measure(setting, env, "memoryless", unaware, seeds=seeds))
        rows.append(measure(setting, env, "remembering", Remembering, seeds=seeds))
    return rows


def baseline_table(seeds: int) -> list[Row]:
    """Measure random, oracle and, in tic_tac_toe, perfect play."""
    rows = []
    for turns in (35, 50):
        env = make("key_door", max_turns=turns)
        players = {
            "random": random_policy(random.Random(0)),
            "oracle": oracle_policy,
        }
        for name, player in players.items():
            setting = f"key_door, {turns} turns"
            rows.append(measure(setting, env, name, _always(player), seeds=seeds))
    for opponent in OPPONENTS:
        env = make("tic_tac_toe", opponent=opponent)
        players = {"random": random_policy(random.Random(0))}
        players |= {"perfect": perfect, "oracle": oracle_policy}
        for name, player in players.items():
            setting = f"tic_tac_toe, {opponent}"
            rows.append(measure(setting, env, name, _always(player), seeds=seeds))
    return rows


def more_table(seeds: int) -> list[Row]:
    """Measure random and oracle in the other envs; in wordle, guessing without and with a memory.

    Where actions are open-ended, random draws from the sample that `legal_actions` is.
    """
    rows = []
    for name in ("wordle", "gsm8k", "function_calling", "tool_test"):
        env = make(name)
        players = {"random": _always(random_policy(random.Random(0)))}
        if name == "wordle":
            players["memoryless"] = _always(forgetful_guesser(random.Random(0)))
            players["remembering"] = RememberingGuesser
        players["oracle"] = _always(oracle_policy)
        rows += [measure(name, env, who, fresh, seeds=seeds) for who, fresh in players.items()]
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m envs.baselines", description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=3000, help="episodes a row (default 3000)")
    seeds = parser.parse_args(arguments).seeds
    for table in (baseline_table, more_table, memory_table):
        head = "| setting | policy | success [95 %] | return | turns |\n|---|---|---|---|---|\n"
        sys.stdout.write(head + "".join(f"{row}\n" for row in table(seeds)) + "\n")


def _always(policy: Policy) -> Callable[[], Policy]:
    return lambda: policy


def _read(observation: str) -> _View:
    size = re.search(r"in a (\d+)x\d+ grid", observation)
    assert size is not None, f"no key_door observation: {observation!r}"
    place = re.search(r"You are at \((\d+), (\d+)\)", observation)
    moves = re.search(r"You can go (.*), or interact", observation)
    return _View(
        size=int(size[1]),
        place=(int(place[1]), int(place[2])) if place else None,
        moves=tuple(re.findall("up|down|left|right", moves[1])) if moves else None,
        carrying=HANDS[True] in observation,
        key_here=KEY_HERE in observation,
        door_here=DOOR_HERE in observation,
        bumped=BUMPED in observation,
    )


def _along_the_rim(moves: tuple[str, ...], rng: random.Random) -> str:
    walls = [way for way in MOVES if way not in moves]
    onward = [_CLOCKWISE[wall] for wall in walls if _CLOCKWISE[wall] in moves]
    if not onward or rng.random() < _INWARD:
        return rng.choice(moves)
    return onward[0]


def _next_to(place: Place, move: str) -> Place:
    down, right = STEPS[move]
    return place[0] + down, place[1] + right


def _towards(place: Place, goal: Place) -> str:
    """Return the next move of a straight way, rows first; `goal` is elsewhere."""
    if goal[0] != place[0]:
        return "down" if goal[0] > place[0] else "up"
    return "right" if goal[1] > place[1] else "left"


if __name__ == "__main__":
    main()
