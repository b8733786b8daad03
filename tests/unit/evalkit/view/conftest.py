"""A folder with a few small runs, and a browser that needs no socket."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

import evalkit
from evalkit.play.policy import Ask
from evalkit.testing import FakePolicy, Reply
from evalkit.view.app import View
from evalkit.view.routes import Request, Response

EVIL = "<script>window.hacked=1</script><img src=x onerror=alert(1)>"
SMALL: dict[str, Any] = {"env_args": {"size": 2, "max_turns": 3}, "seeds": "0:6"}

Get = Callable[..., Response]


def evil(ask: Ask) -> Reply:
    """Answer with what a page must not run."""
    return f"{EVIL}<action>{('up', 'interact')[ask.seed % 2]}</action>"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished runs: two of key_door, of which one has two arms, and one of tic_tac_toe."""
    out = tmp_path_factory.mktemp("made")
    both = ["bad=random", "good=oracle"]
    evalkit.evaluate(both, "key_door", out=str(out), env_args={"size": 2}, seeds="0:8")
    evalkit.evaluate(FakePolicy(evil), "key_door", out=str(out), **SMALL)
    evalkit.evaluate("random", "tic_tac_toe", out=str(out), seeds="0:8")
    for name, path in zip(("pair", "evil", "ttt"), sorted_by_start(out), strict=True):
        path.rename(out / name)
    return out


def sorted_by_start(out: Path) -> list[Path]:
    """Return the runs in the order: two arms, the fake policy, tic_tac_toe."""

    def place(path: Path) -> int:
        manifest = orjson.loads((path / "manifest.json").read_bytes())
        return 0 if len(manifest["arms"]) == 2 else 1 + (manifest["env"]["id"] == "tic_tac_toe")

    return sorted(out.iterdir(), key=place)


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "results"))


@pytest.fixture
def get(runs: Path) -> Get:
    """Ask for a page of a fresh server."""
    view = View(runs)

    def ask(path: str, **query: str) -> Response:
        return view.answer(Request(path=path, query=query, headers={"host": "localhost:1"}))

    return ask


def text(response: Response) -> str:
    """Return a page's text."""
    assert isinstance(response.body, bytes)
    return response.body.decode()


def unfinished(run: Path, lines: int) -> list[bytes]:
    """Take a run back to its first episodes, long ago; return the lines of the others."""
    manifest = orjson.loads((run / "manifest.json").read_bytes())
    del manifest["references"]
    (run / "manifest.json").write_bytes(orjson.dumps({**manifest, "finished_at": None}))
    for table in run.glob("*.csv"):
        table.unlink()
    all_lines = (run / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    (run / "trajectories.jsonl").write_bytes(b"".join(all_lines[:lines]))
    for file in run.iterdir():
        os.utime(file, (0, 0))
    return all_lines[lines:]
