"""What a run costs: estimated before, metered while it runs, held to its budget.

Money is seconds times the rate of the config's `compute`. It leaves out what happens outside the
run's own process (a container's start, volumes, the serving app): the bill is Modal's.
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from evalkit.record.rundir import write_whole
from train.config import TrainConfig, load
from train.errors import BadConfig, SaveFailed
from train.target import ComputeSection

FORMAT = "train-costs/1"
RATES_FORMAT = "train-rates/1"
_HOUR_S = 3600.0
_WRITE_EVERY_S = 10.0
_LEAST_ROWS = 3
_NEWEST_RUNS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """USD per second."""

    gpu: Mapping[str, float]
    other_names: Mapping[str, str]
    cpu_core: float
    memory_gib: float
    broad: float
    """How much more a region costs that has several zones."""
    narrow: float
    source: str
    assumed_step_s: float
    start_s: float

    def usd_per_s(self, compute: ComputeSection) -> float | None:
        """Return what a second of all machines costs; None where the GPU has no known price."""
        gpu = 0.0
        if compute.gpu_type is not None:
            name = self.other_names.get(compute.gpu_type, compute.gpu_type)
            if name not in self.gpu:
                return None
            gpu = self.gpu[name] * compute.gpu_count
        memory = self.memory_gib * compute.memory_mib / 1024
        factor = 1.0
        if compute.region is not None:
            factor = self.narrow if "-" in compute.region else self.broad
        return (gpu + self.cpu_core * compute.cpu + memory) * factor * compute.nodes

    def of_account(self, told: Mapping[str, Any]) -> Rates:
        """Return these with the rates of `Workspace.billing.rates()`, USD per hour, over them."""
        names = {_plain(name): name for name in self.gpu}
        gpu, other = dict(self.gpu), {"cpu": self.cpu_core, "mem": self.memory_gib}
        known = 0
        for key, value in told.items():
            kind, hour, rest = key.lower().partition("_hour_cost")
            if not hour:
                continue
            usd_per_s = float(value) / _HOUR_S
            if kind == "gpu":
                plain = _plain(rest)
                gpu[names.get(plain, rest.strip("_").upper().replace("_", "-"))] = usd_per_s
                known += 1
            elif kind[:3] in other and not rest:
                other[kind[:3]] = usd_per_s
                known += 1
        if not known:
            return self
        return Rates(
            gpu=gpu,
            other_names=self.other_names,
            cpu_core=other["cpu"],
            memory_gib=other["mem"],
            broad=self.broad,
            narrow=self.narrow,
            source="the account's own rates",
            assumed_step_s=self.assumed_step_s,
            start_s=self.start_s,
        )


@cache
def list_rates() -> Rates:
    """Return the table of list prices that comes with train."""
    told = yaml.safe_load((files("train") / "configs" / "rates.yaml").read_text("utf-8"))
    if told["format"] != RATES_FORMAT:
        raise ValueError(f"rates.yaml: expected format {RATES_FORMAT}")
    return Rates(
        gpu=told["gpu"],
        other_names=told["other_names"],
        cpu_core=told["cpu_core"],
        memory_gib=told["memory_gib"],
        broad=told["region"]["broad"],
        narrow=told["region"]["narrow"],
        source=f"list prices of {told['dated']}",
        assumed_step_s=told["assumed_step_s"],
        start_s=told["start_s"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was used up, or will be."""

    seconds: float
    gpu_hours: float
    usd: float | None
    """None where no price is known."""

    @classmethod
    def of(cls, compute: ComputeSection, seconds: float, rates: Rates) -> Spent:
        """Return what some seconds of this hardware are worth."""
        rate = rates.usd_per_s(compute)
        return cls(
            seconds=seconds,
            gpu_hours=compute.gpu_count * compute.nodes * seconds / _HOUR_S,
            usd=None if rate is None else rate * seconds,
        )

    def __str__(self) -> str:
        money = "an unknown price" if self.usd is None else f"{self.usd:.2f} USD"
        return f"{self.gpu_hours:.2f} GPU-hours, {money}"


def estimate(config: TrainConfig, rates: Rates) -> list[str]:
    """Return lines that say what a whole run will use, and from what that is reckoned."""
    measured = _measured_step_s(config)
    step_s, whence = measured or (rates.assumed_step_s, "assumed: no run of this kind is there yet")
    spent = Spent.of(config.compute, rates.start_s + config.learn.steps * step_s, rates)
    compute = config.compute
    machine = compute.gpu or f"{compute.cpu:g} cores"
    nodes = "" if compute.nodes == 1 else f" on {compute.nodes} nodes"
    lines = [
        f"estimate: {spent} on Modal, {spent.seconds / _HOUR_S:.2f} h of {machine}{nodes}",
        f"{config.learn.steps} steps of {step_s:.1f} s ({whence}), {rates.start_s:.0f} s to begin",
        f"prices: {rates.source}",
    ]
    if over := _excess(config, spent):
        lines.append(f"that is over the budget: {over}")
    return lines


