"""What became of one episode in two ways: where they part, and both side by side. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from evalkit.debug.session import Debugger
from evalkit.record.trajectory import StopReason, Trajectory, Turn
from evalkit.show.replay import printable

COLUMN_CHARS = 46


@dataclass(frozen=True, slots=True, kw_only=True)
class Future:
    """One way in which an episode went on, finished or not."""

    name: str
    turns: tuple[Turn, ...]
    observation: str
    """The last one."""
    return_: float
    success: bool | None = None
    """None where nothing is decided: it is not over, or not scored."""
    stop_reason: StopReason | None = None
    """None while it is not over."""

    @classmethod
    def of(cls, name: str, trajectory: Trajectory) -> Future:
        """Return a finished future."""
        return cls(
            name=name,
            turns=trajectory.turns,
            observation=trajectory.final_observation,
            return_=trajectory.return_,
            success=trajectory.success if trajectory.scored else None,
            stop_reason=trajectory.stop_reason,
        )

    @classmethod
    def of_debugger(cls, name: str, debugger: Debugger) -> Future:
        """Return what was played so far."""
        if debugger.end is not None:
            return cls.of(name, debugger.end)
        return cls(
            name=name,
            turns=debugger.turns,
            observation=debugger.rollout.observation,
            return_=sum(turn.reward for turn in debugger.turns),
        )

    @property
    def ending(self) -> str:
        """How it stands, in a few words."""
        stop = "not over" if self.stop_reason is None else self.stop_reason.value
        verdict = {None: "", True: "success, ", False: "no success, "}[self.success]
        return f"{verdict}return {self.return_:.2f}, {len(self.turns)} turns, {stop}"


def parting(left: Future, right: Future) -> int | None:
    """Return the first turn in which not the same was seen, said and done; None for none.

    Where one goes on and the other does not, that is the first turn only one of them has.
    """
    for turn, (a, b) in enumerate(zip_longest(left.turns, right.turns)):
        if a is None or b is None or _what(a) != _what(b):
            return turn
    return None


def side_by_side(
    left: Future, right: Future, *, most_turns: int | None = None, chars: int = COLUMN_CHARS
) -> Iterator[str]:
    """Yield two futures as two columns, from the turn on in which they part."""
    parted = parting(left, right)
    yield from _row(left.name, right.name, chars)
    yield from _row(left.ending, right.ending, chars)
    if parted is None:
        yield f"the same in all {len(left.turns)} turns"
        return
    yield f"the same up to turn {parted}" if parted else "they differ from the first turn on"
    longest = max(len(left.turns), len(right.turns))
    last = longest if most_turns is None else min(longest, parted + most_turns)
    for number in range(parted, last):
        yield f"[{number}]"
        yield from _row(_said(left.turns, number), _said(right.turns, number), chars)
    if last < longest:
        yield f"... and {longest - last} more turns"
        return
    yield "at the end"
    yield from _row(left.observation, right.observation, chars)


def _what(turn: Turn) -> tuple[str, str, str | None, float]:
    return turn.observation, turn.completion, turn.action, turn.reward


def _said(turns: Sequence[Turn], number: int) -> str:
    if number >= len(turns):
        return ""
    turn = turns[number]
    reply = turn.completion.strip() or "(nothing)"
    return f"{turn.observation.strip()}\n> {reply}\n= {turn.action or '-'}, {turn.reward:+.2f}"


def _row(left: str, right: str, chars: int) -> Iterator[str]:
    columns = [_wrapped(text, chars) for text in (left, right)]
    for a, b in zip_longest(*columns, fillvalue=""):
        yield f"  {a:<{chars}} | {b}".rstrip()


def _wrapped(text: str, chars: int) -> list[str]:
    lines = printable(text).split("\n")
    return [part for line in lines for part in textwrap.wrap(line, chars) or [""]]
