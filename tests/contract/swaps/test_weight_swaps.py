"""Weights change under a running vLLM, whose answers are then those of transformers, exactly.

One engine with a tiny tied Llama, and one store, for the whole module; requests are sent and
labelled as the gateway does it, by what the replica says of itself.
"""

import asyncio
import dataclasses
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.config import EngineConfig
from serve.engine.command import detect, vllm_command
from serve.engine.launch import LaunchedEngine, free_port
from serve.engine.vllm import CHANGING, UNPROVEN, VllmAdmin
from serve.errors import SwapFailed
from serve.policies.link import NO_VERSION
from serve.policies.manifest import PolicyInfo
from serve.policies.store import PolicyStore
from serve.policies.sync import Sync
from serve.pool.base import Pool
from serve.pool.replicas import Replica, ReplicaState
from serve.pool.routing import Wanted, serves
from serve.wire import Probes, SwapMode

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

NAME = "tiny"
LENGTH = 24
WEIGHTS = (1, 2, 3)
ADAPTERS = ("a", "b")

MOST_TOKENS = 3900

Tiny = Any
"""Of this folder's conftest: checkpoints, prompts, and what transformers makes of them."""


class OneReplica(Pool):
    """A pool that only looks on."""

    def __init__(self, replica: Replica) -> None:
        super().__init__()
        self.replicas = [replica]

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def wake(self) -> None: ...

    def failed(self, replica: Replica, reason: str) -> None:
        replica.state, replica.reason = ReplicaState.DOWN, reason

    async def scale(self, count: int) -> None: ...


@dataclass
class Answer:
    """What came back, with the version at dispatch and at the end."""

    status: int
    prompt: int
    began: int
    ended: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""
    cached_tokens: int = 0


