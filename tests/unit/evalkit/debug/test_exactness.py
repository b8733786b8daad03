"""A fork at turn t has its parent's first t turns, byte for byte: 1,000 random trajectories."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from envs import TextEnv
from envs.games.key_door import KeyDoor
from envs.games.tic_tac_toe import TicTacToe
from envs.games.wordle import Wordle
from envs.tasks.tool_test import ToolTest
from evalkit.debug.session import Debugger
from evalkit.errors import ContextOverflow
from evalkit.play.policy import Ask, Completion
from evalkit.play.rollout import Arm, play
from evalkit.play.strategies import (
    FullHistory,
    NoHistory,
    OptimalScratchpad,
    Scratchpad,
    Strategy,
    Summary,
    Window,
)
from evalkit.record.trajectory import Key, StopReason, Trajectory
from evalkit.testing import FakePolicy, Reply

ENVS: tuple[Callable[[], TextEnv], ...] = (
    lambda: KeyDoor(size=2, max_turns=14, show_position=False),
    TicTacToe,
    Wordle,
    ToolTest,
)
STRATEGIES: tuple[tuple[Strategy, int], ...] = (
    (NoHistory(), 10**9),
    (FullHistory(overflow="error"), 10**9),
    (FullHistory(overflow="drop_oldest"), 1_400),
    (FullHistory(overflow="stop"), 1_400),
    (Window(k=2), 10**9),
    (Scratchpad(max_chars=40), 10**9),
    (Summary(k=2), 10**9),
    (OptimalScratchpad(), 10**9),
)
"""Each with the size in bytes from which on the fake model says that a prompt does not fit."""
EPISODES = 1_000


def size_of(ask: Ask) -> int:
    return sum(len(message.json) for message in ask.messages)


def babble(ask: Ask, context_bytes: int) -> Reply:
    """Answer in one of many ways, by the request's seed alone."""
    if size_of(ask) > context_bytes:
        return ContextOverflow("too long")
    rng = random.Random(ask.seed)
    acted = ask.env.format_action(rng.choice(ask.env.legal_actions()))
    text = rng.choice(
        [
            acted,
            f"<scratchpad>turn {ask.turn}: {rng.random()}</scratchpad>{acted}",
            f"<scratchpad>{'x' * rng.randrange(80)}</scratchpad>\n{acted}",
            f"<think>{rng.random()}</think>{acted}",
            f"{acted} or {acted}",
            "I do not know.",
            "",
        ]
    )
    return Completion(
        text=text,
        reasoning=rng.choice([None, None, "hm"]),
        finish_reason=rng.choice(["stop", "stop", "length"]),
        refusal=rng.random() < 0.05,
        prompt_tokens=rng.randrange(500),
    )


async def forked(arm: Arm, key: Key, rng: random.Random) -> Trajectory:
    """Play, fork at a random turn, play on; compare every prompt and every turn."""
    first = FakePolicy(lambda ask: babble(ask, limit_of(arm)))
    whole = await play(replace(arm, policy=first), key)
    parent = Trajectory.from_json(whole.to_json())
    sent = {ask.turn: [message.json for message in ask.messages] for ask in first.asked}
    turn = rng.randrange(len(parent.turns)) if parent.turns else 0
    live = FakePolicy(lambda ask: babble(ask, limit_of(arm)))
    debugger = Debugger(replace(arm, policy=live), key, recorded=parent.turns)
    for number in range(turn):
        await debugger.ask()
        assert [message.json for message in debugger.prompt()] == sent[number]
        await debugger.step()
    assert debugger.turns == parent.turns[:turn]
    assert live.asked == []
    debugger.leave_record()
    assert await debugger.finish() == whole
    for ask in live.asked:
        if size_of(ask) <= limit_of(arm):
            assert [message.json for message in ask.messages] == sent[ask.turn]
    return whole


def limit_of(arm: Arm) -> int:
    return next(size for strategy, size in STRATEGIES if strategy == arm.strategy)


@pytest.mark.parametrize("part", range(4))
def test_a_fork_replays_its_parent_to_the_byte(part: int) -> None:
    async def all_of_them() -> list[Trajectory]:
        rng = random.Random(part)
        played = []
        for number in range(EPISODES // 4):
            arm = Arm(
                name="A",
                policy=FakePolicy(lambda _: ""),
                strategy=STRATEGIES[number % len(STRATEGIES)][0],
                make_env=ENVS[part],
                run_id="run",
                run_seed=number,
                keep_reasoning=bool(number % 3),
            )
            key = Key(env_seed=rng.randrange(10**6), repetition=number % 2, arm="A")
            played.append(await forked(arm, key, rng))
        return played

    played = asyncio.run(all_of_them())
    assert sum(len(trajectory.turns) for trajectory in played) > EPISODES // 4
    if part == 0:
        stops = {trajectory.stop_reason for trajectory in played}
        assert stops == {StopReason.TERMINATED, StopReason.TRUNCATED, StopReason.CONTEXT_OVERFLOW}
