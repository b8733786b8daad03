"""The log that is written for inspect, as a zip of JSON; tests/contract has inspect read it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

import evalkit
from evalkit.errors import CallFailed, DamagedRun, Failure
from evalkit.exchange.inspect_log import export_inspect
from evalkit.exchange.played import Played
from evalkit.play.policy import Ask, Completion
from evalkit.testing import FakePolicy, Reply


def _exported(run: evalkit.Run, folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return export_inspect(Played.open(run.path), folder)


def _read(file: Path, name: str) -> Any:
    with zipfile.ZipFile(file) as log:
        return json.loads(log.read(name))


def _gives_up(ask: Ask) -> Reply:
    if ask.session_id.endswith("-1-0"):
        return CallFailed(Failure.TIMEOUT, "no answer in time")
    return Completion(
        text="<action>up</action>",
        reasoning="north is best",
        finish_reason="length",
        prompt_tokens=40,
        completion_tokens=5,
        policy_version="tiny@3",
    )


def test_an_arm_is_a_log_with_a_sample_per_episode(tmp_path: Path) -> None:
    run = evalkit.evaluate(
        FakePolicy(_gives_up), "key_door", seeds="0:2", env_args={"max_turns": 3}, out=tmp_path
    )
    (file,) = _exported(run, tmp_path / "logs")
    assert file.name == f"{run.path.name}-FakePolicy.eval"
    with zipfile.ZipFile(file) as log:
        assert log.namelist() == [
            "_journal/start.json",
            "samples/0_epoch_1.json",
            "samples/1_epoch_1.json",
            "_journal/summaries/1.json",
            "summaries.json",
            "header.json",
        ]
    header = _read(file, "header.json")
    assert header["status"] == "success"
    assert (header["eval"]["task"], header["eval"]["tags"]) == ("key_door", ["FakePolicy"])
    assert header["eval"]["dataset"]["sample_ids"] == [0, 1]
    assert header["eval"]["model_generate_config"] == {"temperature": 0.1, "max_tokens": 256}
    success, return_ = header["results"]["scores"]
    assert success == {
        "name": "success",
        "scorer": "success",
        "scored_samples": 1,
        "unscored_samples": 1,
        "metrics": {"accuracy": {"name": "accuracy", "value": 0.0}},
    }
    assert return_["metrics"]["mean"]["value"] == run.summary[0]["return_mean"]
    assert header["stats"]["model_usage"] == {
        "FakePolicy": {"input_tokens": 120, "output_tokens": 15, "total_tokens": 135}
    }


def test_a_sample_has_every_call_and_every_verdict(tmp_path: Path) -> None:
    run = evalkit.evaluate(
        FakePolicy(_gives_up), "key_door", seeds="0:2", env_args={"max_turns": 3}, out=tmp_path
    )
    (file,) = _exported(run, tmp_path / "logs")
    played, lost = (_read(file, f"samples/{seed}_epoch_1.json") for seed in (0, 1))
    roles = [message["role"] for message in played["messages"]]
    assert roles == ["system", *["user", "assistant"] * 3]
    reply = played["messages"][2]
    assert reply["content"] == [
        {"type": "reasoning", "reasoning": "north is best"},
        {"type": "text", "text": "<action>up</action>"},
    ]
    assert reply["metadata"]["policy_version"] == "tiny@3"
    assert reply["metadata"]["outcome"] == "truncated_tokens"
    assert [event["output"]["choices"][0]["stop_reason"] for event in played["events"]] == [
        "max_tokens"
    ] * 3
    assert played["scores"]["success"]["value"] == "I"
    assert played["limit"] == {"type": "turn", "limit": 3}
    assert lost["scores"] is None
    assert lost["error"]["message"] == "timeout: no answer in time"
    assert lost["messages"] == []
    summaries = _read(file, "summaries.json")
    assert [summary["error"] for summary in summaries] == [None, "timeout: no answer in time"]


def test_equal_runs_give_equal_bytes_and_arms_stand_apart(tmp_path: Path) -> None:
    run = evalkit.evaluate(["A=random", "B=oracle"], "key_door", seeds="0:2", out=tmp_path)
    first = _exported(run, tmp_path / "one")
    again = _exported(run, tmp_path / "two")
    assert [file.name for file in first] == [f"{run.path.name}-{arm}.eval" for arm in "AB"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]
    models = [_read(file, "header.json")["eval"]["model"] for file in first]
    assert models == ["random", "oracle"]


def test_a_log_that_cannot_be_finished_is_not_there(tmp_path: Path) -> None:
    run = evalkit.evaluate("random", "key_door", strategy="FULL_HISTORY", seeds="0:2", out=tmp_path)
    file = run.path / "trajectories.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second.replace(b"<action>", b"<ACTION>"))
    with pytest.raises(DamagedRun):
        _exported(run, tmp_path / "logs")
    assert list((tmp_path / "logs").iterdir()) == []


def test_arms_whose_names_make_one_word_have_a_log_each(tmp_path: Path) -> None:
    run = evalkit.evaluate(["m-1=random", "m.1=oracle"], "key_door", seeds="0:2", out=tmp_path)
    files = _exported(run, tmp_path / "logs")
    assert [file.name for file in files] == [
        f"{run.path.name}-m_1.eval",
        f"{run.path.name}-m_1.2.eval",
    ]
    tags = [_read(file, "header.json")["eval"]["tags"] for file in files]
    assert tags == [["m-1"], ["m.1"]]


def test_reasoning_is_kept_beside_a_reply_that_says_think(tmp_path: Path) -> None:
    def thinks(_: Ask) -> Completion:
        return Completion(text="I think: <action>up</action>", reasoning="north is best")

    run = evalkit.evaluate(
        FakePolicy(thinks), "key_door", seeds="0:1", env_args={"max_turns": 1}, out=tmp_path
    )
    (file,) = _exported(run, tmp_path / "logs")
    reply = _read(file, "samples/0_epoch_1.json")["messages"][2]
    assert [part["type"] for part in reply["content"]] == ["reasoning", "text"]
