"""Stands in for vLLM: `stubborn.py PIDS PORT [deaf]` serves a FakeEngine and leaves children about.

It starts a child, which starts another in a session of its own; writes all three pids into the
file PIDS; then serves, or, deaf, only sleeps and ignores SIGTERM.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from serve.testing.__main__ import main

_SLEEPER = "import time; time.sleep(3600)"
_FORKER = f"""
import subprocess, sys, time
argv = [sys.executable, "-c", {_SLEEPER!r}]
print(subprocess.Popen(argv, start_new_session=True).pid, flush=True)
time.sleep(3600)
"""


def leave_children() -> list[int]:
    child = subprocess.Popen([sys.executable, "-c", _FORKER], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return [os.getpid(), child.pid, int(child.stdout.readline())]


def publish(pids: list[int], path: Path) -> None:
    part = path.with_suffix(".part")
    part.write_text(" ".join(map(str, pids)))
    part.rename(path)


if __name__ == "__main__":
    pids_file, port, *deaf = sys.argv[1:]
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    publish(leave_children(), Path(pids_file))
    if deaf:
        signal.pause()
    else:
        main(["--port", port])
