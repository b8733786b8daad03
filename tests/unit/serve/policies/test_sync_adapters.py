"""LoRA versions: several at once from one engine, and never over another base than their own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve.policies.sync import Sync
from serve.pool.replicas import Replica, ReplicaState
from serve.wire import SwapMode

World = Any
Make = Callable[..., World]


class Request:
    """One in flight, as far as a replica knows it."""

    def replica_lost(self, reason: str) -> None:
        raise AssertionError(reason)


def run(world: World, play: Callable[[Sync], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        sync = Sync(world.store, world.pool, admin=world.pool.admin, boots={"p": 1}, **options)
        world.store.register("p", world.boot)
        await sync.prepare(world.replica)
        world.replica.state = ReplicaState.READY
        world.forget()
        async with asyncio.timeout(10):
            await play(sync)

    asyncio.run(main())


def says(replica: Replica) -> tuple[dict[int, bytes], int]:
    return replica.served["p"], replica.current["p"]


def test_adapters_come_beside_their_base_without_a_pause(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        for _ in range(2):
            world.publish_lora()
            world.replica.in_flight = 1
            await sync.converge("p", SwapMode.WAIT)

    run(world, play)
    assert says(world.replica) == ({1: b'"p"', 2: b'"p@2"', 3: b'"p@3"'}, 3)
    assert world.engine.adapters == {"p@2": str(world.path(2)), "p@3": str(world.path(3))}
    assert (world.engine.label, world.engine.did) == ("p@1", ["load p@2", "load p@3"])
    assert world.pool.states == ["r0 ready", "r0 ready"]


def test_only_the_newest_stay_and_the_pinned(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        sync.pinned = {"p": (2,)}
        for _ in range(4):
            world.publish_lora()
            await sync.converge("p", SwapMode.WAIT)
        assert sorted(says(world.replica)[0]) == [1, 2, 4, 5]
        sync.pinned = {}
        await sync.converge("p", SwapMode.WAIT)
        assert sorted(says(world.replica)[0]) == [1, 4, 5]
        sync.pinned = {"p": (3,)}
        await sync.converge("p", SwapMode.WAIT)

    run(world, play, most_adapters=2)
    assert sorted(says(world.replica)[0]) == [1, 3, 4, 5]
    assert sorted(world.engine.adapters) == ["p@3", "p@4", "p@5"]


def test_an_adapter_in_use_is_unloaded_after_its_last_request(make_world: Make) -> None:
    world = make_world()
    request = Request()

    async def play(sync: Sync) -> None:
        world.publish_lora()
        await sync.converge("p", SwapMode.WAIT)
        world.replica.active.add(request)
        world.publish_lora()
        await sync.converge("p", SwapMode.WAIT)
        assert sorted(says(world.replica)[0]) == [1, 3]
        # Those that came later do not keep it.
        world.replica.active.add(Request())
        async with sync:
            await asyncio.sleep(0.03)
            assert sorted(world.engine.adapters) == ["p@2", "p@3"]
            assert 2 in world.replica.leaving
            world.replica.active.remove(request)
            while "p@2" in world.engine.adapters:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    run(world, play, most_adapters=1, poll_s=0.01)
    assert world.engine.did == ["load p@2", "load p@3", "unload p@2"]
    assert 2 not in world.replica.leaving


def test_who_uses_an_adapter_is_labelled_by_it_while_its_engine_is_looked_at_anew(
    make_world: Make,
) -> None:
    world = make_world()
    said: list[list[bool]] = []

    async def play(sync: Sync) -> None:
        world.publish_lora()
        await sync.converge("p", SwapMode.WAIT)
        world.replica.active.add(Request())
        world.publish_lora()
        await sync.converge("p", SwapMode.WAIT)
        assert (sorted(says(world.replica)[0]), 2 in world.replica.leaving) == ([1, 3], True)
        cards = world.engine.cards

        def look() -> Any:
            # As the fast lane does at an answer's end: is it still what it began with?
            served, leaving = world.replica.served["p"], world.replica.leaving
            said.append([version in served or version in leaving for version in (1, 2, 3)])
            return cards()

        world.engine.cards = look
        # It did not answer its probes for a while, and is back.
        await sync.prepare(world.replica)
        look()

    run(world, play, most_adapters=1)
    assert len(said) >= 3
    assert said == [[True, True, True]] * len(said)
    assert world.engine.did == ["load p@2", "load p@3"]


def test_an_adapter_whose_base_changed_is_not_what_it_was(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.publish_lora()
        await sync.converge("p", SwapMode.WAIT)
        world.replica.active.add(Request())
        world.publish_lora()
        await sync.converge("p", SwapMode.WAIT)
        assert 2 in world.replica.leaving
        world.publish_full()
        await sync.converge("p", SwapMode.WAIT)

    run(world, play, most_adapters=1)
    assert 2 not in world.replica.leaving
    assert says(world.replica)[1] == 4


def test_an_adapter_wanted_again_before_it_left_is_not_loaded_twice(make_world: Make) -> None:
    world = make_world()
    world.replica.active.add(Request())

    async def play(sync: Sync) -> None:
        for _ in range(2):
            world.publish_lora()
            await sync.converge("p", SwapMode.WAIT)
        world.store.rollback("p", 2)
        await sync.converge("p", SwapMode.WAIT)

    run(world, play, most_adapters=1)
    assert says(world.replica) == ({1: b'"p"', 2: b'"p@2"', 3: b'"p@3"'}, 2)
    assert world.engine.did == ["load p@2", "load p@3"]


@pytest.mark.parametrize("swap", list(SwapMode))
def test_another_base_takes_its_adapters_away(make_world: Make, swap: SwapMode) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.publish_lora()
        await sync.converge("p", swap)
        world.publish_full()
        world.forget()
        await sync.converge("p", swap)
        assert says(world.replica) == ({3: b'"p"'}, 3)
        # An adapter's requests must not go on over another base, whatever was asked for.
        assert world.pool.states[0] == "r0 syncing"
        world.publish_lora()
        await sync.converge("p", swap)
        assert says(world.replica) == ({3: b'"p"', 4: b'"p@4"'}, 4)
        world.store.rollback("p", 2)
        await sync.converge("p", swap)

    run(world, play)
    assert says(world.replica) == ({1: b'"p"', 2: b'"p@2"'}, 2)
    assert world.engine.did == [
        *("swap p@3", "unload p@2", "load p@4", "swap p@1", "unload p@4", "load p@2")
    ]


def test_an_engine_that_already_has_adapters_keeps_the_right_ones(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        for _ in range(2):
            world.publish_lora()
        await sync.converge("p", SwapMode.WAIT)
        world.engine.adapters |= {"p@3": "/elsewhere", "p@9": "/gone", "other": "/x", "q@1": "/y"}
        world.forget()
        # A gateway that was restarted looks at it again.
        await sync.prepare(world.replica)

    run(world, play)
    assert world.engine.did == ["unload p@3", "unload p@9", "load p@3"]
    assert says(world.replica) == ({1: b'"p"', 2: b'"p@2"', 3: b'"p@3"'}, 3)


def test_an_engine_without_adapters_stays_where_it_is(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.engine.refuse.add("/v1/load_lora_adapter")
        world.publish_lora()
        await sync.converge("p", SwapMode.WAIT)

    run(world, play)
    assert says(world.replica) == ({1: b'"p"'}, 1)
    assert "stays at version 1: " in world.replica.reason


def test_an_old_adapter_that_fails_does_not_hold_the_newest_up(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.publish_lora()
        world.engine.refuse.add(str(world.path(2)))
        world.publish_lora()
        await sync.converge("p", SwapMode.WAIT)

    run(world, play)
    assert says(world.replica) == ({1: b'"p"', 3: b'"p@3"'}, 3)
