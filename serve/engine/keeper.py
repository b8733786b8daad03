"""Runs one command and lets nothing it started outlive it. Standard library only; run by path.

`python -I -S keeper.py GRACE_S COMMAND...` is the parent of an engine. Its standard input is a
lifeline held by the launcher: when that ends, because the launcher said so, crashed or was killed
with -9, the engine gets SIGTERM, GRACE_S to leave, and then every descendant SIGKILL. A descendant
cannot escape by forking or by a session of its own: orphans fall to the keeper, which is their
subreaper. Should the keeper itself be killed, the kernel sends the engine SIGTERM.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05


def main(argv: list[str]) -> int:
    """Run the command; return its exit code, or 128 + the number of the signal that ended it."""
    grace_s, command = float(argv[0]), argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    engine = subprocess.Popen(  # noqa: S603  # running what it was told is what a keeper is for
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: _prepare(libc),  # noqa: PLW1509  # single-threaded here
    )
    _wait_for_either(engine)
    if engine.poll() is None:
        engine.terminate()
        deadline = time.monotonic() + grace_s
        while engine.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    code = engine.poll()
    _kill_descendants()
    if code is None:
        code = -signal.SIGKILL
    return code if code >= 0 else 128 - code


def _prepare(libc: ctypes.CDLL) -> None:
    """In the engine, before it is: default signals, and SIGTERM when the keeper dies."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _wait_for_either(engine: subprocess.Popen[bytes]) -> None:
    """Return when the engine has ended or the lifeline has."""
    while engine.poll() is None:
        readable, _, _ = select.select([0], [], [], _POLL_S)
        if readable and not os.read(0, 4096):
            return


def _kill_descendants() -> None:
    """Kill and reap until there is no child left; orphaned grandchildren become children."""
    while True:
        for pid in _descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(_POLL_S)
        except ChildProcessError:
            return


def _descendants(root: int) -> list[int]:
    """Return the pids of all processes below `root`, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_bytes()
        except OSError:
            continue
        parent = int(stat.rpartition(b")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
