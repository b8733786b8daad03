"""The first process of a container: nothing that it started outlives it. Standard library only.

`python -I -S init.py COMMAND...` runs the command as a container runtime does. Standard input is a
lifeline held by the control plane: when it ends (a kill, or the test process died with -9), every
descendant is killed with -9, wherever it has hidden: this process is their subreaper. SIGTERM,
SIGINT and SIGUSR1 go on to the command. When the command ends, so does all that it left behind.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main(argv: list[str]) -> int:
    """Run the command; return its exit code, or 128 + the number of the signal that ended it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in _PASSED_ON:  # what runs in the background may have been told to ignore some
        signal.signal(number, signal.SIG_DFL)
    command = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    for number in _PASSED_ON:
        signal.signal(number, lambda received, _frame: command.send_signal(received))
    _wait_for_either(command)
    code = command.poll()
    _kill_descendants()
    if code is None:
        code = -signal.SIGKILL
    return code if code >= 0 else 128 - code


def _wait_for_either(command: subprocess.Popen[bytes]) -> None:
    """Return when the command has ended or the lifeline has."""
    while command.poll() is None:
        readable, _, _ = select.select([0], [], [], _POLL_S)
        if readable and not os.read(0, 4096):
            return
        _reap_strangers(command.pid)


def _reap_strangers(command: int) -> None:
    """Collect orphans that have ended, but not the command: it is its Popen's."""
    for pid in _children(os.getpid()):
        if pid != command:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue


def _kill_descendants() -> None:
    """SIGKILL until none is left: a process that forks meanwhile is found in the next round."""
    while pids := _descendants(os.getpid()):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap_all()
        time.sleep(0.005)


def _reap_all() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for child in _children(pid):
        found += [child, *_descendants(child)]
    return found


def _children(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:  # it has just gone
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
