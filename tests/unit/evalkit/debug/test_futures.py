"""Where two futures part, and both side by side."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from envs.games.key_door import KeyDoor
from evalkit.debug.futures import Future, parting, side_by_side
from evalkit.debug.session import Debugger
from evalkit.play.baselines import ScriptPolicy
from evalkit.play.rollout import Arm, play
from evalkit.play.strategies import NoHistory
from evalkit.record.trajectory import Key, StopReason, Trajectory

KEY = Key(env_seed=7, repetition=0, arm="A")


def arm(*actions: str) -> Arm:
    return Arm(
        name="A",
        policy=ScriptPolicy([f"<action>{action}</action>" for action in actions]),
        strategy=NoHistory(),
        make_env=lambda: KeyDoor(size=2, max_turns=3),
        run_id="run",
    )


def played(*actions: str) -> Trajectory:
    return asyncio.run(play(arm(*actions), KEY))


def test_futures_part_at_the_first_turn_that_differs() -> None:
    left = Future.of("left", played("up", "left", "up"))
    assert parting(left, left) is None
    assert parting(left, Future.of("right", played("up", "left", "down"))) == 2
    assert parting(left, Future.of("right", played("down"))) == 0
    assert parting(left, replace(left, turns=left.turns[:1])) == 1
    assert parting(replace(left, turns=()), left) == 0


def test_how_a_future_stands() -> None:
    done = played("up", "left", "up")
    assert Future.of("a", done).ending == "no success, return -0.50, 3 turns, truncated"
    lost = replace(done, stop_reason=StopReason.INFRA_ERROR)
    assert Future.of("a", lost).ending == "return -0.50, 3 turns, infra_error"
    debugger = Debugger(arm("up", "left", "up"), KEY)
    asyncio.run(debugger.run(1))
    assert Future.of_debugger("a", debugger).ending == "return 0.00, 1 turns, not over"
    asyncio.run(debugger.run())
    assert Future.of_debugger("a", debugger) == Future.of("a", done)


def test_two_columns_from_the_parting_on() -> None:
    left, right = Future.of("left", played("up", "up")), Future.of("right", played("up", "\x1b[2J"))
    lines = list(side_by_side(left, right, chars=30))
    assert lines[0] == "  left                           | right"
    assert lines[3:5] == ["the same up to turn 1", "[1]"]
    assert "  > <action>up</action>          | > <action>\\x1b[2J</action>" in lines
    assert "  = up, +0.00                    | = \\x1b[2j, +0.00" in lines
    assert all("\x1b" not in line and len(line) <= 65 for line in lines)
    assert "at the end" in lines
    short = list(side_by_side(left, right, most_turns=1))
    assert short[-1] == "... and 1 more turns"
    assert list(side_by_side(left, left))[-1] == "the same in all 3 turns"
