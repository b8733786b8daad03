"""Evaluation on Modal: shards in real containers give the bytes of a run on a laptop."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evalkit.record.rundir import RunDir
from evalkit.testing import FakeServer, Said
from tests.loopback_modal import ContainerView, LoopbackModal

SAME = {
    *("summary.csv", "episodes.csv", "turns.csv", "compare.csv", "paired.csv"),
    *("report.md", "trajectories.jsonl"),
}
DATA = {".txt", ".jsonl"}
ROOT = Path(__file__).resolve().parents[3]
KEY = "PALAESTRA_TEST_EVALUATION_KEY"
TASK = ["--env", "key_door", "--strategy", "NO_HISTORY,SCRATCHPAD", "--num-examples", "9"]


class Answers:
    """Answers by the request alone; may be told to wait for `gate` from a number of calls on."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.free_calls = 0
        self.stuck = threading.Event()

    def __call__(self, body: dict[str, Any]) -> str:
        self.free_calls -= 1
        if self.free_calls < 0 and not self.gate.is_set():
            self.stuck.set()
            self.gate.wait(120)
        drawn = zlib.crc32(json.dumps([body["messages"], body["seed"]]).encode())
        action = ("up", "down", "left", "right", "interact")[drawn % 5]
        return f"<scratchpad>{drawn % 100}</scratchpad><action>{action}</action>"


@pytest.fixture(name="answers")
def _answers() -> Answers:
    return Answers()


@pytest.fixture(name="server")
def _server(answers: Answers) -> Iterator[FakeServer]:
    with FakeServer(answers) as server:
        yield server
        answers.gate.set()


@pytest.fixture(name="modal")
def _modal(tmp_path: Path) -> Iterator[LoopbackModal]:
    with LoopbackModal(tmp_path / "modal", secrets={"theirs": {KEY: "from-the-secret"}}) as modal:
        yield modal


