"""A version with probes is served only where the engine computes what its trainer does."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from serve.engine.vllm import VllmAdmin
from serve.errors import EngineNotReady, ProbeFailed, SwapFailed
from serve.policies.gate import prove
from serve.policies.sync import Sync
from serve.pool.replicas import Replica, ReplicaState
from serve.wire import Probes, SwapMode

World = Any
Make = Callable[..., World]


class Request:
    """One in flight, as far as a replica knows it."""

    def replica_lost(self, reason: str) -> None:
        raise AssertionError(reason)


async def prepared(sync: Sync, replica: Replica) -> None:
    """Do what a pool does with a healthy replica."""
    replica.state = ReplicaState.SYNCING
    await sync.prepare(replica)
    replica.state = ReplicaState.READY


def run(world: World, play: Callable[[Sync], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        options.setdefault("boots", {"p": 1})
        world.store.register("p", world.boot)
        sync = Sync(world.store, world.pool, admin=world.pool.admin, **options)
        for replica in world.pool.replicas:
            await prepared(sync, replica)
        world.forget()
        async with asyncio.timeout(10):
            await play(sync)

    asyncio.run(main())


def says(replica: Replica) -> tuple[dict[int, bytes], int]:
    return replica.served["p"], replica.current["p"]


@pytest.mark.parametrize(
    ("swap", "states"),
    [
        (SwapMode.WAIT, ["r0 syncing", "r0 ready", "r0 ready"]),
        (SwapMode.KEEP, ["r0 syncing", "r0 ready", "r0 ready"]),
        (SwapMode.ABORT, ["r0 syncing", "r0 ready", "r0 ready"]),
    ],
)
def test_who_passes_goes_live_and_takes_no_request_before(
    make_world: Make, swap: SwapMode, states: list[str]
) -> None:
    world = make_world()
    seen: list[tuple[object, ...]] = []

    async def play(sync: Sync) -> None:
        complete = world.engine.on_completions

        async def on_completions(body: dict[str, Any]) -> dict[str, Any]:
            seen.append((world.replica.state.value, *says(world.replica), world.engine.label))
            return dict(await complete(body))

        world.engine.on_completions = on_completions
        world.publish_full(probes="right")
        await sync.converge("p", swap)
        proof = sync.proofs["r0"]
        assert (proof.label, proof.difference, proof.tokens) == ("p@2", 0.0, 3)
        assert world.replica.proof == ("p@2", 0.0)

    run(world, play)
    assert seen == [("syncing", {}, 0, "p@2?")] * 2
    assert says(world.replica) == ({2: b'"p"'}, 2)
    assert (world.engine.label, world.replica.reason) == ("p@2", "")
    assert world.pool.states == states


def test_requests_are_sent_there_until_the_new_weights_are_read(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        update, asked = world.engine.on_update_weights, []

        async def on_update_weights(body: dict[str, Any]) -> dict[str, Any]:
            asked.append((body["update_info"]["apply"], world.replica.state.value))
            return dict(await update(body))

        world.engine.on_update_weights = on_update_weights
        world.publish_full(probes="right")
        await sync.converge("p", SwapMode.KEEP)
        assert asked == [(False, "ready"), (True, "syncing")]

    run(world, play)


def test_who_fails_is_named_and_serves_what_it_did(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.publish_full(probes="wrong")
        await sync.converge("p", SwapMode.WAIT)
        assert world.engine.did == ["swap p@2?", "probe p", "probe p", "abort", "swap p@1"]
        # The same again comes later, another version at once.
        world.forget()
        await sync.converge("p", SwapMode.WAIT)
        assert world.engine.did == []
        assert says(world.replica)[1] == 1
        world.publish_full(probes="right")
        await sync.converge("p", SwapMode.WAIT)
        assert says(world.replica)[1] == 3

    said: list[str] = []
    world.pool.listeners.append(lambda replica: said.append(replica.reason))
    run(world, play)
    (reason,) = set(said) - {""}
    start, _, values = reason.partition(", token ")
    assert start.startswith(
        "stays at version 1: r0 does not compute p@2 as its trainer does: probe "
    )
    position, _, values = values.partition(": logprob ")
    assert position in ("1", "2")
    found, _, rest = values.partition(", expected ")
    expected, _, rest = rest.partition(" (off by ")
    off, _, tolerance = rest.partition(", ")
    assert float(off) == pytest.approx(abs(float(found) - float(expected)), rel=0.01)
    assert tolerance == "tolerance 1e-06)"


def test_what_it_goes_back_to_is_proven_too(make_world: Make) -> None:
    world = make_world()
    world.publish_full(probes="right")

    async def play(sync: Sync) -> None:
        world.publish_full(probes="wrong")
        await sync.converge("p", SwapMode.WAIT)

    run(world, play)
    assert world.engine.did == [
        *("swap p@3?", "probe p", "probe p", "abort"),
        *("swap p@2?", "probe p", "probe p"),
    ]
    assert (says(world.replica), world.engine.label) == (({2: b'"p"'}, 2), "p@2")
    assert (world.replica.is_ready, world.engine.root) == (True, str(world.path(2)))


def test_requests_that_went_on_end_before_the_old_weights_are_back(make_world: Make) -> None:
    world = make_world()
    said: list[tuple[int, int]] = []

    async def play(sync: Sync) -> None:
        world.replica.in_flight = 1

        async def on_abort_requests(body: dict[str, Any]) -> dict[str, Any]:
            asyncio.get_running_loop().call_later(0.05, finish)
            return {}

        def finish() -> None:
            said.append((world.replica.current["p"], len(world.engine.did)))
            world.replica.in_flight = 0

        world.engine.on_abort_requests = on_abort_requests
        world.publish_full(probes="wrong")
        await sync.converge("p", SwapMode.KEEP)

    run(world, play)
    assert said == [(0, 3)]
    assert world.engine.did[3:] == ["swap p@1"]
    assert says(world.replica)[1] == 1


def test_a_stale_engine_alone_is_taken_out_until_it_computes_right(make_world: Make) -> None:
    world = make_world(2)

    async def play(sync: Sync) -> None:
        world.engines[0].computes["p"] = world.engines[0].root
        world.engines[0].is_stale = True
        world.publish_full(probes="right")
        await sync.converge("p", SwapMode.WAIT)
        assert [says(replica)[1] for replica in world.pool.replicas] == [1, 2]
        assert [replica.state.value for replica in world.pool.replicas] == ["down", "ready"]
        assert "r0 does not compute p@2 as its trainer does: probe" in world.replica.reason
        with pytest.raises(ProbeFailed, match="r0 does not compute p@2"):
            await prepared(sync, world.replica)
        world.engines[0].is_stale = False
        await prepared(sync, world.replica)
        assert says(world.replica) == ({2: b'"p"'}, 2)

    run(world, play)


def test_an_engine_that_goes_on_refusing_is_to_be_renewed(make_world: Make) -> None:
    world = make_world(2)

    async def play(sync: Sync) -> None:
        world.engines[0].computes["p"] = world.engines[0].root
        world.engines[0].is_stale = True
        world.publish_full(probes="right")
        await sync.converge("p", SwapMode.WAIT)
        for renewals in (0, 1, 1, 1, 2):
            with pytest.raises(ProbeFailed):
                await prepared(sync, world.replica)
            assert len(world.pool.renewed) == renewals
        assert world.pool.renewed[0].startswith("r0: it refused 3 times: r0 does not compute p@2")

    run(world, play)


def test_where_all_refuse_all_go_on(make_world: Make) -> None:
    world = make_world(2)

    async def play(sync: Sync) -> None:
        world.publish_full(probes="wrong")
        await sync.converge("p", SwapMode.WAIT)

    run(world, play)
    for replica in world.pool.replicas:
        assert (replica.is_ready, says(replica)[1]) == (True, 1)
        assert f"{replica.id} does not compute p@2" in replica.reason
    assert world.pool.renewed == []


@pytest.mark.parametrize("label", ["default", "p@2"])
def test_who_joins_or_comes_back_is_proven(make_world: Make, label: str) -> None:
    world = make_world()
    world.publish_full(probes="right")
    world.publish_full()
    world.store.rollback("p", 2)

    async def play(sync: Sync) -> None:
        # It says that it serves p@2 or what it was started with, and computes something else.
        world.engine.label, world.engine.computes["p"] = label, "elsewhere"
        boots = label == "default"
        await prepared(sync, world.replica)
        again = ["swap p@2?", "probe p", "probe p"]
        assert world.engine.did == again if boots else ["probe p", "probe p", *again]
        assert (says(world.replica)[1], world.engine.label) == (2, "p@2")
        world.forget()
        await prepared(sync, world.replica)
        assert world.engine.did == ["probe p", "probe p"]
        # Nothing it can be given helps: it is not to serve, under no label.
        world.engine.is_stale, world.engine.computes["p"] = True, "elsewhere"
        with pytest.raises(ProbeFailed):
            await sync.prepare(world.replica)
        assert world.engine.label == "p@2?"
        assert says(world.replica) == ({}, 0)

    run(world, play)


def test_who_cannot_go_back_is_out_of_service_and_says_why(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.engine.refuse.add(str(world.boot))
        world.publish_full(probes="wrong")
        await sync.converge("p", SwapMode.WAIT)

    run(world, play)
    assert world.replica.state is ReplicaState.DOWN
    assert world.replica.reason.startswith("r0 does not compute p@2 as its trainer does: probe ")
    assert "; and it cannot go back to p@1: " in world.replica.reason
    assert "does not fit" in world.replica.reason


def test_an_engine_that_does_not_say_goes_back(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.engine.refuse.add("/v1/completions")
        world.publish_full(probes="right")
        await sync.converge("p", SwapMode.WAIT)

    run(world, play)
    assert (says(world.replica)[1], world.engine.label) == (1, "p@1")
    assert "v1/completions: 404 Not Found" in world.replica.reason


def test_an_engine_lost_in_its_probes_is_no_versions(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        async def on_completions(body: dict[str, Any]) -> dict[str, Any]:
            raise httpx.ReadError("gone")

        world.engine.on_completions = on_completions
        world.publish_full(probes="right")
        await sync.converge("p", SwapMode.WAIT)
        assert (world.replica.state, says(world.replica)) == (ReplicaState.DOWN, ({}, 0))
        with pytest.raises(EngineNotReady, match="gone"):
            await sync.prepare(world.replica)

    run(world, play)


def test_an_adapter_is_proven_before_it_is_served(make_world: Make) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.publish_lora(probes="right")
        await sync.converge("p", SwapMode.WAIT)
        assert says(world.replica) == ({1: b'"p"', 2: b'"p@2"'}, 2)
        assert world.engine.did == ["load p@2", "probe p@2", "probe p@2"]
        world.forget()
        world.publish_lora(probes="wrong")
        await sync.converge("p", SwapMode.WAIT)
        assert world.engine.did == ["load p@3", "probe p@3", "probe p@3", "unload p@3"]
        assert says(world.replica) == ({1: b'"p"', 2: b'"p@2"'}, 2)
        assert "r0 does not compute p@3 as its trainer does" in world.replica.reason
        assert world.pool.states == ["r0 ready"]
        # One that was there before a restart of the gateway is proven anew.
        world.engine.computes["p@2"] = "elsewhere"
        world.store.rollback("p", 2)
        world.forget()
        await prepared(sync, world.replica)
        probed = ["probe p@2", "probe p@2"]
        again = [*probed, "unload p@2", "load p@2", *probed]
        assert world.engine.did[: len(again)] == again

    run(world, play)


def test_adapters_come_back_with_their_base(make_world: Make) -> None:
    world = make_world()
    world.publish_lora(probes="right")
    world.publish_lora()

    async def play(sync: Sync) -> None:
        world.publish_full(probes="wrong")
        await sync.converge("p", SwapMode.KEEP)

    run(world, play)
    assert says(world.replica) == ({1: b'"p"', 2: b'"p@2"', 3: b'"p@3"'}, 3)
    assert sorted(world.engine.adapters) == ["p@2", "p@3"]
    assert world.replica.is_ready


@pytest.mark.parametrize("swap", list(SwapMode))
def test_without_probes_nothing_is_asked(make_world: Make, swap: SwapMode) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.publish_full()
        await sync.converge("p", swap)
        world.publish_lora()
        await sync.converge("p", swap)
        assert sync.proofs == {}

    run(world, play)
    assert world.engine.did == ["swap p@2", "load p@3"]


@pytest.mark.parametrize("damage", ["{}", "", '{"format": "probes/9"}', None])
def test_probes_that_cannot_be_read_let_nobody_pass(make_world: Make, damage: str | None) -> None:
    world = make_world()

    async def play(sync: Sync) -> None:
        world.publish_full(probes="right")
        file = world.path(2) / "probes.json"
        if damage is None:
            file.unlink()
        else:
            file.write_text(damage)
        await sync.converge("p", SwapMode.WAIT)

    run(world, play)
    assert (world.engine.did, says(world.replica)[1]) == ([], 1)
    assert world.replica.is_ready
    assert "probes.json" in world.replica.reason


def test_what_a_replica_uses_or_may_need_again_is_not_pruned(make_world: Make) -> None:
    world = make_world()
    request = Request()
    used: list[dict[int, str]] = []

    async def play(sync: Sync) -> None:
        sync.pinned = {"p": (9,)}
        world.publish_lora()
        await sync.converge("p", SwapMode.WAIT)
        world.replica.active.add(request)
        world.publish_lora()
        await sync.converge("p", SwapMode.WAIT)
        assert list(world.engine.adapters) == ["p@2", "p@3"]
        used.append(sync.in_use("p"))
        complete = world.engine.on_completions

        async def on_completions(body: dict[str, Any]) -> dict[str, Any]:
            used.append(sync.in_use("p"))
            return dict(await complete(body))

        world.engine.on_completions = on_completions
        world.publish_full(probes="right")
        await sync.converge("p", SwapMode.WAIT)
        used.append(sync.in_use("p"))
        assert sync.in_use("q") == {}
        pruned = world.store.prune("p", range(1, 5))
        assert pruned.versions == (2, 3)
        assert pruned.kept[4] == "'p' means it"
        assert pruned.kept[1] == f"its files are not the store's: they lie at {world.boot}"

    run(world, play, most_adapters=1)
    mine = "r0 serves it"
    assert used[0] == {1: mine, 2: mine, 3: mine, 9: "the rules name it"}
    assert used[1] == {1: mine, 3: mine, 9: "the rules name it"}
    assert used[-1] == {4: mine, 9: "the rules name it"}


class Oracle(httpx.AsyncBaseTransport):
    """Says the same logprob to each token, or whatever it was told to say."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=self.answer)