class World:
    """One engine behind a replica, kept at the store's pointer."""

    def __init__(self, tiny: Tiny, engine: LaunchedEngine, root: Path) -> None:
        self.tiny = tiny
        self.url = engine.root_url
        host, port = self.url.removeprefix("http://").split(":")
        self.replica = Replica("r0", host, int(port))
        self.store = PolicyStore(root)
        self.weights = {self.store.register(NAME, tiny.checkpoint(1)).version: "1"}
        self.sync = Sync(self.store, OneReplica(self.replica), boots={NAME: 1})
        self.client = httpx.AsyncClient(base_url=self.url, timeout=60)

    def publish(
        self, weights: str, *, parent: int | None = None, probes: Probes | None = None
    ) -> PolicyInfo:
        folder = self.tiny.checkpoint(weights[-1])
        info = self.store.publish(NAME, folder, parent=parent, probes=probes)
        self.weights[info.version] = weights
        return info

    async def prepare(self) -> None:
        self.replica.state = ReplicaState.SYNCING
        await self.sync.prepare(self.replica)
        self.replica.state = ReplicaState.READY

    async def serve(self, weights: str) -> int:
        """Publish and swap to full weights; return their version."""
        info = self.publish(weights)
        if self.store.latest(NAME) != info.version:
            self.store.rollback(NAME, info.version)
        await self.sync.converge(NAME, SwapMode.WAIT)
        assert self.replica.current[NAME] == info.version
        return info.version

    async def ask(self, prompt: int, version: int | None = None) -> Answer:
        while not self.replica.is_ready:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        found = serves(self.replica, Wanted(NAME, exact=version))
        assert found is not None
        body = {
            "model": json.loads(found[1]),
            "prompt": self.tiny.prompts[prompt],
            "max_tokens": LENGTH,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
        }
        self.replica.in_flight += 1
        try:
            answer = await self.client.post("/v1/completions", json=body)
        finally:
            self.replica.in_flight -= 1
        ended = found[0] if version else self.replica.current[NAME]
        if answer.status_code != 200:
            return Answer(answer.status_code, prompt, found[0], ended)
        choice, usage = answer.json()["choices"][0], answer.json()["usage"]
        return Answer(
            200,
            prompt,
            found[0],
            ended,
            choice["token_ids"],
            choice["logprobs"]["token_logprobs"],
            choice["finish_reason"],
            (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        )

    def ensure_right(self, answer: Answer) -> None:
        """Hold an answer to be, to its last token, of the version that it is labelled with."""
        ids, logprobs = self.tiny.expected[self.weights[answer.began]][answer.prompt]
        assert answer.status == 200
        assert answer.ids == ids[: len(answer.ids)]
        assert answer.logprobs == pytest.approx(logprobs[: len(answer.ids)], abs=1e-3)
        assert (len(answer.ids) == LENGTH) or answer.finish_reason == "abort"


@pytest.fixture(scope="module")
def play(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """Run a coroutine function on the module's world, in the loop that its client lives in."""
    config = EngineConfig(
        checkpoint=tiny.checkpoint(1),
        model=NAME,
        port=free_port("127.0.0.1"),
        lora=True,
    )
    command = vllm_command(config, detect())
    folder = tmp_path_factory.mktemp("swaps")
    engine = LaunchedEngine(
        dataclasses.replace(command, env={**command.env, "VLLM_CPU_KVCACHE_SPACE": "1"}),
        model=NAME,
        port=config.port,
        log=folder / "vllm.log",
    )
    with asyncio.Runner() as runner:
        runner.run(engine.start())
        try:
            runner.run(engine.wait_ready(timeout_s=240))
            world = World(tiny, engine, folder / "policies")
            runner.run(world.prepare())
            yield lambda script: runner.run(script(world))
            runner.run(world.client.aclose())
        finally:
            runner.run(engine.stop())


Play = Callable[[Callable[[World], Awaitable[None]]], None]


def test_answers_are_those_of_transformers_after_every_swap(play: Play) -> None:
    async def script(world: World) -> None:
        for weights in ("2", "3", "1", "3"):
            version = await world.serve(weights)
            for answer in await asyncio.gather(*(world.ask(prompt) for prompt in range(6))):
                assert (answer.began, answer.ended) == (version, version)
                world.ensure_right(answer)
        async with VllmAdmin(world.url) as engine:
            assert await engine.weight_info() == f"{NAME}@{version}"

    play(script)


@pytest.mark.parametrize("swap", list(SwapMode))
def test_swaps_under_load_fail_no_request_and_label_each(play: Play, swap: SwapMode) -> None:
    answers: list[Answer] = []

    async def script(world: World) -> None:
        done = asyncio.Event()

        async def client(number: int) -> None:
            while not done.is_set():
                answers.append(await world.ask((number + len(answers)) % 6))

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for number in range(6):
            world.publish(str(WEIGHTS[number % 3]))
            await world.sync.converge(NAME, swap)
            now = world.replica.current[NAME]
            while sum(answer.began == now for answer in answers) < 8:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        done.set()
        await asyncio.gather(*clients)
        assert world.replica.reason == ""
        for answer in answers:
            if answer.began == answer.ended or answer.finish_reason == "abort":
                world.ensure_right(answer)

    play(script)
    assert {answer.status for answer in answers} == {200}
    assert len({answer.began for answer in answers}) >= 6
    mixed = [answer for answer in answers if answer.began != answer.ended]
    aborted = [answer for answer in answers if answer.finish_reason == "abort"]
    if swap is not SwapMode.ABORT:
        assert bool(mixed) is (swap is SwapMode.KEEP)
        assert aborted == []


async def sample(world: World, swap: SwapMode) -> tuple[list[int], list[Any], str]:
    """Swap to the pointer under a long request; return its tokens, their labels and its end."""
    sampling = {"max_tokens": MOST_TOKENS, "temperature": 0, "ignore_eos": True}
    body = {"model": NAME, "token_ids": world.tiny.prompts[0], "sampling_params": sampling}
    chunks: list[dict[str, Any]] = []
    stream = world.client.stream("POST", "/inference/v1/generate", json=body | {"stream": True})
    async with stream as answer:
        lines = answer.aiter_lines()
        first = await anext(lines)
        await world.sync.converge(NAME, swap)
        for line in [first, *[line async for line in lines]]:
            if line.startswith("data: {"):
                chunks += json.loads(line.removeprefix("data: "))["choices"]
    ids = [token for chunk in chunks for token in chunk["token_ids"]]
    return ids, chunks[-1]["weight_versions"], chunks[-1]["finish_reason"]


@pytest.mark.parametrize("swap", [SwapMode.KEEP, SwapMode.ABORT])
def test_a_long_request_goes_on_or_ends_and_says_which_weights_made_it(
    play: Play, swap: SwapMode
) -> None:
    async def script(world: World) -> None:
        for _ in range(5):
            labels = [f"{NAME}@{await world.serve('1')}", f"{NAME}@{world.publish('2').version}"]
            ids, spans, finish_reason = await sample(world, swap)
            unchanged = min(spans[0]["end"], LENGTH)
            assert ids[:unchanged] == world.tiny.expected["1"][0][0][:unchanged]
            assert (spans[0]["start"], spans[-1]["end"]) == (0, len(ids))
            made_by = [span["version"] for span in spans]
            if len(ids) < MOST_TOKENS or len(spans) > 1:
                break
            # This process did not get a core before the engine was done: try again.
            assert (made_by, finish_reason) == (labels[:1], "length")
        if swap is SwapMode.KEEP:
            assert (made_by, len(ids)) == (labels, MOST_TOKENS)
        else:
            assert (made_by, finish_reason) == (labels[:1], "abort")
        world.ensure_right(await world.ask(0))

    play(script)


def nowhere(tiny: Tiny) -> Any:
    return tiny.folder / "nowhere"


def an_adapter(tiny: Tiny) -> Any:
    return tiny.checkpoint("a")


def cut_short(tiny: Tiny) -> Any:
    folder = tiny.folder / "cut"
    folder.mkdir()
    data = (tiny.checkpoint(1) / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    return folder


def of_another_shape(tiny: Tiny) -> Any:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tiny.folder / "shape"
    folder.mkdir()
    tensors = load_file(tiny.checkpoint(1) / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(32)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("bad", [nowhere, an_adapter, cut_short, of_another_shape])
def test_weights_that_cannot_be_taken_leave_everything_as_it_was(
    play: Play, bad: Callable[[Tiny], object]
) -> None:
    async def script(world: World) -> None:
        version = await world.serve("2")
        async with VllmAdmin(world.url) as engine:
            with pytest.raises(SwapFailed, match="update_weights: 500"):
                await engine.swap_weights(str(bad(world.tiny)), "bad", SwapMode.KEEP)
            assert await engine.weight_info() == f"{NAME}@{version}"
        for prompt in range(6):
            world.ensure_right(await world.ask(prompt))
        await world.serve("3")
        world.ensure_right(await world.ask(0))

    play(script)


def test_adapters_and_their_base_answer_at_once(play: Play) -> None:
    async def script(world: World) -> None:
        base = await world.serve("1")
        versions = [base, *(world.publish(f"1{adapter}").version for adapter in ADAPTERS)]
        await world.sync.converge(NAME, SwapMode.WAIT)
        asked = [world.ask(prompt, version) for prompt in range(6) for version in versions]
        answers = await asyncio.gather(*asked)
        for answer in answers:
            world.ensure_right(answer)
        assert len({tuple(answer.ids) for answer in answers}) == len(answers)
        assert (await world.ask(0)).began == versions[-1]
        # Another base takes them away, and the way back brings them again.
        await world.serve("2")
        world.ensure_right(await world.ask(0))
        assert list(world.replica.served[NAME]) == [world.replica.current[NAME]]
        world.store.rollback(NAME, versions[-1])
        await world.sync.converge(NAME, SwapMode.WAIT)
        for version in versions:
            world.ensure_right(await world.ask(1, version))

    play(script)


@pytest.mark.parametrize("swap", list(SwapMode))
def test_weights_that_compute_what_their_trainer_does_go_live(play: Play, swap: SwapMode) -> None:
    answers: list[Answer] = []

    async def script(world: World) -> None:
        await world.serve("1")
        done = asyncio.Event()

        async def client(number: int) -> None:
            while not done.is_set():
                answers.append(await world.ask((number + len(answers)) % 6))

        clients = [asyncio.create_task(client(number)) for number in range(4)]
        for weights in ("2", "3", "1", "1a"):
            info = world.publish(weights, probes=world.tiny.probes(weights, 1e-4))
            await world.sync.converge(NAME, swap)
            assert (world.replica.current[NAME], world.replica.reason) == (info.version, "")
            proof = world.sync.proofs["r0"]
            assert (proof.label, proof.tokens) == (info.label, 6 * (100 + LENGTH - 1))
            assert proof.difference <= 1e-4
            print(f"{info.label}: off by {proof.difference:.1e}, {proof.took_s * 1000:.0f} ms")
            world.ensure_right(await world.ask(0))
        done.set()
        await asyncio.gather(*clients)
        for answer in answers:
            if answer.began == answer.ended:
                world.ensure_right(answer)
        # Who comes anew is asked again, the adapter as well.
        await world.prepare()
        assert world.replica.current[NAME] == info.version

    play(script)
    assert {answer.status for answer in answers} == {200}


@pytest.mark.parametrize("swap", list(SwapMode))
def test_weights_that_do_not_never_go_live_and_the_old_ones_go_on(
    play: Play, swap: SwapMode
) -> None:
    answers: list[Answer] = []

    async def script(world: World) -> None:
        good = world.publish("1", probes=world.tiny.probes("1", 1e-4))
        world.store.rollback(NAME, good.version)
        await world.sync.converge(NAME, SwapMode.WAIT)
        done = asyncio.Event()

        async def client(number: int) -> None:
            while not done.is_set():
                answers.append(await world.ask((number + len(answers)) % 6))

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        bad = world.publish("2", probes=world.tiny.probes("3", 1e-4))
        await world.sync.converge(NAME, swap)
        before = len(answers)
        while len(answers) < before + 16:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        done.set()
        await asyncio.gather(*clients)
        assert (world.replica.is_ready, world.replica.current) == (True, {NAME: good.version})
        told = rf"stays at version {good.version}: r0 does not compute {bad.label} as its trainer "
        assert re.match(told + r"does: probe \d+, token \d+: logprob -", world.replica.reason)
        async with VllmAdmin(world.url) as engine:
            assert await engine.weight_info() == good.label
        for answer in answers:
            assert answer.began == good.version
            if answer.ended == good.version:
                world.ensure_right(answer)

    play(script)
    assert {answer.status for answer in answers} == {200}
    unproven = [answer for answer in answers if answer.ended != answers[0].began]
    assert {answer.ended for answer in unproven} <= {NO_VERSION}
    assert swap is SwapMode.KEEP or unproven == []


def test_a_long_request_ends_where_its_new_weights_fail(play: Play) -> None:
    async def script(world: World) -> None:
        wrong = world.tiny.probes("3", 1e-4)
        wrong = dataclasses.replace(wrong, tokens=wrong.tokens[:1], logprobs=wrong.logprobs[:1])
        for _ in range(10):
            old = f"{NAME}@{await world.serve('1')}"
            bad = world.publish("2", probes=wrong)
            ids, spans, finish_reason = await sample(world, SwapMode.KEEP)
            assert (spans[0]["version"], spans[-1]["end"]) == (old, len(ids))
            assert [span["version"] for span in spans[1:]] in ([], [f"{bad.label}{UNPROVEN}"])
            if finish_reason == "abort":
                break
        # Without a core for this process a request may be over before it is known to be wrong.
        assert (len(spans), finish_reason) == (2, "abort")

    play(script)


def test_no_prefix_is_shared_by_two_versions(play: Play) -> None:
    async def script(world: World) -> None:
        for weights in ("1", "2"):
            await world.serve(weights)
            first, second = await world.ask(2), await world.ask(2)
            assert (first.cached_tokens, second.cached_tokens) == (0, 96)
            world.ensure_right(second)
        await world.serve("1")
        for adapter in ADAPTERS:
            world.publish(f"1{adapter}")
        await world.sync.converge(NAME, SwapMode.WAIT)
        assert [
            (await world.ask(2, version)).cached_tokens
            for version in sorted(world.replica.served[NAME])
            for _ in range(2)
        ] == [0, 96] * 3

    play(script)


def test_a_gateway_that_was_killed_in_a_swap_is_cleared_up_after(play: Play) -> None:
    async def script(world: World) -> None:
        version = await world.serve("2")
        update = {"path": str(world.tiny.checkpoint(3))}
        for path, body in (
            ("/start_weight_update", {}),
            ("/update_weights", {"update_info": update}),
            ("/pause?mode=keep", {}),
            ("/update_weight_version", {"new_version": CHANGING}),
            ("/update_weights", {"update_info": update | {"apply": True}}),
        ):
            (await world.client.post(path, json=body)).raise_for_status()
        await world.prepare()
        assert world.replica.current == {NAME: version}
        world.ensure_right(await world.ask(0))

    play(script)
