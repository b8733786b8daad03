"""Shards in processes of this machine: one result, and none outlives or misses its parent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from evalkit.processes import end, last_words, spawn
from evalkit.testing import FakeServer

PYTHON = sys.executable
TASK = ["--env", "key_door", "--strategy", "NO_HISTORY,FULL_HISTORY", "-n", "9", "-c", "3"]
CLOCKED = {"manifest.json", "journal.jsonl", "performance.csv"}
LATENCY = re.compile(rb'<figure id="latency".*?</figure>', re.DOTALL)


class Answers:
    """Answers by the request alone; holds back what comes after a number of calls."""

    def __init__(self) -> None:
        self.left = 1 << 60
        self.gate = threading.Event()

    def __call__(self, body: dict[str, Any]) -> str:
        self.left -= 1
        if self.left < 0:
            self.gate.wait(60)
        drawn = zlib.crc32(orjson.dumps([body["messages"], body["seed"]]))
        return f"<action>{('up', 'down', 'left', 'right', 'interact')[drawn % 5]}</action>"


@pytest.fixture(name="answers")
def _answers() -> Answers:
    return Answers()


@pytest.fixture(name="server")
def _server(answers: Answers) -> Iterator[FakeServer]:
    with FakeServer(answers) as server:
        yield server
        answers.gate.set()


def evalkit(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, "-m", "evalkit", *words], capture_output=True, text=True, timeout=240, check=False
    )


def started(*words: str) -> subprocess.Popen[str]:
    # What runs in the background may have been told to ignore SIGINT.
    argv = ["env", "--default-signal=INT", PYTHON, "-m", "evalkit", *words]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def files(out: Path) -> dict[str, bytes]:
    """Read what does not depend on the clock; of report.html all but the chart of latencies."""
    (run,) = out.iterdir()
    return {
        file.name: LATENCY.sub(b"", file.read_bytes())
        for file in run.iterdir()
        if file.name not in CLOCKED
    }


def until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 90
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def children(of: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = status.read_text().partition(" (")
        except OSError:
            continue
        if int(rest.rpartition(") ")[2].split()[1]) == of:
            found.append(int(pid))
    return sorted(found)


def begin_after(answers: Answers, server: FakeServer, task: list[str], out: Path) -> int:
    """Play the whole run once, for comparison; then let the next one begin.

    A fifth of the calls is less than any of three shards has to make: none ends by itself.
    """
    whole = evalkit(*task, "--out", str(out))
    assert whole.returncode == 0, whole.stderr
    count = len(server.bodies)
    server.received.clear()
    answers.left = count // 5
    return count


def test_processes_give_the_bytes_of_one(server: FakeServer, tmp_path: Path) -> None:
    task = ["--model", server.url, *TASK]
    assert evalkit(*task, "--out", str(tmp_path / "one")).returncode == 0
    ran = evalkit(*task, "--out", str(tmp_path / "three"), "--procs", "3")
    assert ran.returncode == 0, ran.stderr
    assert files(tmp_path / "three") == files(tmp_path / "one")
    (run,) = (tmp_path / "three").iterdir()
    assert f"run {run} in 3 processes" in ran.stderr
    assert "18/18 episodes" in ran.stderr
    assert f"{run}/: report.html report.md" in ran.stdout


def test_a_process_that_is_killed_is_an_error_and_its_shard_is_gone_on_with(
    server: FakeServer, answers: Answers, tmp_path: Path
) -> None:
    task = ["--model", server.url, *TASK]
    count = begin_after(answers, server, task, tmp_path / "one")
    with started(*task, "--out", str(tmp_path / "three"), "--procs", "3") as process:
        until(lambda: answers.left < 0)
        python = until(lambda: children(process.pid) and process.pid)
        os.kill(children(python)[-1], signal.SIGKILL)
        answers.gate.set()
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "1 of 3 shards did not finish (" in stderr
    assert "killed by SIGKILL" in stderr
    assert "Traceback" not in stderr
    (run,) = (tmp_path / "three").iterdir()
    assert f"python -m evalkit resume {run}" in stderr
    asked = len(server.bodies)
    resumed = evalkit("resume", str(run))
    assert resumed.returncode == 0, resumed.stderr
    assert files(tmp_path / "three") == files(tmp_path / "one")
    assert asked < len(server.bodies) + 1 <= count + 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_all_and_can_be_resumed(
    number: signal.Signals, code: int, server: FakeServer, answers: Answers, tmp_path: Path
) -> None:
    task = ["--model", server.url, *TASK]
    begin_after(answers, server, task, tmp_path / "one")
    with started(*task, "--out", str(tmp_path / "three"), "--procs", "3") as process:
        until(lambda: answers.left < 0)
        those = children(process.pid)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=120)
    answers.gate.set()
    assert (process.returncode, stdout) == (code, "")
    assert "Traceback" not in stderr
    assert len(those) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in those)
    (run,) = (tmp_path / "three").iterdir()
    assert f"stopped; go on with: python -m evalkit resume {run}" in stderr
    assert evalkit("resume", str(run)).returncode == 0
    assert files(tmp_path / "three") == files(tmp_path / "one")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")
def test_processes_end_with_a_parent_that_is_killed(
    server: FakeServer, answers: Answers, tmp_path: Path
) -> None:
    answers.left = 20
    task = ["--model", server.url, *TASK]
    with started(*task, "--out", str(tmp_path / "two"), "--procs", "2") as process:
        until(lambda: answers.left < 0)
        those = children(process.pid)
        process.kill()
    assert len(those) == 2
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in those))
    answers.gate.set()
    (run,) = (tmp_path / "two").iterdir()
    assert evalkit("resume", str(run)).returncode == 0


def test_a_server_that_refuses_leaves_nothing(tmp_path: Path) -> None:
    with FakeServer(lambda _: (400, {"error": {"message": "not like that"}})) as server:
        ran = evalkit("--model", server.url, *TASK, "--out", str(tmp_path), "--procs", "2")
    assert ran.returncode == 2
    assert "the server refuses the request: " in ran.stderr
    assert "not like that" in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", 3, "exit code 3"),
        ("run x\n1/2 episodes\nevalkit: no server\n\n", 1, "no server"),
        ("Traceback\nValueError: what\n", 1, "ValueError: what"),
        ("evalkit: no server\n", -9, "killed by SIGKILL"),
        ("", -200, "killed by signal 200"),
    ],
)
def test_last_words(text: str, code: int, said: str) -> None:
    assert last_words(text, code) == said


def test_who_does_not_end_is_killed() -> None:
    stubborn = "import signal, sys; signal.signal(15, signal.SIG_IGN); print(1, flush=True)\n"
    stubborn += "while True: signal.pause()"
    read, write = os.pipe()
    child = spawn([PYTHON, "-c", stubborn], output=write)
    os.read(read, 1)
    end([child], 0.2)
    assert child.returncode == -signal.SIGKILL
    os.close(read)
    os.close(write)
