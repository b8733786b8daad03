"""The thread that plays: in order, bounded, stoppable, and never silently dead."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from evalkit.errors import ServerLost, Unauthorized
from train.errors import GatewayLost, RolloutFailed
from train.rollouts.player import Player
from train.rollouts.rows import Group
from train.rollouts.schedule import Schedule
from train.rollouts.worker import Interrupted, RolloutWorker


class FakePlayer(Player):
    """Plays nothing, and remembers with which version."""

    def __init__(self, fails: Callable[[int], Exception | None] = lambda _: None) -> None:
        self.fails = fails
        self.played: list[tuple[int, int]] = []
        self.replayed = 0
        self.closed = threading.Event()
        self.hangs = False

    async def play_group(self, index: int, version: int) -> Group:
        self.played.append((index, version))
        await asyncio.sleep(3600 if self.hangs else 0.001 * (5 - index % 5))
        error = self.fails(index)
        if error is not None:
            raise error
        return Group(index=index, env_seed=2**32 + index, episodes=(), started_version=version)

    async def aclose(self) -> None:
        self.closed.set()


def started(player: FakePlayer, **how: int) -> RolloutWorker:
    settings: dict[str, Any] = {
        "groups_per_step": 2,
        "max_staleness": 1,
        "publish_every": 1,
        "steps": 4,
    }

    async def connect() -> Player:
        return player

    worker = RolloutWorker(Schedule(**(settings | how)), connect)
    worker.published(0, 3)
    worker.start()
    return worker


def test_steps_come_in_order_with_the_versions_they_were_sampled_at() -> None:
    player = FakePlayer()
    worker = started(player)
    for step in range(1, 5):
        taken = worker.take(step)
        assert [group.index for group in taken] == [2 * step - 2, 2 * step - 1]
        worker.published(step, 3 + step)
    worker.stop()
    assert player.closed.is_set()
    assert sorted(index for index, _ in player.played) == list(range(8))
    for index, version in player.played:
        step = index // 2 + 1
        live_when_trained = 3 + step - 1
        assert live_when_trained - 1 <= version <= live_when_trained


def test_stopping_cuts_short_what_is_being_played() -> None:
    player = FakePlayer()
    player.hangs = True
    worker = started(player)
    began = time.monotonic()
    while not player.played:
        time.sleep(0.001)
    worker.stop()
    assert time.monotonic() - began < 5
    assert player.closed.is_set()
    assert [t.name for t in threading.enumerate() if t.name == "rollouts"] == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RolloutFailed("the env raised"), RolloutFailed),
        (ServerLost("away"), GatewayLost),
        (Unauthorized("who are you"), RolloutFailed),
        (ZeroDivisionError("a bug"), ZeroDivisionError),
    ],
)
def test_what_ends_the_worker_is_raised_where_steps_are_taken(
    error: Exception, kind: type[Exception]
) -> None:
    player = FakePlayer(lambda index: error if index == 2 else None)
    worker = started(player)

    def two_steps() -> None:
        for step in (1, 2):
            worker.take(step)
            worker.published(step, 3 + step)

    with pytest.raises(kind, match=str(error)):
        two_steps()
    worker.stop()
    assert player.closed.is_set()


def test_a_server_that_cannot_be_connected_to_is_said() -> None:
    async def connect() -> Player:
        raise ServerLost("nobody there")

    worker = RolloutWorker(
        Schedule(groups_per_step=1, max_staleness=0, publish_every=1, steps=1), connect
    )
    worker.start()
    with pytest.raises(GatewayLost, match="nobody there"):
        worker.take(1)
    worker.stop()


def test_who_waits_for_a_step_can_be_interrupted() -> None:
    player = FakePlayer()
    player.hangs = True
    worker = started(player)
    threading.Timer(0.05, worker.interrupt).start()
    with pytest.raises(Interrupted):
        worker.take(1)
    worker.stop()
