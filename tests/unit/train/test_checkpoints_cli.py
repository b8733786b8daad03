"""The command `checkpoints`: what it says, what it refuses, and paired evaluations."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from evalkit.testing import FakeServer
from serve.client import AdminClient
from train import checkpoints_cli
from train.config import (
    EnvSection,
    GatewaySection,
    ModelSection,
    RolloutSection,
    TrainConfig,
    resolve,
)
from train.errors import BadConfig, RunFailed
from train.learner.checkpoints import Checkpoints, SavedCheckpoints, TrainState
from train.run import RunDir

ROOT = Path(__file__).resolve().parents[3]
CONFIG = TrainConfig(
    env=EnvSection(name="key_door", args={"size": 4}),
    model=ModelSection(path="models/tiny", name="key-door"),
    rollouts=RolloutSection(strategy="NO_HISTORY", temperature=0.7, max_tokens=24, concurrency=4),
    gateway=GatewaySection(api_key_env="PALAESTRA_TEST_KEY_THAT_IS_NOT_SET", wait_s=20),
)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    checkpoints_cli.add_parser(parser.add_subparsers(dest="command", required=True))
    return parser.parse_args(["checkpoints", *words])


def ran(*words: object) -> int:
    return checkpoints_cli.run(parsed(*map(str, words)))


def a_run(tmp_path: Path, config: TrainConfig = CONFIG, *, adapter: bool = False) -> RunDir:
    """A run with checkpoints of the steps 20 (version 2), 40 (version 4) and 60 (not published)."""
    rundir = RunDir.create(tmp_path / "runs", config, {})
    checkpoints = Checkpoints(rundir.checkpoints_path, keep=9)
    for step, version in ((20, 2), (40, 4), (60, None)):
        with checkpoints.writing(step) as staging:
            TrainState(
                step=step,
                next_group=8 * step,
                published_version=version,
                metrics={"success": step / 100, "return_mean": 0.25, "kl": None},
            ).write(staging)
            weights = "adapter_model.safetensors" if adapter else "model.safetensors"
            (staging / weights).write_bytes(bytes(250_000))
            if adapter:
                (staging / "adapter_config.json").write_text("{}")
    return rundir


def reply(body: dict[str, Any]) -> str:
    """Version 4, and what a gateway of one's own calls second, know how to move."""
    return "<action>up</action>" if body["model"].endswith(("@4", "-40")) else "nonsense"


def seeds_in(paired: Path) -> list[int]:
    with paired.open(newline="") as file:
        return [int(row["env_seed"]) for row in csv.DictReader(file)]


MODELS = [{"id": name} for name in ("key-door@2", "key-door@4", "own-20", "own-40")]


def test_list_shows_the_complete_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rundir = a_run(tmp_path)
    assert ran("list", rundir.path) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == "step version success return size folder".split()
    assert lines[1].split() == [
        *("40", "4", "40.0%", "0.250", "0.3", "MB"),
        str(rundir.checkpoint_path(40)),
    ]
    assert lines[2].split()[:2] == ["60", "60.0%"]


def test_list_of_a_run_without_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rundir = RunDir.create(tmp_path, CONFIG, {})
    assert ran("list", rundir.path) == 0
    assert "has no complete checkpoint" in capsys.readouterr().out


def test_looking_leaves_what_is_being_written(tmp_path: Path) -> None:
    rundir = a_run(tmp_path)
    (rundir.checkpoints_path / ".step-000080.tmp").mkdir()
    assert ran("list", rundir.path) == 0
    assert (rundir.checkpoints_path / ".step-000080.tmp").is_dir()


def test_show_says_all_and_how_to_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rundir = a_run(tmp_path)
    assert ran("show", rundir.path, "--step", 40) == 0
    shown = capsys.readouterr().out
    assert "key-door@4" in shown
    assert "next group    320" in shown
    assert "success            0.4" in shown
    assert "kl" not in shown
    assert "model.safetensors" in shown
    folder = rundir.checkpoint_path(40)
    assert f"  python -m serve up --model {folder} --name key-door\n" in shown
    assert ran("show", rundir.path, "--step", 60) == 0
    assert "(not published)" in capsys.readouterr().out


