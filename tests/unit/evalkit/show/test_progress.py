"""Progress: one line that says it all, and lines where there is no terminal."""

from __future__ import annotations

import asyncio
import io
import time

import pytest

from evalkit.record.tally import ArmTally, Tally
from evalkit.show.progress import line, progress


def tally(elapsed_s: float = 60.0, **arms: ArmTally) -> Tally:
    """Return a tally of a session that began so long ago."""
    return Tally(total_episodes=100, arms=arms, started_s=time.monotonic() - elapsed_s)


LINES: dict[str, tuple[float, dict[str, ArmTally], str]] = {
    "begin": (60.0, {"A": ArmTally()}, "0/100 episodes  0.0 turns/s  1:00  success: A -"),
    "half": (
        60.0,
        {"A": ArmTally(episodes=50, scored=50, successes=25)},
        "50/100 episodes  0.0 turns/s  1:00  1:00 left  success: A 50% (37%..63%)",
    ),
    "errors": (
        60.0,
        {
            "A": ArmTally(episodes=10, scored=8, successes=8, errors=2),
            "B": ArmTally(episodes=10, scored=0, errors=10),
        },
        (
            "20/100 episodes  0.0 turns/s  12 errors  1:00  4:00 left  "
            "success: A 100% (68%..100%), B -"
        ),
    ),
    "end": (
        3_725.0,
        {"A": ArmTally(episodes=100, scored=100)},
        "100/100 episodes  0.0 turns/s  62:05  success: A 0% (0%..4%)",
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_a_line(case: str) -> None:
    elapsed_s, arms, expected = LINES[case]
    assert line(tally(elapsed_s, **arms)) == expected


def test_time_left_is_that_of_this_session() -> None:
    counts = tally(A=ArmTally(episodes=75, scored=75))
    counts.episodes_before, counts.turns = 50, 120
    assert line(counts).startswith("75/100 episodes  2.0 turns/s  1:00  1:00 left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_the_last_state_is_shown_even_when_the_run_fails(stream: io.StringIO) -> None:
    counts = tally(A=ArmTally())

    async def failing() -> None:
        async with progress(counts, stream):
            await asyncio.sleep(0)
            counts.arms["A"] = ArmTally(episodes=3, scored=3, successes=3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(failing())
    assert "3/100 episodes" in stream.getvalue()
    assert "100" in stream.getvalue()


def test_without_a_terminal_there_are_plain_lines() -> None:
    stream = io.StringIO()

    async def short() -> None:
        async with progress(tally(A=ArmTally()), stream):
            pass

    asyncio.run(short())
    text = stream.getvalue()
    assert "\x1b" not in text
    assert [bool(said) for said in text.split("\n")] in ([True, False], [False])
