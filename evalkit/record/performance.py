"""performance.csv: how long calls took, read from the journal. The one table with a clock in it."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.errors import DamagedRun
from evalkit.record.journal import read_journal
from evalkit.record.tables import write_csv

PERFORMANCE = (
    "format run_id arm calls retried_calls attempts_mean lat_p50_ms lat_p95_ms lat_p99_ms wall_s "
    "calls_per_s turns_per_s cached_tokens"
).split()


@dataclass(frozen=True, slots=True)
class Calls:
    """The answered calls of one arm."""

    elapsed_s: array[float] = field(default_factory=lambda: array("d"))
    at_s: array[float] = field(default_factory=lambda: array("d"))
    """When the answers came, in seconds since 1970."""
    attempts: array[int] = field(default_factory=lambda: array("l"))
    cached_tokens: array[int] = field(default_factory=lambda: array("l"))

    def add(self, entry: Mapping[str, Any]) -> None:
        """Take in an entry of the journal. Raises KeyError or TypeError for one that is none."""
        said = entry["completion"]
        self.elapsed_s.append(said["elapsed_s"])
        self.at_s.append(entry["at"])
        self.attempts.append(said["attempts"])
        self.cached_tokens.append(said["cached_tokens"] or 0)

    @property
    def wall_s(self) -> float | None:
        """From the first call to the last answer; None without a call."""
        if not self.at_s:
            return None
        first_s = min(
            [at_s - took_s for at_s, took_s in zip(self.at_s, self.elapsed_s, strict=True)]
        )
        return round(max(self.at_s) - first_s, 3)


def write_performance(
    path: Path, journal: Path, run_id: str, turns_by_arm: Mapping[str, int]
) -> None:
    """Write performance.csv: a row per arm of `turns_by_arm`, which counts what it played.

    `wall_s` is from an arm's first call to its last answer, with the pauses of a run that was
    interrupted; it is what `calls_per_s` and `turns_per_s` are over.

    Raises:
        DamagedRun: an entry of the journal is none, or of no such arm.

    """
    calls = {arm: Calls() for arm in turns_by_arm}
    stem = len(run_id) + 1
    for number, entry in enumerate(read_journal(journal), 1):
        try:
            calls[entry["request_id"][stem:].rsplit("-", 3)[0]].add(entry)
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedRun(f"{journal}, entry {number}: {error} is not as expected") from error
    rows = (_row(run_id, arm, made, turns_by_arm[arm]) for arm, made in calls.items())
    write_csv(path, PERFORMANCE, rows)


def _row(run_id: str, arm: str, made: Calls, turns: int) -> dict[str, Any]:
    n, wall_s = len(made.elapsed_s), made.wall_s
    ordered = sorted(made.elapsed_s)
    return {
        "format": "performance/1",
        "run_id": run_id,
        "arm": arm,
        "calls": n,
        "retried_calls": sum(attempts > 1 for attempts in made.attempts),
        "attempts_mean": sum(made.attempts) / n if n else None,
        "lat_p50_ms": _quantile_ms(ordered, 0.5),
        "lat_p95_ms": _quantile_ms(ordered, 0.95),
        "lat_p99_ms": _quantile_ms(ordered, 0.99),
        "wall_s": wall_s,
        "calls_per_s": n / wall_s if wall_s else None,
        "turns_per_s": turns / wall_s if wall_s else None,
        "cached_tokens": sum(made.cached_tokens),
    }


def _quantile_ms(ordered: list[float], q: float) -> float | None:
    return round(1000 * ordered[int(q * (len(ordered) - 1))], 3) if ordered else None
