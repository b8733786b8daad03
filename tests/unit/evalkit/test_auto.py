"""`-c auto` from config to tables: who shares a limit, what is said, what stays the same."""

from __future__ import annotations

import asyncio
import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import evalkit
from envs.games.key_door import KeyDoor
from evalkit.arms import open_arms
from evalkit.config import RunConfig
from evalkit.errors import BadConfig
from evalkit.testing import FakePolicy, FakeServer

ACTIONS = ("up", "interact", "left", "fly")
SMALL: dict[str, Any] = {"env_args": {"size": 2, "max_turns": 3}, "seeds": "0:12"}


def lively(body: dict[str, Any]) -> str:
    """Answer by the request alone."""
    return f"<action>{ACTIONS[(body['seed'] + len(body['messages'])) % 4]}</action>"


def tables(run: evalkit.Run) -> dict[str, bytes]:
    names = ("summary.csv", "episodes.csv", "turns.csv", "compare.csv", "paired.csv")
    return {name: (run.path / name).read_bytes() for name in names}


def test_the_tables_are_those_of_any_other_concurrency_and_it_is_said_where_it_settled(
    tmp_path: Path,
) -> None:
    said = io.StringIO()
    with FakeServer(lively) as server:
        play = partial(
            evalkit.evaluate,
            server.url,
            "key_door",
            strategy="FULL_HISTORY,SCRATCHPAD",
            out=tmp_path,
            **SMALL,
        )
        auto, one = play(concurrency="auto", show=said), play(concurrency=1)
        asked = [request.path for request in server.received]
    assert auto.path.name == one.path.name.removesuffix(".2")
    assert tables(auto) == tables(one)
    assert len(asked) == 2 * len(one.turns())
    assert " at once  " in said.getvalue()
    assert "\nconcurrency settled at " in said.getvalue()


def test_a_server_that_takes_few_loses_no_episode(tmp_path: Path) -> None:
    taken = 0

    def refusing(body: dict[str, Any]) -> str | tuple[int, object]:
        nonlocal taken
        taken += 1
        if taken % 9 == 0:
            return 429, {"error": {"message": "slower"}}
        return lively(body)

    with FakeServer(refusing) as server:
        run = evalkit.evaluate(server.url, "key_door", concurrency="auto", out=tmp_path, **SMALL)
    assert run.n_error == 0
    assert len(run.episodes()) == 12


def test_models_of_one_server_share_a_limit_and_others_have_their_own() -> None:
    async def gates(concurrency: object) -> list[int | None]:
        models = [f"a={first.url}#fake", f"b={second.url}#fake", f"c={first.url}#fake", "random"]
        config = RunConfig.read({"model": models, "env": "key_door", "concurrency": concurrency})
        async with open_arms(config, KeyDoor, "run", None) as (arms, _):
            known = [arm.policy.gate for arm in arms]
        return [None if gate is None else known.index(gate) for gate in known]

    with FakeServer(lively) as first, FakeServer(lively) as second:
        assert asyncio.run(gates("auto")) == [0, 1, 0, None]
        assert asyncio.run(gates(7)) == [None] * 4


def test_each_server_is_said_to_have_settled(tmp_path: Path) -> None:
    said = io.StringIO()
    with FakeServer(lively) as first, FakeServer(lively) as second:
        evalkit.evaluate(
            [first.url, second.url],
            "key_door",
            concurrency="auto",
            out=tmp_path,
            show=said,
            **SMALL,
        )
    lines = [line for line in said.getvalue().splitlines() if line.startswith("concurrency")]
    assert [line.partition(" for ")[2] for line in lines] == ["A", "B"]


def test_what_needs_no_server_is_played_64_at_once(tmp_path: Path) -> None:
    now = [0, 0]

    class Counting(FakePolicy):
        async def complete(self, ask: Any) -> Any:
            now[0] += 1
            now[1] = max(now)
            await asyncio.sleep(0)
            completion = await super().complete(ask)
            now[0] -= 1
            return completion

    policy = Counting(lambda _: "<action>up</action>", shuffle=1)
    settings = {**SMALL, "seeds": "0:100"}
    evalkit.evaluate(policy, "key_door", concurrency="auto", out=tmp_path, **settings)
    assert now[1] == 64


@pytest.mark.parametrize("value", ["fast", 0, 10_001, 1.5, True, None])
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(BadConfig) as refused:
        RunConfig.read({"model": "random", "env": "key_door", "concurrency": value}, "here")
    assert str(refused.value) == (
        f"here: concurrency: expected auto or a whole number from 1 to 10000, not {value!r}"
    )


def test_it_names_no_other_run() -> None:
    values = {"model": "random", "env": "key_door"}
    auto = RunConfig.read({**values, "concurrency": "auto"})
    assert auto.digest("env") == RunConfig.read(values).digest("env")
