"""Shards on this machine: a process each, which ends when its parent does."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TextIO

from evalkit.config import Concurrency
from evalkit.record.follow import Follower
from evalkit.record.rundir import RunDir
from evalkit.record.tally import ArmTally, Tally
from evalkit.sharded import Ended, Task
from evalkit.show.progress import progress

POLL_S = 0.1
GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1
# Before any fork: nothing may be loaded between a fork and its exec.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Processes:
    """A fleet of one process for each shard, on this machine."""

    name = "local"

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = environ

    async def play(self, task: Task, show: TextIO | None) -> Sequence[Ended]:
        """Play shards, showing what all of them have done; all end with this one."""
        children: dict[RunDir, subprocess.Popen[bytes]] = {}
        if show is not None:
            show.write(f"run {task.run.path} in {len(task.todo)} processes\n")
        try:
            for shard in task.todo:
                children[shard] = self._spawn(shard, task)
            await _watched(task, children, show)
        except asyncio.CancelledError:
            if show is not None:
                go_on = f"python -m evalkit resume {task.run.path}"
                show.write(f"stopped; go on with: {go_on}\n")
            raise
        finally:
            end(list(children.values()), GRACE_S)
        return [
            Ended(shard=shard, said=_said(shard, child.returncode), usage=child.returncode == 2)
            for shard, child in children.items()
            if shard.manifest()["finished_at"] is None
        ]

    def _spawn(self, shard: RunDir, task: Task) -> subprocess.Popen[bytes]:
        argv = resume_command(shard.path, task.concurrency(shard), task.options)
        with _log(shard).open("wb") as log:
            return spawn(argv, environ=self._environ, output=log.fileno())


def resume_command(shard: Path, concurrency: Concurrency, options: Sequence[str]) -> list[str]:
    """Return the command that plays a shard."""
    module = [sys.executable, "-m", "evalkit", "resume"]
    return [*module, str(shard), *options, "--concurrency", str(concurrency)]


def spawn(
    argv: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    output: int | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that a Ctrl-C reaches only its parent.

    On Linux the kernel tells it to stop when its parent is gone, even by `kill -9`.
    """
    parent = os.getpid()

    def prepare() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return subprocess.Popen(  # noqa: S603 - our own command
        argv,
        env=None if environ is None else dict(environ),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=prepare,  # noqa: PLW1509 - it calls nothing that another thread may hold
    )


def end(
    children: Sequence[subprocess.Popen[bytes]],
    grace_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """End processes by SIGTERM and, where that is not enough in `grace_s`, by SIGKILL."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline_s = clock() + grace_s
    for child in children:
        try:
            child.wait(max(0.0, deadline_s - clock()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def last_words(text: str, code: int) -> str:
    """Say in a line why a command ended, from what it printed and its exit code."""
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    lines = [line for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("evalkit: ")] or lines
    return told[-1].removeprefix("evalkit: ") if told else f"exit code {code}"


async def _watched(
    task: Task, children: Mapping[RunDir, subprocess.Popen[bytes]], show: TextIO | None
) -> None:
    """Wait until all children have ended, and show what they do."""
    manifest = task.run.manifest()
    arms = [arm["name"] for arm in manifest["arms"]]
    total = len(task.config.seeds) * task.config.k * len(arms)
    tally = Tally(total_episodes=total, arms={arm: ArmTally() for arm in arms})
    follower = Follower(task.shards, tally)
    async with AsyncExitStack() as stack:
        if show is not None:
            await stack.enter_async_context(progress(tally, show))
        while any(child.poll() is None for child in children.values()):
            await asyncio.sleep(POLL_S)
            follower.look()
        follower.look()


def _log(shard: RunDir) -> Path:
    """Return where what a shard's process prints goes."""
    return shard.path.with_suffix(".log")


def _said(shard: RunDir, code: int) -> str:
    return last_words(_log(shard).read_text("utf-8", "replace"), code)
