"""What processes take of this machine, read from /proc; starting them on one core and ending them.

Knows no peer and no load.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
QUIET_CORES = 0.15
STOP_S = 8.0


class PortTaken(Exception):
    """Somebody listens already where one of ours was to listen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the processes of one session take."""

    cpu_s: float
    rss_mb: float


def allow_many_files() -> None:
    """Let every child open as many files as the machine grants: 6,000 requests need 12,000."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def busy_s() -> float:
    """Return the CPU seconds that all cores have worked since the machine started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS_PER_S


def usage(session: int | None) -> Usage:
    """Return what a session takes: the process that leads it and all that came of it."""
    ticks = pages = 0
    for folder in Path("/proc").iterdir():
        if session is None or not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # a process may end while it is looked at
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
                pages += int((folder / "statm").read_text().split()[1])
    return Usage(cpu_s=ticks / TICKS_PER_S, rss_mb=pages * PAGE_BYTES / 1e6)


def wait_until_quiet(limit_s: float) -> None:
    """Wait until hardly anything runs, at most so long."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        before = busy_s()
        time.sleep(1.5)
        if (busy_s() - before) / 1.5 < QUIET_CORES:
            return


def on_core(core: int, command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` on one core."""
    return ["taskset", "-c", str(core), *command]


@contextlib.contextmanager
def running(
    command: Sequence[str], *, core: int, port: int, cwd: Path, log: Path, env: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a session of its own; end the session, and only that, afterwards."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise PortTaken(f"port {port} must be free, but somebody listens there: end that first")
    with log.open("ab") as out:
        process = subprocess.Popen(
            on_core(core, command),
            cwd=cwd,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, sign)
            process.wait(STOP_S)
    process.wait(STOP_S)
