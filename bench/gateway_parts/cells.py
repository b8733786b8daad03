"""The loads that are put on every peer, and the order in which that is done.

The gateway runs on core 0; the mock engine and the load generator share core 1.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.gateway_parts.machine import running, usage, wait_until_quiet
from bench.gateway_parts.peers import MOCK_PORT, Launch
from bench.gateway_parts.records import Run
from bench.gateway_parts.target import LOAD_CORE, Engine, Load, LoadFailed, Target
from bench.gateway_parts.tools import Site

GATEWAY_CORE = 0
NOISY_CORES = 0.15
SETTLE_S = 20.0
EVENTS_PER_STREAM = 50
LOW_RATE = 100

PACED = Engine(gap_us=20_000)
SLOW = Engine(delay_us=500_000)
LOADS = (
    Load(name="c1", connections=1, seconds=4, warmup_s=1),
    Load(name="c32", connections=32, seconds=6, warmup_s=1.5),
    Load(name="c256", connections=256, seconds=6, warmup_s=1.5),
    Load(name="low", connections=8, seconds=8, warmup_s=1, options=("-r", str(LOW_RATE))),
    Load(name="64kB", connections=32, seconds=4, warmup_s=1, options=("-B", "65536")),
    Load(name="sse", connections=32, seconds=5, warmup_s=1, options=("-s",)),
    Load(name="paced", connections=256, seconds=6, warmup_s=2, options=("-s",), engine=PACED),
    Load(name="2000", connections=2000, seconds=8, warmup_s=2.5, engine=SLOW, limit_s=90),
    Load(name="6000", connections=6000, seconds=8, warmup_s=4, engine=SLOW, limit_s=120),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long and how often to measure."""

    scale: float
    """Of every load's length."""
    tries: int
    """At most so many for a load while other processes are busy; the quietest counts."""


def run_peer(name: str, launch: Launch, site: Site, pace: Pace, round_: int) -> Run:
    """Start a peer, put every load on it, end it."""
    log = site.scratch / f"{name}.log"
    sitting = _Sitting(launch, site, pace)
    try:
        sitting.hold(log)
    except LoadFailed as failed:
        sitting.problems["start"] = f"{failed}; {_last_line(log)}"
    return Run(
        peer=name,
        version=launch.version,
        round=round_,
        figures=sitting.figures,
        cells=sitting.cells,
        problems=sitting.problems,
    )


class _Sitting:
    """One start of one peer, and what has been found so far."""

    def __init__(self, launch: Launch, site: Site, pace: Pace) -> None:
        self.launch, self.site, self.pace = launch, site, pace
        self.figures: dict[str, float] = {}
        self.cells: dict[str, dict[str, float]] = {}
        self.problems: dict[str, str] = {}

    def hold(self, log: Path) -> None:
        with contextlib.ExitStack() as engines, contextlib.ExitStack() as gateway:
            engine = Engine()
            engine_pid = engines.enter_context(_mock_engine(self.site, engine))
            target = Target(self.launch, self.site, gateway.enter_context(self._started(log)))
            boot_s = target.wait_until_ready(self.launch.boot_s)
            if target.pid is not None:
                self.figures["boot_s"] = round(boot_s, 2)
                self._look_at_rest(target)
            for load in LOADS:
                if load.engine != engine:
                    engines.close()
                    engine = load.engine
                    engine_pid = engines.enter_context(_mock_engine(self.site, engine))
                self._measure(target, load, engine_pid)
            if target.pid is not None:
                time.sleep(1)
                self.figures["rss_after_mb"] = round(usage(target.pid).rss_mb, 1)

    @contextlib.contextmanager
    def _started(self, log: Path) -> Iterator[int | None]:
        launch = self.launch
        if not launch.command:
            yield None
            return
        with running(
            launch.command,
            core=GATEWAY_CORE,
            port=launch.port,
            cwd=launch.cwd,
            log=log,
            env=launch.env,
        ) as process:
            yield process.pid

    def _look_at_rest(self, target: Target) -> None:
        self.figures["anonymous_status"] = target.ask(None)
        if self.launch.metrics:
            self.figures["metrics_status"] = target.metrics_status()
        time.sleep(1)
        self.figures["rss_idle_mb"] = round(usage(target.pid).rss_mb, 1)
        try:
            self.figures["kb_per_idle"] = round(target.hold_idle(), 2)
        except LoadFailed as failed:
            self.problems["idle"] = str(failed)

    def _measure(self, target: Target, load: Load, engine_pid: int) -> None:
        """Measure until the machine was quiet meanwhile; keep the quietest."""
        for again in range(self.pace.tries):
            if again:
                wait_until_quiet(SETTLE_S)
            try:
                target.wait_until_ready(self.launch.boot_s)
                cell = target.put_on(load, self.pace.scale, engine_pid)
            except LoadFailed as failed:
                self.problems.setdefault(load.name, str(failed))
                return
            best = self.cells.get(load.name)
            if best is None or cell["foreign"] < best["foreign"]:
                self.cells[load.name] = cell
            if cell["foreign"] <= NOISY_CORES:
                return


@contextlib.contextmanager
def _mock_engine(site: Site, engine: Engine) -> Iterator[int]:
    """Run the mock engine; yield its process id once it answers."""
    numbers = (MOCK_PORT, EVENTS_PER_STREAM, engine.gap_us, engine.delay_us)
    command = [site.program("mockd"), *map(str, numbers)]
    log = site.scratch / "mockd.log"
    with running(
        command, core=LOAD_CORE, port=MOCK_PORT, cwd=site.scratch, log=log, env={}
    ) as process:
        ready = Launch(port=MOCK_PORT, version="", cwd=site.scratch)
        Target(ready, site, None).wait_until_ready(5)
        yield process.pid


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").split("\n") if log.exists() else []
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