def environment(modal: LoopbackModal, tmp_path: Path, **more: str) -> dict[str, str]:
    return modal.env(
        {
            "PALAESTRA_VOLUMES_ROOT": str(modal.root / "mnt"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "EXPERIMENTER": "ada",
            "EXPERIMENT_NAME": "first try",
            **more,
        }
    )


def evaluated(
    modal: LoopbackModal, tmp_path: Path, *words: str, **more: str
) -> subprocess.CompletedProcess[str]:
    env = environment(modal, tmp_path, **more)
    return modal.cli("run", "-m", "evalkit.modal_app::evaluate", *words, env=env, cwd=tmp_path)


def on_a_laptop(
    modal: LoopbackModal, tmp_path: Path, *words: str, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evalkit", *words],
        env=environment(modal, tmp_path, **more),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def same(folder: Path) -> dict[str, bytes]:
    (run,) = folder.iterdir()
    assert {file.name for file in run.iterdir()} == SAME | {
        *("manifest.json", "journal.jsonl", "performance.csv", "report.html")
    }
    return {name: (run / name).read_bytes() for name in SAME}


@pytest.mark.slow
def test_three_containers_give_the_bytes_of_a_laptop(
    modal: LoopbackModal, server: FakeServer, tmp_path: Path
) -> None:
    task = ["--model", server.url, *TASK, "--api-key-env", KEY]
    laptop = on_a_laptop(modal, tmp_path, *task, "--out", "laptop", **{KEY: "k"})
    assert laptop.returncode == 0, laptop.stderr
    ran = evaluated(modal, tmp_path, *task, "--shards", "3", "--out", "there", **{KEY: "k"})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert same(tmp_path / "there") == same(tmp_path / "laptop")
    calls = {request.headers.get("authorization") for request in server.received}
    assert calls == {"Bearer k"}
    shards = modal.containers(function="evaluate_shard", alive=False)
    assert len(shards) == 3
    assert len(modal.function_calls(function="evaluate_run")) == 1
    shipped = modal.app("palaestra-evaluate").functions["evaluate_shard"]
    data = [file.relative_to(ROOT) for file in (ROOT / "envs").rglob("*.*") if file.suffix in DATA]
    for file in [*data, Path("evalkit/run.py"), Path("envs/games/key_door.py")]:
        assert any(name.endswith(f"/{file}") for name in shipped.mounts), file
    assert not any(name.endswith(".pyc") for name in shipped.mounts)
    assert "PALAESTRA_VOLUMES_ROOT" in shipped.env
    assert any("requirements" in line for line in shipped.image), shipped.image
    kept = modal.volume("palaestra-runs-ada-first-try") / "evaluations"
    assert len(list(kept.glob("*/*-of-3/back.tar.gz"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "is_cut"),
    [(LoopbackModal.kill, True), (LoopbackModal.preempt, False)],  # told to end, one may finish
)
def test_a_container_that_is_taken_away_is_replaced_and_goes_on_where_it_stood(
    end: Callable[[LoopbackModal, ContainerView], None],
    is_cut: bool,
    modal: LoopbackModal,
    server: FakeServer,
    answers: Answers,
    tmp_path: Path,
) -> None:
    task = ["--model", server.url, *TASK, "-c", "3"]
    assert on_a_laptop(modal, tmp_path, *task, "--out", "laptop").returncode == 0
    whole = len(server.bodies)
    server.received.clear()
    answers.free_calls = whole // 2
    answers.gate.clear()
    command = [sys.executable, "-m", "evalkit", *task, "--target", "modal", "--shards", "3"]
    env = environment(modal, tmp_path)
    with subprocess.Popen(
        [*command, "--out", "there"],
        env=env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        modal.wait_for(answers.stuck.is_set, timeout_s=90, what="half of the calls")
        volume = modal.volume("palaestra-runs-ada-first-try") / "evaluations"
        modal.wait_for(
            lambda: any(file.stat().st_size for file in volume.glob("*/*/journal.jsonl")),
            what="something kept",
        )
        taken = modal.containers(function="evaluate_shard")[0]
        end(modal, taken)
        answers.gate.set()
        said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert same(tmp_path / "there") == same(tmp_path / "laptop")
    over = modal.containers(function="evaluate_shard", alive=False)
    codes = {container.id: container.exit_code for container in over}
    assert len(codes) >= 3  # another one may have had the time to do its work as well
    assert codes[taken.id] != 0 or not is_cut
    assert len(server.bodies) < 2 * whole


@pytest.mark.slow
def test_a_shard_that_fails_is_said_kept_and_gone_on_with(
    modal: LoopbackModal, tmp_path: Path
) -> None:
    """The key is a secret's there; the server goes away after half of the calls."""
    answers, left = Answers(), [1 << 60]

    def chat(body: dict[str, Any]) -> str | Said:
        left[0] -= 1
        return answers(body) if left[0] >= 0 else (503, {"error": {"message": "away"}})

    with FakeServer(chat) as server:
        task = ["--model", server.url, *TASK, "--api-key-env", KEY, "--wait-s", "1"]
        assert on_a_laptop(modal, tmp_path, *task, "--out", "laptop", **{KEY: "h"}).returncode == 0
        whole = len(server.bodies)
        server.received.clear()
        left[0] = whole // 2
        more = ["--shards", "2", "--secret", "theirs", "--out", "there"]
        ran = evaluated(modal, tmp_path, *task, *more, **{KEY: "h"})
        said = ran.stdout + ran.stderr
        assert ran.returncode == 1, said
        (run,) = (tmp_path / "there").iterdir()
        name = str(run.relative_to(tmp_path))
        assert "shards did not finish (" in said
        assert f"what was played is kept: python -m evalkit resume {name}" in said
        left[0] = 1 << 60
        words = ["resume", name, "--target", "modal", "--secret", "theirs"]
        resumed = on_a_laptop(modal, tmp_path, *words, **{KEY: "h"})
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        assert same(tmp_path / "there") == same(tmp_path / "laptop")
        keys = {request.headers.get("authorization") for request in server.received}
        assert keys == {"Bearer from-the-secret"}


@pytest.mark.slow
def test_a_run_of_which_the_command_is_gone_is_waited_for(
    modal: LoopbackModal, server: FakeServer, answers: Answers, tmp_path: Path
) -> None:
    """Detached: the command dies, the containers play on, `resume` takes what they found."""
    task = ["--model", server.url, *TASK]
    assert on_a_laptop(modal, tmp_path, *task, "--out", "laptop").returncode == 0
    whole = len(server.bodies)
    server.received.clear()
    answers.free_calls = whole // 2
    answers.gate.clear()
    command = [sys.executable, "-m", "evalkit", *task, "--target", "modal", "--detach"]
    with subprocess.Popen(
        [*command, "--shards", "2", "--out", "there"],
        env=environment(modal, tmp_path),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        modal.wait_for(answers.stuck.is_set, timeout_s=90, what="half of the calls")
        process.kill()
    answers.gate.set()
    (run,) = (tmp_path / "there").iterdir()
    resumed = on_a_laptop(modal, tmp_path, "resume", str(run.relative_to(tmp_path)))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "waiting for the call" in resumed.stdout + resumed.stderr
    assert same(tmp_path / "there") == same(tmp_path / "laptop")
    assert len(server.bodies) == whole
    assert RunDir.open(run).manifest()["target"] == "modal"


@pytest.mark.slow
def test_files_of_ones_own_travel_and_what_cannot_is_said(
    modal: LoopbackModal, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "script.txt").write_text("<action>up</action>\n" * 9)
    (tmp_path / "mine" / "env.py").write_text(
        "from envs.games.key_door import KeyDoor\n\n\nclass Mine(KeyDoor):\n    pass\n"
    )
    task = ["--model", "script:mine/script.txt", "--env", "mine/env.py:Mine", "-n", "4"]
    assert on_a_laptop(modal, tmp_path, *task, "--out", "laptop").returncode == 0
    ran = evaluated(modal, tmp_path, *task, "--shards", "2", "--out", "there")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (here,), (there,) = (tmp_path / "laptop").iterdir(), (tmp_path / "there").iterdir()
    for name in ("summary.csv", "turns.csv", "report.md", "trajectories.jsonl"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    far = evaluated(modal, tmp_path, "--model", "random", "--env", f"{tmp_path}/mine/env.py:Mine")
    assert far.returncode == 2
    assert "cannot travel: name a file below" in far.stdout + far.stderr
    wrong = evaluated(modal, tmp_path, "--model", "random", "--env", "key_door", "--procs", "2")
    assert wrong.returncode == 2
    assert "--procs" in wrong.stdout + wrong.stderr
