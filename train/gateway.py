"""A gateway of the run's own: `python -m serve up`, started, watched and stopped.

It writes to a log of its own, and what it says there is how its progress is known, so that no pipe
can fill up. Started again it takes the same port and the same state, so that clients that wait
find it where it was, with the versions that were published.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from train import children
from train.config import Channel, TrainConfig
from train.errors import BadConfig, GatewayLost

_POLL_S = 0.1
_GRACE_S = 20.0
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as the largest rank of adapters."""
_DEFAULT_RANK = 16
_SHARED = 0.5
"""Of a GPU's memory for the engine, where the learner computes on the same one."""

Say = Callable[[str], None]


def serve_command(config: TrainConfig, state: Path) -> tuple[str, ...]:
    """Return the command line that serves the run's model, but for the port."""
    model, gateway = config.model, config.gateway
    argv = [sys.executable, "-m", "serve", "up", "--model", model.path]
    argv += ["--name", model.name or Path(model.path).name]
    argv += ["--host", "127.0.0.1", "--state", str(state), "--replicas", str(gateway.replicas)]
    if gateway.max_model_len is not None:
        argv += ["--max-model-len", str(gateway.max_model_len)]
    extra = list(gateway.engine_args)
    share = gateway.gpu_share or _default_share(config)
    if share is not None:
        extra = ["--gpu-memory-utilization", f"{share:g}", *extra]
    if model.lora is not None and config.publish.channel is not Channel.FULL:
        argv.append("--lora")
        if model.lora.r > _DEFAULT_RANK:
            extra = ["--max-lora-rank", str(_rank(model.lora.r)), *extra]
    # The port goes before the words for vLLM.
    return (*argv, "--port", "{port}", *(["--", *extra] if extra else []))


class OwnGateway:
    """A gateway in a process of its own, on a port that it keeps."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str],
        inherit: Sequence[int] = (),
        grace_s: float = _GRACE_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`command` has `{port}` where the port belongs; `inherit` are descriptors it keeps."""
        self.url = ""
        """http://HOST:PORT/v1, once it is known; it stays."""
        self.starts = 0
        """How often it was started."""
        self.is_ready = False
        """Whether it has said so since its last start."""
        self._command, self._log, self._env = tuple(command), log, env
        self._inherit, self._grace_s = tuple(inherit), grace_s
        self._sleep, self._clock = sleep, clock
        self._child: subprocess.Popen[bytes] | None = None
        self._heard_bytes = 0

    @property
    def pid(self) -> int | None:
        """Its process, while there is one."""
        return self._child.pid if self._child is not None else None

    def start(self) -> None:
        """Start it, the second time on the port that it had."""
        port = self.url.removesuffix("/v1").rpartition(":")[2] or "0"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as output:
            self._heard_bytes = output.seek(0, os.SEEK_END)
            self._child = children.spawn(
                [word.replace("{port}", port) for word in self._command],
                env=self._env,
                death_signal=signal.SIGTERM,
                output=output,
                inherit=self._inherit,
            )
        self.starts += 1
        self.is_ready = False

    def poll(self, say: Say) -> int | None:
        """Take in what it has said, pass on how its start goes; return its exit code, if any."""
        code = None if self._child is None else self._child.poll()
        if not self.is_ready:
            self._listen(say)
        return code

    def wait_ready(
        self, timeout_s: float, say: Say, stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Return True when it is ready, False as soon as `stop` says so.

        Raises:
            BadConfig: it cannot do what it was asked.
            GatewayLost: it died or took longer than `timeout_s`.

        """
        deadline_s = self._clock() + timeout_s
        while True:
            if stop():
                return False
            code = self.poll(say)
            if self.is_ready and code is None:
                return True
            if code is not None:
                raise self.died(code)
            if self._clock() >= deadline_s:
                raise GatewayLost(
                    f"the gateway was not ready within {timeout_s:.0f} s (gateway.wait_s); "
                    f"the end of {self._log}:\n{children.tail(self._log)}"
                )
            self._sleep(_POLL_S)

    def died(self, code: int) -> BadConfig | GatewayLost:
        """Return the error that says how it ended."""
        said = children.tail(self._log)
        if code == 2:
            wrong = [line for line in said.splitlines() if line.startswith("error: ")]
            if wrong:
                return BadConfig(f"the gateway refuses: {wrong[-1].removeprefix('error: ')}")
        return GatewayLost(
            f"the gateway ended by itself ({children.describe(code)}); "
            f"the end of {self._log}:\n{said}"
        )

    def stop(self) -> None:
        """End it: by SIGTERM, so that its engines end too, then by SIGKILL."""
        if self._child is not None:
            children.stop(self._child, self._grace_s, self._sleep)
            self._child = None

    def kill(self) -> None:
        """End it at once; its engines' keepers end them."""
        if self._child is not None:
            children.kill(self._child)
            self._child = None

    def _listen(self, say: Say) -> None:
        """Take in the lines that have come since the last time."""
        with self._log.open("rb") as log:
            log.seek(self._heard_bytes)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._heard_bytes += len(whole) + len(newline)
        for line in whole.split(b"\n"):
            self._take(line.decode("utf-8", "replace").strip(), say)

    def _take(self, line: str, say: Say) -> None:
        if line.startswith(("listening on ", "base URL")):
            words = line.replace(";", " ").split()
            self.url = next(word for word in words if word.startswith("http"))
        elif line.startswith("starting:"):
            say(f"gateway {line}")
        elif line.startswith("ready"):
            self.is_ready = True


def _default_share(config: TrainConfig) -> float | None:
    return _SHARED / config.gateway.replicas if config.compute.gpu_count == 1 else None


def _rank(r: int) -> int:
    return next(rank for rank in _RANKS if rank >= r)