def hold(answer: str, tolerance: float) -> None:
    async def main() -> None:
        async with VllmAdmin("http://127.0.0.1:1", transport=Oracle(answer)) as engine:
            probes = Probes(tokens=((7, 8),), logprobs=((-1.0,),), tolerance=tolerance)
            proof = await prove(engine, probes, label="p@2", model="p", replica="r0")
            assert math.isclose(proof.difference, 0.25)

    asyncio.run(main())


def says_logprob(value: str) -> str:
    return f'{{"choices": [{{"prompt_logprobs": [null, {{"8": {{"logprob": {value}}}}}]}}]}}'


def test_the_tolerance_is_the_largest_difference_that_is_none() -> None:
    hold(says_logprob("-1.25"), 0.25)
    told = (
        r"r0 does not compute p@2 as its trainer does: probe 0, token 1: logprob -1.25, "
        r"expected -1 \(off by 0.25, tolerance 0.2\)"
    )
    with pytest.raises(ProbeFailed, match=told):
        hold(says_logprob("-1.25"), 0.2)


def test_what_is_no_number_never_passes() -> None:
    with pytest.raises(ProbeFailed, match="logprob nan, expected -1"):
        hold(says_logprob("NaN"), 1e300)


@pytest.mark.parametrize(
    "answer",
    [
        "<html>",
        "[]",
        '{"choices": []}',
        '{"choices": [{"prompt_logprobs": null}]}',
        '{"choices": [{"prompt_logprobs": [null]}]}',
        '{"choices": [{"prompt_logprobs": [null, {"9": {"logprob": -1.0}}]}]}',
        '{"choices": [{"prompt_logprobs": [null, {"8": {"logprob": "x"}}]}]}',
    ],
)
def test_an_answer_without_the_tokens_own_logprobs_is_none(answer: str) -> None:
    with pytest.raises(SwapFailed, match="does not say the logprobs of a prompt"):
        hold(answer, 1.0)
