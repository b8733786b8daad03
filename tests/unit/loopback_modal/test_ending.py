"""Nothing outlives the loopback: not its containers, nor theirs, even when the test is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

INIT = Path(__file__).parents[2] / "loopback_modal" / "init.py"

# A command that leaves a grandchild in a session of its own, says its pid, and waits.
COMMAND = """
import subprocess, sys, time
program = "import os, time; os.setsid(); time.sleep(600)"
print(subprocess.Popen([sys.executable, "-c", program]).pid, flush=True)
time.sleep(600)
"""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def _gone(pid: int, within_s: float = 30.0) -> bool:
    deadline = time.monotonic() + within_s
    while _alive(pid) and time.monotonic() < deadline:
        os.sched_yield()
    return not _alive(pid)


def _start(*argv: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_the_end_of_the_lifeline_kills_every_descendant() -> None:
    process, grandchild = _start("-I", "-S", str(INIT), sys.executable, "-c", COMMAND)
    assert process.stdin is not None
    with process:
        process.stdin.close()
        assert process.wait(30) == 128 + signal.SIGKILL
    assert _gone(grandchild)


def test_sigterm_goes_on_to_the_command_and_its_end_ends_all() -> None:
    process, grandchild = _start("-I", "-S", str(INIT), sys.executable, "-c", COMMAND)
    with process:
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert _gone(grandchild)


def test_containers_die_with_a_killed_test_process(tmp_path: Path) -> None:
    program = f"""
import subprocess, sys
holder = subprocess.Popen(
    [sys.executable, "-I", "-S", {str(INIT)!r}, sys.executable, "-c", {COMMAND!r}],
    stdin=subprocess.PIPE, start_new_session=True,
)
holder.wait()
"""
    process, grandchild = _start("-c", program)
    with process:
        process.kill()
    assert _gone(grandchild)
