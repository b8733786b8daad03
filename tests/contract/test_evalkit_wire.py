"""evalkit and an engine meet on the wire only: what each kind of misbehaviour becomes in a run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from evalkit.errors import Unauthorized, UnknownModel, Unreachable
from evalkit.run import Run, evaluate_async
from serve.testing import FakeEngine, Faults

ACTIONS = [f"<action>{word}</action>" for word in ("up", "down", "left", "right", "interact")]


async def _play(engine: FakeEngine, out: Path, **settings: Any) -> Run:
    task: dict[str, Any] = {"env_args": {"max_turns": 6}, "seeds": "0:12", "concurrency": 4}
    return await evaluate_async(
        engine.base_url, "key_door", **{**task, "out": str(out), **settings}
    )


def _outcomes(run: Run) -> set[str]:
    return {row["outcome"] for row in run.turns()}


TRANSIENT = {
    "reset": Faults(reset_every=5),
    "429": Faults(too_many_every=4),
    "500 page": Faults(html_500_every=7),
    "half JSON": Faults(half_json_every=6),
    "no choices": Faults(no_choices_every=6),
    "cut": Faults(cut_every=5),
    "cold start": Faults(cold_requests=3),
    "chunked": Faults(chunked=True),
    "several": Faults(reset_every=7, too_many_every=5, half_json_every=11, cut_every=13),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_transient_faults_change_nothing_but_the_number_of_tries(name: str, tmp_path: Path) -> None:
    async def both() -> tuple[Run, Run]:
        async with FakeEngine(ACTIONS) as engine:
            clean = await _play(engine, tmp_path / "clean")
        async with FakeEngine(ACTIONS, faults=TRANSIENT[name]) as engine:
            return clean, await _play(engine, tmp_path / "faulty")

    clean, faulty = asyncio.run(both())
    assert faulty.n_error == 0
    tries = [[row[key] for key in row if key != "run_id"] for row in faulty.turns()]
    assert tries == [[row[key] for key in row if key != "run_id"] for row in clean.turns()]


@pytest.mark.parametrize(
    ("faults", "failure"),
    [
        (Faults(reset_every=1), "connect"),
        (Faults(html_500_every=1), "server_error"),
        (Faults(half_json_every=1), "bad_reply"),
        (Faults(no_choices_every=1), "bad_reply"),
        (Faults(cut_every=1), "connect"),
        (Faults(silent_every=1), "timeout"),
        (Faults(too_many_every=1), "rate_limited"),
    ],
)
def test_lasting_faults_are_named_and_never_scored(
    faults: Faults, failure: str, tmp_path: Path
) -> None:
    async def play() -> Run:
        async with FakeEngine(ACTIONS, faults=faults) as engine:
            return await _play(engine, tmp_path, seeds="0:2", attempts=2, timeout_s=0.3, wait_s=0.2)

    run = asyncio.run(play())
    assert run.n_error == 2
    assert {row["failure"] for row in run.episodes()} == {failure}
    assert {(row["scored"], row["success"], row["return"]) for row in run.episodes()} == {
        ("false", "", "")
    }
    (summary,) = run.summary
    assert summary["success_rate"] is None
    assert (summary["success_lo_worst"], summary["success_hi_worst"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("<action>up</action>", "ok"),
        ("", "empty"),
        ("I cannot say.", "no_action"),
        ("<action>fly</action>", "illegal"),
        ("<action>up</action><action>down</action>", "multi_action"),
        ("I go <action>up", "unclosed"),
        ("<think>up is best", "empty"),
        ("<think><action>up</action></think>so <action>up</action>", "ok"),
        ("one two three four five six seven eight nine ten", "truncated_tokens"),
        ("x" * 1_000_000, "no_action"),
        ("\x00 \u202e <action>", "no_action"),
        ("<action></action>", "no_action"),
    ],
)
def test_every_reply_has_a_named_outcome(reply: str, outcome: str, tmp_path: Path) -> None:
    async def play() -> Run:
        async with FakeEngine(reply) as engine:
            return await _play(engine, tmp_path, seeds="0:1", max_tokens=9)

    run = asyncio.run(play())
    assert run.n_error == 0
    assert outcome in _outcomes(run)


def test_a_history_that_outgrows_the_context_ends_the_episode(tmp_path: Path) -> None:
    async def play(strategy: str) -> Run:
        async with FakeEngine("word " * 30, max_model_len=400) as engine:
            return await _play(
                engine, tmp_path / strategy[-5:], strategy=strategy, env_args={"max_turns": 20}
            )

    stopped = asyncio.run(play("FULL_HISTORY"))
    assert {row["stop_reason"] for row in stopped.episodes()} == {"context_overflow"}
    assert {row["return"] for row in stopped.episodes()} == {"-0.5"}
    assert stopped.summary[0]["ctx_overflow_rate"] == 1.0
    dropped = asyncio.run(play("FULL_HISTORY(overflow=drop_oldest)"))
    assert {row["stop_reason"] for row in dropped.episodes()} == {"truncated"}


def test_what_is_wrong_before_the_run_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "results"

    async def refused() -> None:
        async with FakeEngine(ACTIONS, api_key="secret") as engine:
            with pytest.raises(Unauthorized, match="--api-key-env"):
                await _play(engine, out)
        async with FakeEngine(ACTIONS, model="other") as engine:
            engine_url = f"{engine.base_url}#wrong"
            with pytest.raises(UnknownModel, match="no model 'wrong'; it has other"):
                await evaluate_async(engine_url, "key_door", out=str(out))
        with pytest.raises(Unreachable, match="nothing answers"):
            await evaluate_async(engine.base_url, "key_door", out=str(out))

    asyncio.run(refused())
    assert not out.exists()


def test_the_key_and_the_session_reach_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_KEY", "secret")

    async def play() -> dict[str, int]:
        async with FakeEngine(ACTIONS, api_key="secret") as engine:
            await _play(engine, tmp_path, seeds="0:3", api_key_env=("THEIR_KEY",))
            async with httpx.AsyncClient() as client:
                stats = await client.get(engine.base_url.replace("/v1", "/requests"))
            answered: dict[str, int] = stats.json()
            return answered

    answered = asyncio.run(play())
    assert set(answered.values()) == {1}
    assert {name.rsplit("-", 2)[1] for name in answered} == {"0"}
    assert not any("secret" in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


def test_guided_answers_are_all_in_the_format(tmp_path: Path) -> None:
    async def play() -> Run:
        async with FakeEngine("nonsense") as engine:
            return await _play(
                engine, tmp_path, guided=(False, True), strategy=("NO_HISTORY", "SCRATCHPAD")
            )

    run = asyncio.run(play())
    rates = {row["arm"]: row["valid_action_rate"] for row in run.summary}
    assert rates == {
        "NO_HISTORY.free": 0.0,
        "SCRATCHPAD.free": 0.0,
        "NO_HISTORY.guided": 1.0,
        "SCRATCHPAD.guided": 1.0,
    }
    pads = {(row["arm"], row["memory"]) for row in run.turns()}
    assert ("SCRATCHPAD.guided", "replaced") in pads
    assert ("SCRATCHPAD.guided", "missing") not in pads
