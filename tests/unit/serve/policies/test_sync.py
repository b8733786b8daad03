"""Replicas come to the pointer, one after the other, and say truthfully what they serve."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from serve.errors import EngineNotReady, SwapFailed
from serve.policies.store import PolicyStore
from serve.policies.sync import Sync
from serve.pool.replicas import Replica, ReplicaState
from serve.wire import SwapMode

World = Any
Make = Callable[..., World]


async def prepared(sync: Sync, replica: Replica) -> None:
    """Do what a pool does with a healthy replica."""
    replica.state = ReplicaState.SYNCING
    await sync.prepare(replica)
    replica.state = ReplicaState.READY


def run(world: World, play: Callable[[Sync], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        sync = Sync(world.store, world.pool, admin=world.pool.admin, **options)
        for replica in world.pool.replicas:
            await prepared(sync, replica)
        world.forget()
        async with asyncio.timeout(10):
            await play(sync)

    asyncio.run(main())


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def says(replica: Replica) -> tuple[Mapping[int, bytes], int]:
    return replica.served["p"], replica.current["p"]


def test_a_fresh_engine_serves_the_version_it_was_started_with(make_world: Make) -> None:
    world = make_world()
    run(world, lambda sync: sync.converge("p", SwapMode.WAIT))
    assert says(world.replica) == ({1: b'"p"'}, 1)
    assert (world.engine.label, world.engine.did) == ("p@1", [])


def test_a_fresh_engine_is_brought_to_the_latest_before_it_is_ready(make_world: Make) -> None:
    world = make_world()
    world.publish_full()

    async def play(sync: Sync) -> None:
        assert says(world.replica) == ({2: b'"p"'}, 2)
        assert world.engine.label == "p@2"
        # Restarted, it begins at version 1 again.
        world.engine.label, world.engine.root = "default", "/boot"
        await prepared(sync, world.replica)
        assert (world.engine.label, world.engine.root) == ("p@2", str(world.path(2)))

    run(world, play, boots={"p": 1})


@pytest.mark.parametrize("label", ["changing", "q@1", "p", "p@77"])
def test_an_engine_whose_weights_nobody_knows_gets_them_anew(make_world: Make, label: str) -> None:
    world = make_world()
    world.store.register("p", world.boot)
    world.engine.label, world.engine.is_paused = label, True
    world.engine.adapters["p@9"] = "/gone"
    run(world, lambda sync: sync.converge("p", SwapMode.WAIT), boots={"p": 1})
    assert says(world.replica) == ({1: b'"p"'}, 1)
    assert (world.engine.label, world.engine.root) == ("p@1", str(world.path(1)))
    assert (world.engine.is_paused, world.engine.adapters) == (False, {})


def test_a_swap_waits_for_requests_and_takes_no_new_ones(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.replica.in_flight = 1
        world.publish_full()
        going = asyncio.create_task(sync.converge("p", SwapMode.WAIT))
        await until(lambda: world.replica.state is ReplicaState.SYNCING)
        await asyncio.sleep(0.02)
        assert (world.engine.did, says(world.replica)[1]) == ([], 1)
        world.replica.in_flight = 0
        await going
        assert says(world.replica) == ({2: b'"p"'}, 2)

    run(world, play)
    assert world.engine.did == ["swap p@2"]
    assert world.pool.states == ["r0 syncing", "r0 ready", "r0 ready"]


def test_who_takes_too_long_goes_on_with_the_new_weights(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.replica.in_flight = 1
        world.publish_full()
        await sync.converge("p", SwapMode.WAIT)

    run(world, play, drain_timeout_s=0.01)
    assert says(world.replica)[1] == 2


@pytest.mark.parametrize(
    ("swap", "states"),
    [
        (SwapMode.KEEP, ["r0 ready"]),
        (SwapMode.ABORT, ["r0 syncing", "r0 ready", "r0 ready"]),
    ],
)
def test_a_swap_that_does_not_wait(make_world: Make, swap: SwapMode, states: list[str]) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.replica.in_flight = 1
        world.publish_full()
        await sync.converge("p", swap)

    run(world, play)
    assert (says(world.replica)[1], world.pool.states) == (2, states)


def test_the_new_version_is_said_before_the_engine_goes_on(make_world: Make) -> None:
    world = make_world()
    said: list[tuple[int, bool]] = []

    async def play(sync: Sync) -> None:
        resume = world.engine.on_resume

        async def on_resume(body: dict[str, Any]) -> dict[str, Any]:
            said.append((world.replica.current["p"], world.engine.is_paused))
            return dict(await resume(body))

        world.engine.on_resume = on_resume
        world.publish_full()
        await sync.converge("p", SwapMode.KEEP)

    run(world, play)
    assert said == [(2, True)]


def test_replicas_change_one_after_the_other(make_world: Make) -> None:
    world = make_world(3)

    async def play(sync: Sync) -> None:
        world.publish_full()
        await sync.converge("p", SwapMode.WAIT)

    run(world, play)
    assert [says(replica)[1] for replica in world.pool.replicas] == [2, 2, 2]
    out = [state for state in world.pool.states if state.endswith("syncing")]
    assert out == ["r0 syncing", "r1 syncing", "r2 syncing"]
    for earlier, later in (("r0 ready", "r1 syncing"), ("r1 ready", "r2 syncing")):
        assert world.pool.states.index(earlier) < world.pool.states.index(later)


def test_what_is_published_during_a_roll_is_taken_up_by_the_rest(make_world: Make) -> None:
    world = make_world(2)

    async def play(sync: Sync) -> None:
        world.engines[0].hold = asyncio.Event()
        world.publish_full()
        going = asyncio.create_task(sync.converge("p", SwapMode.WAIT))
        await until(lambda: world.engines[0].label == "changing")
        world.publish_full()
        world.engines[0].hold.set()
        await going
        assert [says(replica)[1] for replica in world.pool.replicas] == [2, 3]
        await sync.converge("p", SwapMode.WAIT)

    run(world, play)
    assert [engine.did for engine in world.engines] == [["swap p@2", "swap p@3"], ["swap p@3"]]


def test_a_rollback_is_followed(make_world: Make) -> None:
    world = make_world()
    world.publish_full()

    async def play(sync: Sync) -> None:
        world.store.rollback("p", 1)
        await sync.converge("p", SwapMode.WAIT)

    run(world, play, boots={"p": 1})
    assert says(world.replica) == ({1: b'"p"'}, 1)
    assert world.engine.did == ["swap p@1"]


def test_a_version_that_all_refuse_leaves_all_as_they_were(make_world: Make) -> None:
    world = make_world(2)

    async def play(sync: Sync) -> None:
        for engine in world.engines:
            engine.refuse.add(str(world.store.root / "p" / "000002"))
        world.publish_full()
        await sync.converge("p", SwapMode.WAIT)
        for replica, engine in zip(world.pool.replicas, world.engines, strict=True):
            assert (says(replica)[1], replica.is_ready, engine.label) == (1, True, "p@1")
            assert "stays at version 1: " in replica.reason
            assert "does not fit" in replica.reason
            engine.refuse.clear()
            engine.did.clear()
        # It is asked again after a while, not at once.
        await sync.converge("p", SwapMode.WAIT)
        assert [engine.did for engine in world.engines] == [[], []]
        # A restarted one serves what the others do rather than nothing.
        world.engines[0].refuse.add(str(world.path(2)))
        world.engines[0].label = "default"
        await prepared(sync, world.replica)
        assert says(world.replica)[1] == 1

    run(world, play, boots={"p": 1})


def test_who_alone_refuses_is_taken_out(make_world: Make) -> None:
    world = make_world(3)

    async def play(sync: Sync) -> None:
        world.engines[1].refuse.add(str(world.store.root / "p" / "000002"))
        world.publish_full()
        await sync.converge("p", SwapMode.WAIT)
        states = [replica.state.value for replica in world.pool.replicas]
        assert states == ["ready", "down", "ready"]
        assert "does not fit" in world.pool.replicas[1].reason
        with pytest.raises(SwapFailed, match="does not fit"):
            await prepared(sync, world.pool.replicas[1])
        world.engines[1].refuse.clear()
        await prepared(sync, world.pool.replicas[1])
        assert says(world.pool.replicas[1])[1] == 2

    run(world, play)


def test_a_replica_that_is_lost_in_a_swap_never_looks_ready(make_world: Make) -> None:
    world = make_world(2)

    async def play(sync: Sync) -> None:
        world.engine.hold = asyncio.Event()
        world.publish_full()
        going = asyncio.create_task(sync.converge("p", SwapMode.WAIT))
        await until(lambda: world.engine.label == "changing")
        world.engine.refuse |= {"/finish_weight_update", "/resume"}
        world.engine.hold.set()
        await going

    run(world, play)
    assert world.pool.states[:2] == ["r0 syncing", "r0 down"]
    assert [says(replica)[1] for replica in world.pool.replicas] == [1, 2]


def test_a_label_that_is_not_the_expected_one_is_quarantined(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        async def on_finish(body: dict[str, Any]) -> dict[str, Any]:
            world.engine.label = "p@9"
            return {}

        world.engine.on_finish_weight_update = on_finish
        world.publish_full()
        await sync.converge("p", SwapMode.WAIT)

    run(world, play)
    assert world.replica.state is ReplicaState.DOWN
    assert world.replica.reason == "it says it serves p@9 after a swap to p@2"


def test_files_that_were_changed_since_are_not_served(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.publish_full()
        (world.path(2) / "config.json").write_text("{}")
        await sync.converge("p", SwapMode.WAIT)

    run(world, play)
    assert "has been changed since it was published" in world.replica.reason
    assert (world.engine.did, says(world.replica)[1]) == ([], 1)


def test_an_engine_that_cannot_be_reached_is_taken_out(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.engine.is_reachable = False
        world.publish_full()
        await sync.converge("p", SwapMode.WAIT)
        assert world.replica.state is ReplicaState.DOWN
        with pytest.raises(EngineNotReady, match="connection refused"):
            await sync.prepare(world.replica)

    run(world, play)


def test_an_upstream_that_is_not_ours_serves_version_1_whatever_is_published(
    make_world: Make,
) -> None:
    world = make_world(is_swappable=False)

    async def play(sync: Sync) -> None:
        assert says(world.replica) == ({1: b'"p"'}, 1)
        assert world.store.info("p", 1).path == world.boot
        world.publish_full()
        async with sync:
            await until(lambda: world.replica.reason)

    run(world, play, poll_s=0.01)
    assert world.replica.reason == "its weights cannot be changed to p@2"
    assert (says(world.replica)[1], world.replica.is_ready) == (1, True)


def test_models_that_cannot_be_addressed_are_left_out(make_world: Make) -> None:
    world = make_world(is_swappable=False, name="llama 7b")
    world.engine.adapters["q"] = "nowhere"
    world.engine.cards = lambda: [{"id": "llama 7b"}, {"id": "q"}, {"id": "r", "root": "hub/r"}]
    run(world, lambda sync: sync.converge("p", SwapMode.WAIT))
    assert world.replica.served == {"q": {1: b'"q"'}, "r": {1: b'"r"'}}
    assert world.store.policies() == ("q", "r")
    assert world.store.info("q", 1).path is None


def test_the_pointer_is_followed_without_being_told(make_world: Make, tmp_path: Path) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        async with sync:
            PolicyStore(world.store.root).publish("p", world.full())
            await until(lambda: says(world.replica)[1] == 2)
            pointer = world.store.root / "p" / "latest"
            good = pointer.read_bytes()
            pointer.write_text("torn")
            await asyncio.sleep(0.05)
            pointer.write_bytes(good)
            world.store.rollback("p", 1)
            await until(lambda: says(world.replica)[1] == 1)

    run(world, play, poll_s=0.01)
