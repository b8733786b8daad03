"""The routes that change a FakeEngine's weights, asked as the gateway asks vLLM's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.engine.vllm import ServedModel, VllmAdmin
from serve.errors import BadCheckpoint, SwapFailed
from serve.testing import FakeEngine, Faults
from serve.testing.generation import prompt_logprobs
from serve.wire import SwapMode
from tests.unit.serve.testing import checkpoints

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
Talk = Callable[[FakeEngine, httpx.AsyncClient, VllmAdmin], Awaitable[Any]]


def play(talk: Talk, **how: Any) -> Any:
    """Run an engine in dev mode, a client of it and its administrator."""

    async def run() -> Any:
        async with (
            FakeEngine(**{"dev_mode": True, "versioned_reply": True} | how) as engine,
            httpx.AsyncClient(base_url=engine.root_url, timeout=10) as client,
            VllmAdmin(engine.root_url) as admin,
        ):
            return await talk(engine, client, admin)

    return asyncio.run(run())


async def ask(client: httpx.AsyncClient, **fields: Any) -> tuple[str, str]:
    """Return what is said and why it ended."""
    answer = await client.post("/v1/chat/completions", json=BODY | fields)
    choice = answer.raise_for_status().json()["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


async def stream(client: httpx.AsyncClient, **fields: Any) -> tuple[str, str]:
    """Return the same of a stream."""
    body = BODY | {"stream": True} | fields
    raw = (await client.post("/v1/chat/completions", json=body)).raise_for_status().text
    *events, done = raw.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert {choice["finish_reason"] for choice in choices[:-1]} <= {None}
    said = "".join(choice["delta"]["content"] for choice in choices)
    return said, choices[-1]["finish_reason"]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  # what a server counts has no event
            await asyncio.sleep(0.001)


def test_without_dev_mode_there_is_no_such_route() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient, admin: VllmAdmin) -> set[int]:
        assert await admin.weight_info() is None
        gets = ["/weight_info", "/is_paused"]
        posts = "update_weight_version pause resume init_weight_transfer_engine update_weights"
        posts += " start_weight_update finish_weight_update reset_prefix_cache"
        posts += " v1/load_lora_adapter v1/unload_lora_adapter"
        answers = [await client.get(path) for path in gets]
        answers += [await client.post(f"/{path}", json={}) for path in posts.split()]
        return {answer.status_code for answer in answers}

    assert play(talk, dev_mode=False) == {404}


def test_weights_are_swapped_and_labelled(tmp_path: Path) -> None:
    first, second = (checkpoints.full(tmp_path / str(seed), seed) for seed in (1, 2))

    async def talk(engine: FakeEngine, client: httpx.AsyncClient, admin: VllmAdmin) -> list[Any]:
        seen = [await admin.weight_info(), (await ask(client))[0]]
        await admin.label_weights("fake@1")
        for label, folder in (("fake@2", "1"), ("fake@3", "2")):
            await admin.swap_weights(str(tmp_path / folder), label, SwapMode.KEEP)
            seen += [await admin.weight_info(), (await ask(client))[0]]
        return [*seen, (await admin.models())[0].root]

    seen = play(talk)
    assert seen == [
        *("default", "weights boot"),
        *("fake@2", f"weights {first}"),
        *("fake@3", f"weights {second}", str(tmp_path / "2")),
    ]


def test_what_it_was_started_with_has_a_name_and_a_place(tmp_path: Path) -> None:
    name = checkpoints.full(tmp_path / "boot", 0)

    async def talk(engine: FakeEngine, client: httpx.AsyncClient, admin: VllmAdmin) -> Any:
        return await ask(client, max_tokens=3), await admin.models()

    assert play(talk, root=tmp_path / "boot") == (
        (f"weights {name} {name}", "stop"),
        (ServedModel(name="fake", root=str(tmp_path / "boot"), max_model_len=32_768),),
    )
    with pytest.raises(BadCheckpoint):
        FakeEngine(root=tmp_path)


@pytest.mark.parametrize("broken", ["missing", "cut", "other_shapes"])
def test_a_bad_folder_leaves_the_old_weights(tmp_path: Path, broken: str) -> None:
    name = checkpoints.full(tmp_path / "boot", 0)
    folder = tmp_path / "new"
    if broken != "missing":
        checkpoints.full(folder, 1, width=4 if broken == "cut" else 5)
    if broken == "cut":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])

    async def talk(engine: FakeEngine, client: httpx.AsyncClient, admin: VllmAdmin) -> Any:
        with pytest.raises(SwapFailed, match=": 500 "):
            await admin.swap_weights(str(folder), "fake@2", SwapMode.KEEP)
        return await admin.weight_info(), (await ask(client))[0]

    assert play(talk, root=tmp_path / "boot") == ("default", f"weights {name}")


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("update_weights", {"update_info": {"path": "x"}}, 500, "InternalServerError"),
        ("finish_weight_update", {}, 500, "InternalServerError"),
        ("update_weights", {}, 400, "Bad Request"),
        ("update_weight_version", {"new_version": 3}, 400, "Bad Request"),
        ("init_weight_transfer_engine", {}, 400, "Bad Request"),
        ("pause?mode=never", {}, 400, "Bad Request"),
        ("v1/load_lora_adapter", {"lora_name": "fake", "lora_path": "x"}, 400, "InvalidUserInput"),
        ("v1/load_lora_adapter", {"lora_name": "a", "lora_path": "x"}, 404, "NotFoundError"),
        ("v1/unload_lora_adapter", {"lora_name": "a"}, 404, "NotFoundError"),
    ],
)
def test_what_is_refused(path: str, body: dict[str, Any], status: int, kind: str) -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient, admin: VllmAdmin) -> Any:
        answer = await client.post(f"/{path}", json=body)
        assert (await client.get("/pause")).status_code == 405
        return answer.status_code, answer.json()["error"]["type"]

    assert play(talk) == (status, kind)


def test_adapters_are_models_with_weights_of_their_own(tmp_path: Path) -> None:
    names = {f"fake@{seed}": checkpoints.lora(tmp_path / str(seed), seed) for seed in (2, 3)}

    async def talk(engine: FakeEngine, client: httpx.AsyncClient, admin: VllmAdmin) -> None:
        for seed in (2, 3):
            await admin.load_lora(f"fake@{seed}", str(tmp_path / str(seed)))
        with pytest.raises(SwapFailed, match="has already been loaded"):
            await admin.load_lora("fake@2", str(tmp_path / "2"))
        assert [(model.name, model.parent) for model in await admin.models()] == [
            *(("fake", None), ("fake@2", "fake"), ("fake@3", "fake"))
        ]
        for model, name in {"fake": "boot", **names}.items():
            assert (await ask(client, model=model))[0] == f"weights {name}"
        await admin.unload_lora("fake@2")
        answer = await client.post("/v1/chat/completions", json=BODY | {"model": "fake@2"})
        assert answer.status_code == 404

    play(talk)


@pytest.mark.parametrize("how", [ask, stream], ids=["json", "stream"])
def test_kept_requests_go_on_with_the_new_weights(tmp_path: Path, how: Any) -> None:
    name = checkpoints.full(tmp_path / "new", 1)

    async def talk(engine: FakeEngine, client: httpx.AsyncClient, admin: VllmAdmin) -> str:
        asked = asyncio.create_task(how(client, max_tokens=40))
        await until(lambda: engine.stats.tokens_made >= 3)
        await admin.swap_weights(str(tmp_path / "new"), "fake@2", SwapMode.KEEP)
        said, why = await asked
        assert why == "stop"
        return str(said)

    said = play(talk, itl_s=0.01)
    words = said.split()
    assert (len(words), words[1], words[-1]) == (40, "boot", name)
    assert words == ["weights", *sorted(words[1:], key=["boot", name].index)]


@pytest.mark.parametrize("how", [ask, stream], ids=["json", "stream"])
def test_aborted_requests_end_with_what_they_have(how: Any) -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient, admin: VllmAdmin) -> Any:
        asked = asyncio.create_task(how(client, max_tokens=1000))
        await until(lambda: engine.stats.tokens_made >= 2)
        await client.post("/pause?mode=abort")
        said, why = await asked
        made = engine.stats.tokens_made
        await client.post("/resume")
        return said.split() == ["weights", *["boot"] * (made - 1)], why, engine.stats.in_flight

    assert play(talk, itl_s=0.01) == (True, "abort", 0)


def test_a_waiting_pause_is_one_when_the_running_are_done() -> None:
    async def talk(engine: FakeEngine, client: httpx.AsyncClient, admin: VllmAdmin) -> None:
        early = asyncio.create_task(ask(client, max_tokens=10))
        await until(lambda: engine.stats.tokens_made >= 2)
        pause = asyncio.create_task(client.post("/pause?mode=wait"))
        while not (await client.get("/is_paused")).json()["is_paused"]:
            pass
        late = asyncio.create_task(ask(client, max_tokens=2))
        assert (await pause).json() == {"status": "paused"}
        assert early.done() or (await early)[1] == "stop"
        await until(lambda: engine.stats.requests == 2)
        assert engine.stats.tokens_made == 10
        assert (await admin.metrics())["waiting"] == 1
        await admin.resume()
        assert (await late)[0] == "weights boot"

    play(talk, itl_s=0.01)


@pytest.mark.parametrize("mode", ["abort", "keep", "wait"])
def test_what_comes_during_a_pause_waits_for_its_end(tmp_path: Path, mode: str) -> None:
    name = checkpoints.full(tmp_path / "new", 1)

    async def talk(engine: FakeEngine, client: httpx.AsyncClient, admin: VllmAdmin) -> str:
        await client.post(f"/pause?mode={mode}")
        late = asyncio.create_task(ask(client))
        await until(lambda: engine.stats.in_flight == 1)
        await client.post("/start_weight_update")
        for apply in (False, True):
            update = {"path": str(tmp_path / "new"), "apply": apply}
            answer = await client.post("/update_weights", json={"update_info": update})
            assert answer.json() == {"message": "Weights updated"}
        await client.post("/finish_weight_update", json={"weight_version": "fake@2"})
        assert not late.done()
        await client.post("/resume")
        return (await late)[0]

    assert play(talk) == f"weights {name}"


def test_prompt_logprobs_are_those_of_the_weights(tmp_path: Path) -> None:
    for seed in (1, 2):
        checkpoints.full(tmp_path / str(seed), seed)
    checkpoints.lora(tmp_path / "3", 3)
    tokens = [5, 7, 5, 9]

    async def talk(engine: FakeEngine, client: httpx.AsyncClient, admin: VllmAdmin) -> None:
        seen = [await admin.prompt_logprobs("fake", tokens)]
        for folder in ("1", "2", "1"):
            await admin.swap_weights(str(tmp_path / folder), f"fake@{folder}", SwapMode.KEEP)
            seen.append(await admin.prompt_logprobs("fake", tokens))
            expected = prompt_logprobs(engine.served.base, tokens)
            assert seen[-1] == tuple(expected)
        await admin.load_lora("fake@3", str(tmp_path / "3"))
        seen.append(await admin.prompt_logprobs("fake@3", tokens))
        assert seen[1] == seen[3]
        assert len(set(seen)) == 4
        assert seen[3][:2] == await admin.prompt_logprobs("fake", tokens[:3])
        assert all(-2 <= value < 0 for each in seen for value in each)
        with pytest.raises(SwapFailed, match="404"):
            await admin.prompt_logprobs("other", tokens)

    play(talk)


def test_stale_weights_are_labelled_and_do_not_answer(tmp_path: Path) -> None:
    checkpoints.full(tmp_path / "1", 1)
    checkpoints.lora(tmp_path / "2", 2)

    async def talk(engine: FakeEngine, client: httpx.AsyncClient, admin: VllmAdmin) -> None:
        before = await admin.prompt_logprobs("fake", [5, 7])
        await admin.swap_weights(str(tmp_path / "1"), "fake@1", SwapMode.KEEP)
        await admin.load_lora("fake@2", str(tmp_path / "2"))
        assert await admin.weight_info() == "fake@1"
        assert [model.root for model in await admin.models()] == [
            *(str(tmp_path / "1"), str(tmp_path / "2")),
        ]
        for model in ("fake", "fake@2"):
            assert await admin.prompt_logprobs(model, [5, 7]) == before
            assert (await ask(client, model=model))[0] == "weights boot"
        engine.served.is_stale = False
        await admin.swap_weights(str(tmp_path / "1"), "fake@1", SwapMode.KEEP)
        assert await admin.prompt_logprobs("fake", [5, 7]) != before

    play(talk, faults=Faults.parse(["stale_weights=1"]))
