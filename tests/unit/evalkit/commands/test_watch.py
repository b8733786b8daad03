"""`evalkit watch`, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evalkit.cli import main
from evalkit.testing import FakeServer, Said
from tests.unit.evalkit.watch.test_sources import cards, checkpoint

PLAY = "--env key_door --env-arg max_turns=2 -n 12 --once --attempts 1 --wait-s 0".split()


def _chat(body: dict[str, Any]) -> str | Said:
    if "messages" not in body:
        return 201, {"name": "tiny", "version": 2}
    return (400, {}) if body["model"].endswith("@4") else "<action>up</action>"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(_chat, cards(1)) as running:
        yield running


def test_a_gateway_is_watched(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junit = tmp_path / "junit.xml"
    words = ["watch", server.url, *PLAY, "--out", str(tmp_path / "out"), "--junit", str(junit)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("tiny@1: 0.0 % success (95 % CI ")
    assert said.endswith("learning_curve.csv learning_curve.html learning_curve.svg versions/\n")
    assert junit.is_file()
    server.models = cards(4)
    assert main(words) == 1
    assert "tiny@4 failed: v4: the server refuses the request" in capsys.readouterr().out


def test_a_folder_is_watched_through_a_gateway(server: FakeServer, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "run" / "checkpoints", 20)
    server.models = cards(1, 2)
    words = ["--url", f"{server.url}#tiny", "--out", str(tmp_path / "out")]
    assert main(["watch", str(tmp_path / "run"), *PLAY, *words]) == 0
    assert server.bodies[0] == {"name": "tiny", "path": str(path)}
    assert {body["model"] for body in server.bodies[1:]} == {"tiny@2"}
    state = json.loads((tmp_path / "out" / "watch.json").read_bytes())
    (entry,) = state["versions"]
    assert (entry["version"], entry["served"]) == ("step-000020", "tiny@2")


def test_the_exit_code_says_that_the_newest_version_is_worse(
    server: FakeServer, tmp_path: Path
) -> None:
    def oracle_until_two(body: dict[str, Any]) -> str:
        known = {"tiny@1": "right", "tiny@2": "wait"}
        return f"<action>{known[body['model']]}</action>"

    env = Path(__file__).parents[2] / "envs" / "their_env.py"
    config = tmp_path / "watch.yaml"
    config.write_text(
        f"env: {env}:Corridor\nenv_args: {{length: 2, max_turns: 1}}\nseeds: '0:40'\n"
    )
    server._chat = oracle_until_two
    out = ["--out", str(tmp_path / "out")]
    words = ["watch", server.url, "--config", str(config), "--once", "-c", "4", *out]
    assert main(words) == 0
    server.models = cards(2)
    assert main(words) == 3
    assert main(words) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["folder", "--env", "key_door"], "needs a gateway to serve them: --url"),
        (["folder", "--url", "oracle", "--env", "key_door"], "is the URL of a gateway"),
        (["folder", "--url", "ftp://x", "--env", "key_door"], "neither an http(s) URL"),
        (["http://127.0.0.1:9", "--url", "http://x", "--env", "key_door"], "TARGET is a URL"),
        (["http://127.0.0.1:9"], "--env is missing"),
        (["http://127.0.0.1:9", "--env", "key_door", "--every", "0"], "above 0"),
        (["http://127.0.0.1:9", "--env", "key_door", "--every", "nan"], "above 0"),
        (["http://127.0.0.1:9", "--env", "key_door", "--max-versions", "0"], "at least 1"),
        (
            ["http://127.0.0.1:9", "--env", "key_door", "--strategy", "WINDOW,NO_HISTORY"],
            "watch plays one strategy",
        ),
        (["http://127.0.0.1:9", "--env", "key_door", "--once"], "nothing answers at"),
    ],
)
def test_what_cannot_be_watched_is_said_in_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", *words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_versions_are_logged_to_weights_and_biases(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "out"
    assert main(["watch", server.url, *PLAY, "--out", str(out), "--wandb", "project"]) == 0
    wandb.teardown()
    (log,) = out.glob("wandb/offline-run-*/run-*.wandb")
    assert b"turns_mean" in log.read_bytes()
    assert list(out.glob("versions/*/*/wandb.json")) == []
