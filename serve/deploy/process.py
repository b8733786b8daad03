"""A command in a container: started, waited for, watched and stopped, its words passed on.

Knows neither Modal nor vLLM: it has a command, a question that says whether it is ready, and
somebody to tell. Threads, because the runtime of a container owns its main thread.
"""

import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from serve.errors import ContainerFailed

Say = Callable[[str], None]
"""Takes a line of the container's log."""

_POLL_S = 0.1
_TAIL_LINES = 30
_KEPT_LINES = 400
_TELLING = re.compile(r"^(error|[\w.]*Error)\b")


class Process:
    """One command. Its output goes line by line to `say`; the last lines are remembered."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], say: Say) -> None:
        self.argv = tuple(argv)
        self._env = dict(env)
        self._say = say
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._child: subprocess.Popen[str] | None = None
        self._pump: threading.Thread | None = None
        self._stopping = False

    def start(self) -> None:
        """Start the command."""
        self._stopping = False
        self._lines.clear()
        self._child = subprocess.Popen(  # noqa: S603  # our own command
            self.argv,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._pump = threading.Thread(target=self._pass_on, args=(self._child,), daemon=True)
        self._pump.start()

    def wait_ready(self, is_ready: Callable[[], bool], within_s: float) -> float:
        """Return the seconds until `is_ready`; raise ContainerFailed with the telling lines."""
        started_s = time.monotonic()
        while not is_ready():
            passed_s = time.monotonic() - started_s
            self.ensure_alive()
            if passed_s > within_s:
                raise ContainerFailed(
                    f"not ready within {within_s:.0f} s; the end of its log:\n{self.tail()}"
                )
            time.sleep(_POLL_S)
        return time.monotonic() - started_s

    def ensure_alive(self) -> None:
        """Raise ContainerFailed if the command ended without being stopped."""
        code = self.code
        if code is None or self._stopping:
            return
        self._hear_out()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        raise ContainerFailed(
            f"`{' '.join(self.argv[1:4])}` ended by itself ({how}); the end of its log:\n"
            f"{self.tail()}"
        )

    @property
    def code(self) -> int | None:
        """The exit code, or minus the signal, of a command that has ended."""
        return None if self._child is None else self._child.poll()

    def stop(self, within_s: float) -> bool:
        """SIGTERM, then SIGKILL to all of its session; return whether SIGTERM was enough."""
        child, self._stopping = self._child, True
        if child is None:
            return True
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return False
        finally:
            self._hear_out()
        return True

    def tail(self) -> str:
        """Return what the log says of a death: from its last error on, or its last lines."""
        lines = list(self._lines)
        telling = [number for number, line in enumerate(lines) if _TELLING.match(line)]
        first = telling[-1] if telling else len(lines)
        chosen = lines[first:] if telling and len(lines) - first <= _TAIL_LINES else lines
        return "\n".join(f"  {line}" for line in chosen[-_TAIL_LINES:]) or "  (nothing)"

    def _hear_out(self) -> None:
        """Wait for the last lines; whoever else has the pipe open may keep them from ending."""
        if self._pump is not None:
            self._pump.join(timeout=2.0)

    def _pass_on(self, child: "subprocess.Popen[str]") -> None:
        assert child.stdout is not None
        with child.stdout as output:
            for line in output:
                self._lines.append(line.rstrip("\n"))
                self._say(line.rstrip("\n"))


class Rounds:
    """Calls, each second, everything that has to be done while a container is up.

    What fails is said once for each new reason, and tried again in the next round: none of it is
    worth the requests that the container is answering.
    """

    def __init__(self, say: Say, every_s: float = 1.0) -> None:
        self._say = say
        self._every_s = every_s
        self._duties: list[tuple[str, Callable[[], None]]] = []
        self._said: dict[str, str] = {}
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, name: str, duty: Callable[[], None]) -> None:
        """Do this in each round from now on."""
        self._duties.append((name, duty))

    def start(self) -> None:
        """Begin the rounds, in a thread of their own."""
        self._thread = threading.Thread(target=self._run, daemon=True, name="rounds")
        self._thread.start()

    def stop(self) -> None:
        """End the rounds; return when the one that runs is over, or after 10 s."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10.0)

    def once(self) -> None:
        """Make one round."""
        for name, duty in self._duties:
            try:
                duty()
            # Invariant: a duty that fails leaves the container as it was, and is tried again.
            except Exception as error:  # noqa: BLE001
                self._complain(name, " ".join(str(error).split()))
            else:
                self._said.pop(name, None)

    def _complain(self, name: str, reason: str) -> None:
        if self._said.get(name) != reason:
            self._said[name] = reason
            self._say(f"{name} failed and is tried again: {reason}")

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self.once()


class LogFiles:
    """What engines write into files: each round passes on what is new, line by line."""

    def __init__(self, folder: Path, say: Say) -> None:
        self._folder = folder
        self._say = say
        self._read: dict[Path, int] = {}

    def look(self) -> None:
        """Pass on the whole lines that came since the last look."""
        for path in sorted(self._folder.glob("*.log")):
            with path.open("rb") as file:
                start = self._read.get(path, 0)
                if file.seek(0, os.SEEK_END) < start:
                    start = 0  # an engine that was started again writes from the beginning
                file.seek(start)
                new = file.read()
            whole = new.rfind(b"\n") + 1
            self._read[path] = start + whole
            for line in new[:whole].decode(errors="replace").splitlines():
                self._say(f"{path.stem} | {line}")
