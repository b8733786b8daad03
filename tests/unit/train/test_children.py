"""Processes of a run: none outlives its parent, each ends within bounds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.train.fakes import PYTHON, alive, until
from train.children import describe, kill, spawn, stop, tail

DEAF = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").close()
time.sleep(60)
"""


def test_one_that_listens_ends_by_sigterm(tmp_path: Path) -> None:
    child = spawn(["sleep", "60"], env=os.environ, death_signal=signal.SIGKILL)
    assert os.getsid(child.pid) == child.pid
    assert stop(child, 10.0) == -signal.SIGTERM
    assert stop(child, 10.0) == -signal.SIGTERM


def test_one_that_is_deaf_ends_by_sigkill(tmp_path: Path) -> None:
    up = tmp_path / "up"
    child = spawn([*PYTHON, "-c", DEAF, str(up)], env=os.environ, death_signal=signal.SIGKILL)
    until(up.exists)
    began_s = time.monotonic()
    assert stop(child, 0.3) == -signal.SIGKILL
    assert time.monotonic() - began_s >= 0.3


def test_killing_takes_the_group_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = spawn(
        ["sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait"],
        env=os.environ,
        death_signal=signal.SIGKILL,
    )
    pid = int(until(lambda: pid_file.exists() and pid_file.read_text()))
    assert kill(child) == -signal.SIGKILL
    until(lambda: not alive(pid))


def test_it_runs_on_its_cores_with_its_environment(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    program = "import os; print(os.sched_getaffinity(0), os.environ['TOLD'])"
    log = tmp_path / "log"
    with log.open("wb") as output:
        child = spawn(
            [*PYTHON, "-c", program],
            env=os.environ | {"TOLD": "x"},
            death_signal=signal.SIGKILL,
            output=output,
            cores={core},
        )
    assert child.wait() == 0
    assert log.read_text() == f"{{{core}}} x\n"


PARENT = """
import os, signal, sys, time
from train.children import spawn
child = spawn(sys.argv[2:], env=os.environ, death_signal=signal.Signals(int(sys.argv[1])))
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("death", [signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_a_parent_that_is_killed(death: signal.Signals) -> None:
    argv = [sys.executable, "-c", PARENT, str(int(death)), "sleep", "60"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    until(lambda: not alive(pid), 2.0)


ORPHAN = """
import os, signal, sys
from train.children import die_with_parent
die_with_parent(signal.SIGKILL, 1 << 30)
print("alive")
"""


def test_one_whose_parent_is_gone_already_ends_at_once() -> None:
    ran = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (-signal.SIGKILL, "")


@pytest.mark.parametrize(
    ("code", "said"), [(3, "exit code 3"), (-9, "killed by SIGKILL"), (-99, "killed by signal 99")]
)
def test_ends_have_names(code: int, said: str) -> None:
    assert describe(code) == said


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == "(no log: No such file or directory)"
    log.write_text("\n \n")
    assert tail(log) == "(nothing)"
    log.write_text("".join(f"{n}{'x' * 300}\n\n" for n in range(20)))
    assert [line[:2] for line in tail(log, lines=3).splitlines()] == ["17", "18", "19"]
    assert len(tail(log, lines=1)) == 200
