"""Processes that a run starts: none outlives its parent, and each is ended within bounds.

On Linux the kernel itself signals a child when its parent is gone, even by `kill -9`
(PR_SET_PDEATHSIG; strictly: when the parent's thread that started it ends, so start children from
the main thread). Elsewhere a child outlives a parent that was killed so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.05
_RESET = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Before any fork: nothing may be loaded between a fork and its exec.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

Child = subprocess.Popen[bytes]


def die_with_parent(death_signal: signal.Signals, parent: int) -> None:
    """Have this process signalled when `parent`, its parent, ends; at once if it is gone.

    A process that a launcher started calls it with `os.getppid()`, taken first thing.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    death_signal: signal.Signals,
    output: IO[bytes] | None = None,
    inherit: Sequence[int] = (),
    cores: Collection[int] | None = None,
) -> Child:
    """Start a process in a session of its own, so that a Ctrl-C reaches only its parent.

    `output` takes what it prints (None: where the parent prints), `inherit` are descriptors that
    it keeps open, `cores` are those that it may run on.
    """
    parent = os.getpid()

    def prepare() -> None:
        for number in _RESET:
            signal.signal(number, signal.SIG_DFL)
        if cores is not None:
            os.sched_setaffinity(0, cores)
        die_with_parent(death_signal, parent)

    return subprocess.Popen(  # noqa: S603  # the commands are our own
        argv,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=tuple(inherit),
        start_new_session=True,
        preexec_fn=prepare,  # noqa: PLW1509  # the parent is single-threaded
    )


def stop(child: Child, grace_s: float, sleep: Callable[[float], None] = time.sleep) -> int:
    """End a child by SIGTERM and, where that is not enough in `grace_s`, by SIGKILL.

    Returns its exit code.
    """
    if child.poll() is None:
        child.terminate()
        deadline_s = time.monotonic() + grace_s
        while child.poll() is None and time.monotonic() < deadline_s:
            sleep(_POLL_S)
    return kill(child)


def kill(child: Child) -> int:
    """End a child, and what else is in its session's first group, by SIGKILL; return its code."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def describe(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def tail(log: Path, lines: int = 15, width: int = 200) -> str:
    """Return a log's last lines that are not empty, each cut to `width`."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"(no log: {error.strerror})"
    telling = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(line[:width] for line in telling[-lines:]) or "(nothing)"
