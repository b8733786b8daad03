"""Weights & Biases: the real package offline where it is installed, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import evalkit
from evalkit.errors import BadConfig
from evalkit.run import resume, run_async
from evalkit.wandb_sink import FILE, WandbSink

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    wandb.teardown()  # it reads the environment once a process
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    wandb.teardown()


def _logs(folder: Path) -> list[Path]:
    """Return the files, once the process that writes them has ended."""
    wandb.teardown()
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.slow
def test_a_run_logs_its_summary_and_a_resumed_one_to_the_same_place(tmp_path: Path) -> None:
    run = evalkit.evaluate("oracle", "key_door", seeds="0:3", out=tmp_path, wandb="project")
    (log,) = _logs(run.path)
    text = log.read_bytes()
    assert b"oracle/success_rate" in text
    assert b"project" in text
    said = json.loads((run.path / FILE).read_text())
    assert log.name == f"run-{said['id']}.wandb"
    run_async(resume(run.path))
    assert json.loads((run.path / FILE).read_text()) == said
    assert {each.name for each in _logs(run.path)} == {log.name}


@pytest.mark.slow
def test_rows_are_logged_by_step(tmp_path: Path) -> None:
    with WandbSink("project", folder=tmp_path, name="watch", config={"env": "key_door"}) as sink:
        sink.log({"version": "tiny@1", "success": 0.25, "worse": False}, step=1)
        sink.log({"version": "tiny@2", "success": 0.75, "worse": None}, step=2)
    (log,) = _logs(tmp_path)
    text = log.read_bytes()
    assert b"0.25" in text
    assert b"0.75" in text
    assert b"tiny@1" not in text


def test_a_damaged_file_beside_the_results_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(BadConfig, match=r"wandb\.json does not name a W&B run"):
        WandbSink("project", folder=tmp_path, name="x", config={})


def test_a_mode_that_wandb_does_not_know_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(BadConfig, match="or set WANDB_MODE=offline, and resume it"):
        WandbSink("project", folder=tmp_path, name="x", config={})


def test_without_wandb_nothing_is_played(tmp_path: Path) -> None:
    program = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'wandb' else find(name, *more)\n"
        "from evalkit.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "out"
    words = ["--model", "oracle", "--env", "key_door", "--wandb", "p", "--out", str(out)]
    ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr == "evalkit: --wandb needs the package wandb: install palaestra[wandb]\n"
    assert not out.exists()


def test_where_to_log_changes_no_trajectory() -> None:
    values = {"model": "oracle", "env": "key_door"}
    plain, logged = (
        evalkit.RunConfig.read(each) for each in (values, {**values, "wandb": "project"})
    )
    assert logged.wandb == "project"
    assert plain.digest("env") == logged.digest("env")