def check_budget(config: TrainConfig, rates: Rates) -> None:
    """Raise BadConfig for a budget in money where the hardware has no known price."""
    if config.budget.usd is not None and rates.usd_per_s(config.compute) is None:
        raise BadConfig(
            f"budget.usd cannot be held: no price is known for compute.gpu={config.compute.gpu}; "
            f"there are {', '.join(sorted(rates.gpu))}; budget.gpu_hours holds for any"
        )


def ensure_budget_left(path: Path, config: TrainConfig) -> None:
    """Raise BadConfig where a run that would go on has nothing left to use."""
    spent = Spent.of(config.compute, read_seconds(path), list_rates())
    if over := _excess(config, spent):
        raise BadConfig(f"the budget is spent: {over}; a higher one, by --set, lets the run go on")


class Meter:
    """Counts what a run uses over all its starts, in a file of the run's; written as it goes."""

    def __init__(
        self,
        path: Path,
        config: TrainConfig,
        rates: Rates,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Go on from what the file says; a damaged one counts from nothing."""
        self._path, self._config, self._rates, self._clock = path, config, rates, clock
        self._before_s = read_seconds(path)
        self._began_s = self._written_s = clock()

    @property
    def spent(self) -> Spent:
        """What the run has used until now."""
        seconds = self._before_s + self._clock() - self._began_s
        return Spent.of(self._config.compute, seconds, self._rates)

    def tick(self) -> str:
        """Write from time to time; return what is over the budget, "" if nothing is."""
        if self._clock() - self._written_s >= _WRITE_EVERY_S:
            self.write()
        return _excess(self._config, self.spent)

    def write(self) -> None:
        """Write what was used; raise SaveFailed."""
        self._written_s = self._clock()
        spent = self.spent
        told = {
            "format": FORMAT,
            "seconds": round(spent.seconds, 1),
            "gpu_hours": round(spent.gpu_hours, 4),
            "usd": None if spent.usd is None else round(spent.usd, 4),
            "rates": self._rates.source,
        }
        try:
            write_whole(self._path, json.dumps(told, indent=2).encode() + b"\n")
        except OSError as error:
            raise SaveFailed(f"cannot write {self._path}: {error.strerror or error}") from error


def read_costs(path: Path) -> dict[str, Any] | None:
    """Return what a run's costs.json says, None where there is none that can be read."""
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) and told.get("format") == FORMAT else None


def read_seconds(path: Path) -> float:
    """Return how long a run has run before."""
    told = read_costs(path)
    seconds = told.get("seconds") if told else None
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def _excess(config: TrainConfig, spent: Spent) -> str:
    budget = config.budget
    if budget.usd is not None and spent.usd is not None and spent.usd >= budget.usd:
        return f"{spent.usd:.2f} USD of budget.usd={budget.usd:g}"
    if budget.gpu_hours is not None and spent.gpu_hours >= budget.gpu_hours:
        return f"{spent.gpu_hours:.2f} GPU-hours of budget.gpu_hours={budget.gpu_hours:g}"
    return ""


def _measured_step_s(config: TrainConfig) -> tuple[float, str] | None:
    """Return a step's median seconds in the newest run that is like this one, and which it is."""
    runs = sorted(Path(config.out).glob("grpo_*/metrics.csv"), reverse=True)[:_NEWEST_RUNS]
    for metrics in runs:
        try:
            like = load(metrics.parent / "config.yaml", {})
            with metrics.open(newline="") as lines:
                took = [float(row["step_s"]) for row in csv.DictReader(lines) if row.get("step_s")]
        except (BadConfig, OSError, ValueError):
            continue
        same = _kind(like) == _kind(config)
        if same and len(took) >= _LEAST_ROWS:
            return statistics.median(took), f"measured in {metrics.parent.name}"
    return None


def _kind(config: TrainConfig) -> tuple[Any, ...]:
    """Return what a step's duration depends on most."""
    rollouts = config.rollouts
    return (
        config.env.name,
        config.model.name or Path(config.model.path).name,
        config.compute.gpu,
        rollouts.group_size * rollouts.groups_per_step,
        config.learn.mode,
    )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