def test_an_adapter_is_served_over_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rundir = a_run(tmp_path, adapter=True)
    ran("show", rundir.path, "--step", 20)
    shown = capsys.readouterr().out
    assert "python -m serve up --model models/tiny --name key-door --lora\n" in shown
    assert f"policies publish key-door {rundir.checkpoint_path(20)} --url" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["show", "RUN", "--step", "30"],
            "no complete checkpoint of step 30: there are 20, 40, 60",
        ),
        (["compare", "RUN", "--steps", "20"], "takes two steps"),
        (["compare", "RUN", "--steps", "20,b"], "takes two steps"),
        (["compare", "RUN", "--steps", "20,40,60"], "takes two steps"),
        (["compare", "RUN", "--steps", "20,30"], "no complete checkpoint of step 30"),
        (["compare", "RUN", "--steps", "20,20"], "compared with itself"),
        (["compare", "RUN", "--steps", "20,40", "-n", "0"], "-n is at least 1"),
        (["compare", "RUN", "--steps", "20,40", "--seeds", "a:b"], "seeds are A:B"),
        (["compare", "RUN", "--steps", "20,40", "--seeds", "2147483648"], r"below 2\*\*31"),
        (["compare", "RUN", "--steps", "20,40", "--seeds", "4294967296:4294967299"], r"2\*\*31"),
        (["compare", "RUN", "--steps", "20,60", "--url", "http://127.0.0.1:9"], "not published"),
        (["compare", "RUN", "--steps", "20,40", "--url", "ftp://x"], "neither an http"),
        (["compare", "RUN", "--steps", "20,40", "--url", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["list", "RUN/absent"], "no such folder"),
        (["list", "RUN/checkpoints"], "not a training run"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path: Path, words: list[str], said: str) -> None:
    rundir = a_run(tmp_path)
    with pytest.raises(BadConfig, match=said):
        ran(*(word.replace("RUN", str(rundir.path)) for word in words))
    assert list(rundir.path.glob("compare*")) == []


def test_the_largest_evaluation_seed_is_fine() -> None:
    options = parsed("compare", "RUN", "--steps", "1,2", "--seeds", "2147483647")
    assert checkpoints_cli._seeds(options) == (2147483647,)


def test_both_versions_of_a_gateway_play_the_same_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rundir = a_run(tmp_path)
    with FakeServer(reply, MODELS) as server:
        words = ("--steps", "20,40", "--seeds", "5:17", "--url", server.url)
        assert ran("compare", rundir.path, *words) == 0
        asked = server.bodies
    assert {body["model"] for body in asked} == {"key-door@2", "key-door@4"}
    assert {(body["temperature"], body["max_tokens"]) for body in asked} == {(0.7, 24)}
    shown = capsys.readouterr().out
    assert "step-40 is better than step-20" in shown
    assert "valid actions" in shown
    assert "n=12 paired seeds" in shown
    folder = rundir.path / "compare-20-40"
    assert f"{folder}/report.md" in shown
    assert seeds_in(folder / "paired.csv") == list(range(5, 17))


def test_without_a_gateway_one_is_served_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rundir = a_run(tmp_path)
    up: list[str] = []
    with FakeServer(reply, MODELS) as server:

        @contextmanager
        def serving(config: TrainConfig, folder: Path, log: Path) -> Iterator[str]:
            assert config == resolve(CONFIG.model_dump(mode="json"), {})  # with volumes named
            assert log.parent == rundir.path / "compare-40-20"
            step = int(folder.name.removeprefix("step-"))
            up.append(f"up {step}")
            yield f"{server.url}/v1#own-{step}"
            up.append(f"down {step}")

        options = parsed("compare", str(rundir.path), "--steps", "40,20", "-n", "12")
        saved = SavedCheckpoints(rundir.checkpoints_path)
        assert checkpoints_cli.compare(options, rundir, saved, serving) == 0
        assert (
            checkpoints_cli.compare(
                parsed("compare", str(rundir.path), "--steps", "20,40", "-n", "2"),
                rundir,
                saved,
                lambda config, folder, log: serving(
                    config, folder, rundir.path / "compare-40-20/x"
                ),
            )
            == 0
        )
    assert up[:4] == ["up 40", "down 40", "up 20", "down 20"]
    shown = capsys.readouterr().out
    assert "step-20 is worse than step-40" in shown
    assert "n=12 paired seeds" in shown
    assert seeds_in(rundir.path / "compare-40-20" / "paired.csv") == list(range(12))


FAKE_SERVE = """
import os, pathlib, signal, sys
pathlib.Path("pid").write_text(str(os.getpid()))
pathlib.Path("argv").write_text(" ".join(sys.argv[1:]))
print("listening on http://127.0.0.1:1/v1; logs in x", "ready", sep="\\n", flush=True)
signal.pause()
"""
SERVED = """
import os, pathlib
from train.checkpoints_cli import serve_folder
from train.config import load
config = load(None, {"env.name": "key_door", "model.path": "models/tiny", "gateway.wait_s": 20})
try:
    with serve_folder(config, pathlib.Path("step-000020"), pathlib.Path("log")) as spec:
        os.kill(int(pathlib.Path("pid").read_text()), 0)
        raise KeyError(spec)
except KeyError as error:
    print(error.args[0])
os.kill(int(pathlib.Path("pid").read_text()), 0)
"""


def test_what_was_served_is_stopped_whatever_happens(tmp_path: Path) -> None:
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "__init__.py").touch()
    (tmp_path / "serve" / "__main__.py").write_text(FAKE_SERVE)
    done = subprocess.run(
        [sys.executable, "-c", SERVED],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "http://127.0.0.1:1/v1#tiny\n"
    assert done.stderr.splitlines()[-1].startswith("ProcessLookupError")
    assert (tmp_path / "argv").read_text().startswith("up --model step-000020 --name tiny ")


def test_episodes_that_are_lost_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusing(body: dict[str, Any]) -> str | tuple[int, object]:
        is_first_turn = len(body["messages"]) <= 2
        return "nonsense" if is_first_turn else (400, {"error": {"message": "no"}})

    history = CONFIG.rollouts.model_copy(update={"strategy": "FULL_HISTORY"})
    rundir = a_run(tmp_path, CONFIG.model_copy(update={"rollouts": history}))
    with FakeServer(refusing, MODELS) as server:
        words = ("--steps", "20,40", "-n", "2", "--url", server.url)
        assert ran("compare", rundir.path, *words) == 1
    assert "4 episodes were lost to errors" in capsys.readouterr().out


def test_a_server_that_refuses_is_a_bad_config(tmp_path: Path) -> None:
    rundir = a_run(tmp_path)
    with (
        FakeServer(reply, MODELS[:1]) as server,
        pytest.raises(BadConfig, match="key-door@4"),
    ):
        ran("compare", rundir.path, "--steps", "20,40", "-n", "2", "--url", server.url)


def test_a_folder_that_cannot_be_served_is_said(tmp_path: Path) -> None:
    rundir = a_run(tmp_path)
    with pytest.raises(BadConfig, match=r"the gateway refuses: no model .*step-000020"):
        ran("compare", rundir.path, "--steps", "20,40", "-n", "2")
    log = rundir.path / "compare-20-40" / "gateway-20.log"
    assert "config.json" in log.read_text()


def published(version: int) -> dict[str, Any]:
    return {
        "name": "key-door",
        "version": version,
        "kind": "lora",
        "created": 0.0,
        "parent": 1,
        "digest": "",
        "size_bytes": 1,
        "metrics": {},
        "path": None,
        "live_on": [],
    }


def test_an_adapter_is_published_and_waited_for() -> None:
    asked: list[tuple[str, bytes]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.content))
        if request.url.path == "/admin/publish":
            return httpx.Response(200, json=published(2))
        replica = {
            "id": "r0",
            "url": "",
            "state": "ready",
            "reason": "",
            "in_flight": 0,
            "requests": 0,
            "errors": 0,
            "sessions": 0,
            "current": {"key-door": 2},
            "served": {"key-door": [1] if len(asked) < 3 else [1, 2]},
        }
        demand = {"in_flight": 0, "held": 0}
        told = {"desired": 1, "replicas": [replica], "demand": demand}
        return httpx.Response(200, json=told)

    client = AdminClient("http://gateway/v1", transport=httpx.MockTransport(answer))
    assert checkpoints_cli._publish(client, "key-door", Path("step-000020")) == "key-door@2"
    assert [path for path, _ in asked] == ["/admin/publish", "/admin/pool", "/admin/pool"]
    assert b"step-000020" in asked[0][1]


def test_an_adapter_that_is_refused_ends_the_comparison() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(409, json={"error": {"message": "it was not made for this"}})

    client = AdminClient("http://gateway/v1", transport=httpx.MockTransport(refuse))
    with pytest.raises(RunFailed, match="it was not made for this"):
        checkpoints_cli._publish(client, "key-door", Path("step-000020"))


def test_help_is_light() -> None:
    program = "import sys, train.checkpoints_cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"torch", "numpy", "pydantic", "yaml", "httpx", "rich"})
