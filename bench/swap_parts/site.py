"""A gateway in a process of its own, who publishes to it, and evaluations that are pinned."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import MappingProxyType

import yaml

import evalkit
from serve.client import AdminClient
from serve.wire import PolicyKind, Probes, SwapMode

NAME = "tiny"
ENV = "key_door"
_ENV_ARGS = MappingProxyType({"size": 3, "max_turns": 6})
_READY_S = 300.0
_STOP_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """A version on its way, on the clock of the event loop."""

    version: int
    started_s: float
    """When it was handed over."""
    durable_s: float
    """When the gateway had it on disk."""
    live_s: float
    """When every replica was seen to serve it."""


@dataclass(slots=True, kw_only=True)
class Pinned:
    """What an evaluation of one version found, played again and again with the same seeds."""

    version: int
    model: str
    rounds: int = 0
    episodes: int = 0
    turns: int = 0
    errors: int = 0
    """Episodes that something else than the model ended."""
    labels: set[str] = field(default_factory=set)
    """X-Policy-Version of its turns."""
    texts: list[tuple[str, ...]] = field(default_factory=list)
    """What was done in each round: all the same if nobody else's weights answered."""

    @property
    def differing(self) -> int:
        """Rounds that were played otherwise than the first."""
        return sum(text != self.texts[0] for text in self.texts)


@contextlib.contextmanager
def gateway(
    boot: Path, folder: Path, engine: Mapping[str, object], **rules: object
) -> Iterator[int]:
    """Run `python -m serve up`; yield its port when its engine answers."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"model": str(boot), "name": NAME, "port": 0, "state": str(folder / "state")}
    config = folder / "serve.yaml"
    config.write_text(yaml.safe_dump(told | {"engine": dict(engine), "rules": rules}))
    command = [sys.executable, "-m", "serve", "up", "--config", str(config)]
    # A core for the engine, and the rest for those who ask.
    core = str(max(os.sched_getaffinity(0)))
    defaults = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": core}
    with (
        (folder / "gateway.log").open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=defaults | os.environ
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("base URL"):
                    port = int(line.rpartition(":")[2].partition("/")[0])
                if line.startswith("ready"):
                    break
            else:
                raise RuntimeError(f"no gateway:\n{(folder / 'gateway.log').read_text()}")
            yield port
        finally:
            process.terminate()
            try:
                process.communicate(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def publish(
    port: int,
    folder: Path,
    version: int,
    probes: Probes,
    kind: PolicyKind,
) -> Swap:
    """Publish one version, and return when it is live."""
    with AdminClient(f"http://127.0.0.1:{port}") as admin:
        started_s = monotonic()
        parent = 1 if kind is PolicyKind.LORA else None
        swap = SwapMode.KEEP
        made = admin.publish(NAME, folder, kind=kind, parent=parent, swap=swap, probes=probes)
        if made.version != version:
            raise RuntimeError(f"expected version {version}, the gateway made {made.version}")
        durable_s = monotonic()
        admin.wait_ready(NAME, version, timeout_s=_READY_S)
        return Swap(version=version, started_s=started_s, durable_s=durable_s, live_s=monotonic())


def evaluate(port: int, pinned: Pinned, out: Path) -> None:
    """Play one round of a pinned evaluation, without a second try for any request."""
    run = evalkit.evaluate(
        f"http://127.0.0.1:{port}/v1#{pinned.model}",
        ENV,
        env_args=dict(_ENV_ARGS),
        strategy="FULL_HISTORY",
        seeds="0:4",
        max_tokens=12,
        temperature=0.0,
        concurrency=2,
        attempts=1,
        out=str(out),
    )
    turns = run.turns()
    pinned.rounds += 1
    pinned.turns += len(turns)
    pinned.episodes += len(run.episodes())
    pinned.errors += sum(episode["failure"] != "" for episode in run.episodes())
    pinned.labels |= {turn["policy_version"] for turn in turns}
    pinned.texts.append(tuple(turn["action"] + turn["prompt_digest"] for turn in turns))


async def evaluating(port: int, pinned: Pinned, out: Path, is_over: Callable[[], bool]) -> None:
    """Play rounds until all versions were published, at least one."""
    while not (pinned.rounds and is_over()):
        await asyncio.to_thread(evaluate, port, pinned, out)
