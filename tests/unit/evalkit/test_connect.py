"""From a model's spec to a policy that answers; baselines that need no server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from envs.games.key_door import KeyDoor
from evalkit.config import RunConfig
from evalkit.connect import baseline, choose_model, connect, probe
from evalkit.errors import BadConfig, Unauthorized, Unreachable
from evalkit.play.baselines import HumanPolicy, NoopPolicy, RandomPolicy, ScriptPolicy
from evalkit.play.policy import Ask
from evalkit.play.strategies import Message
from evalkit.specs import parse_model
from evalkit.testing import FakeServer


def ask(turn: int = 0, session: str = "s", seed: int = 0) -> Ask:
    env = KeyDoor(size=2)
    observation, _ = env.reset(seed=7)
    messages = (Message("system", "RULES"), Message("user", observation))
    return Ask(session_id=session, turn=turn, seed=seed, messages=messages, prompt="", env=env)


def test_a_server_that_is_starting_is_waited_for() -> None:
    slept: list[float] = []
    with FakeServer(lambda _: "", (503, {})) as server:

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 7:
                server.models = [{"id": "late", "max_model_len": 512}]

        models, version = asyncio.run(probe(f"{server.url}/v1", {}, wait_s=60.0, sleep=sleep))
    assert models == {"late": {"id": "late", "max_model_len": 512}}
    assert version == ""
    assert slept == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_server_that_does_not_start_is_unreachable() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    with (
        FakeServer(lambda _: "", (503, {"error": {"message": "loading"}})) as server,
        pytest.raises(Unreachable, match="HTTP 503: loading"),
    ):
        asyncio.run(probe(f"{server.url}/v1", {}, wait_s=3.0, sleep=sleep))
    assert sum(slept) == 3.5


def test_a_refused_key_is_not_waited_for() -> None:
    with FakeServer(lambda _: "", (401, {})) as server, pytest.raises(Unauthorized):
        asyncio.run(probe(f"{server.url}/v1", {}, wait_s=60.0))


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("http://h", ("base", None)),
        ("http://h#base", ("base", None)),
        ("http://h#base@7", ("base@7", None)),
    ],
)
def test_a_model_is_chosen(text: str, chosen: tuple[str, int | None]) -> None:
    assert choose_model(parse_model(text), {"base": {"id": "base"}}) == chosen


def test_versions_of_the_only_model_are_no_choice() -> None:
    models = {"m@1": {"max_model_len": 1}, "m": {"max_model_len": 4096}, "m@2": {}}
    assert choose_model(parse_model("http://h"), models) == ("m", 4096)


def test_a_server_without_a_list_is_believed() -> None:
    assert choose_model(parse_model("http://h#anything"), None) == ("anything", None)


def test_the_context_length_is_known_where_the_server_says_it() -> None:
    models: dict[str, dict[str, Any]] = {
        "m": {"max_model_len": 4096},
        "n": {"max_model_len": "long"},
    }
    assert choose_model(parse_model("http://h#m"), models) == ("m", 4096)
    assert choose_model(parse_model("http://h#n"), models) == ("n", None)


def test_what_is_known_of_a_server_is_described() -> None:
    with FakeServer(lambda _: "", [{"id": "m", "max_model_len": 4096}]) as server:
        config = RunConfig.read({"model": server.url, "env": "key_door"})

        async def described() -> dict[str, object]:
            found = await connect("A", config.models()[0][1], config)
            async with found.policy:
                return {**found.described(), "host": found.host}

        assert asyncio.run(described()) == {
            "model": "m",
            "base_url": f"{server.url}/v1",
            "server_version": "",
            "max_model_len": 4096,
            "host": "127.0.0.1",
        }


def test_baselines_by_name(tmp_path: Path) -> None:
    script = tmp_path / "replies.txt"
    script.write_text("one\ntwo\n")
    kinds = {
        target: type(baseline(target)).__name__
        for target in ("random", "oracle", "noop", "human", f"script:{script}")
    }
    assert list(kinds.values()) == [
        "RandomPolicy", "OraclePolicy", "NoopPolicy", "HumanPolicy", "ScriptPolicy",
    ]  # fmt: skip


def test_random_play_follows_the_requests_seed_and_the_rules() -> None:
    said = [asyncio.run(RandomPolicy().complete(ask(seed=seed))).text for seed in range(50)]
    assert said == [asyncio.run(RandomPolicy().complete(ask(seed=seed))).text for seed in range(50)]
    actions = {f"<action>{action}</action>" for action in ask().env.legal_actions()}
    assert set(said) == actions


def test_noop_says_nothing() -> None:
    assert asyncio.run(NoopPolicy().complete(ask())).text == ""


@pytest.mark.parametrize(
    ("name", "data", "replies"),
    [
        ("a.txt", "one\n\nthree", ["one", "", "three", "", ""]),
        ("a.jsonl", '"one\\ntwo"\n"é"\n', ["one\ntwo", "é", "", "", ""]),
        ("a.txt", "", ["", "", "", "", ""]),
    ],
)
def test_scripts(tmp_path: Path, name: str, data: str, replies: list[str]) -> None:
    (tmp_path / name).write_text(data)
    policy = ScriptPolicy.read(tmp_path / name)
    assert [asyncio.run(policy.complete(ask(turn))).text for turn in range(5)] == replies


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", None, "No such file"),
        ("a.txt", b"\xff", "utf-8"),
        ("a.jsonl", b'"one"\ntwo\n', ":2: not JSON"),
        ("a.jsonl", b"[1]\n", ":1: expected a JSON string"),
    ],
)
def test_scripts_are_refused(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(BadConfig, match=message):
        ScriptPolicy.read(tmp_path / name)


def test_a_human_sees_the_rules_once_and_may_type_bare_actions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed = iter([" UP ", "I say <action>down</action>", "fly"])
    policy = HumanPolicy(lambda prompt: f"{next(typed)}")
    said = [asyncio.run(policy.complete(ask(turn))).text for turn in range(3)]
    assert said == ["<action>up</action>", "I say <action>down</action>", "fly"]
    shown = capsys.readouterr().out
    assert (shown.count("RULES"), shown.count("You are at")) == (1, 3)


def test_a_server_that_is_absent_is_waited_for_only_when_asked() -> None:
    with FakeServer(lambda _: "hello") as server:
        url = f"{server.url}/v1"
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)

    with pytest.raises(Unreachable, match="nothing answers"):
        asyncio.run(probe(url, {}, wait_s=60.0, sleep=sleep))
    assert naps == []
    with pytest.raises(Unreachable, match="nothing answers"):
        asyncio.run(probe(url, {}, wait_s=60.0, absent_s=3.0, sleep=sleep))
    assert naps == [0.5, 1.0, 2.0]
