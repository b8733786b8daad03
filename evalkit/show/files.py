"""The files that people open, made from a run's trajectories.

Everything but performance.csv is a function of the trajectories alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit.record.journal import read_journal
from evalkit.record.numbers import ArmNumbers
from evalkit.record.references import Reference
from evalkit.record.rundir import RunDir, TrajectoryFile, write_whole
from evalkit.record.tables import EPISODES, TURNS, Table, episode_row, turn_rows, write_csv
from evalkit.show.report import Report, make_report, markdown
from evalkit.show.summary import COMPARE, PAIRED, SUMMARY, Compared, compare_row, paired_rows

PERFORMANCE = (
    "format run_id arm calls retried_calls attempts_mean lat_p50_ms lat_p95_ms cached_tokens"
).split()


def write_report(
    rundir: RunDir,
    identities: Mapping[str, Mapping[str, Any]],
    references: Mapping[str, Reference],
) -> Report:
    """Write every table of a finished run, reading its trajectories once, and report.md."""
    run_id = next(iter(identities.values()))["run_id"]
    numbers = {arm: ArmNumbers() for arm in identities}
    with (
        Table(rundir.path / "episodes.csv", EPISODES) as episodes,
        Table(rundir.path / "turns.csv", TURNS) as turns,
    ):
        for played in TrajectoryFile(rundir.trajectories_path):
            numbers[played.key.arm].add(played)
            episodes.add(episode_row(run_id, played))
            for row in turn_rows(run_id, played):
                turns.add(row)
    report = make_report(numbers, identities, references)
    write_csv(rundir.path / "performance.csv", PERFORMANCE, performance_rows(rundir, report))
    write_comparison(rundir.path, report)
    return report


def write_comparison(folder: Path, report: Report) -> None:
    """Write summary.csv and report.md, and for two arms or more compare.csv and paired.csv."""
    write_csv(folder / "summary.csv", SUMMARY, report.summary)
    if len(report.numbers) > 1:
        rows = (
            compare_row(report.run_id, report.env, _strategies(report, compared), compared)
            for compared in report.compared
        )
        write_csv(folder / "compare.csv", COMPARE, rows)
        write_csv(
            folder / "paired.csv", PAIRED, paired_rows(report.run_id, report.numbers, report.pairs)
        )
    write_whole(folder / "report.md", markdown(report).encode())


def _strategies(report: Report, compared: Compared) -> str:
    """Name the strategy of both arms, or both strategies."""
    by_arm = {row["arm"]: str(row["strategy"]) for row in report.summary}
    both = (by_arm[compared.a], by_arm[compared.b])
    return " | ".join(dict.fromkeys(both))


def performance_rows(rundir: RunDir, report: Report) -> Iterable[dict[str, Any]]:
    """Yield the rows of performance.csv: the only table that depends on the clock."""
    calls: dict[str, list[tuple[float, int, int]]] = {arm: [] for arm in report.numbers}
    stem = len(report.run_id) + 1
    for entry in read_journal(rundir.journal_path):
        arm = entry["request_id"][stem:].rsplit("-", 3)[0]
        said = entry["completion"]
        calls[arm].append((said["elapsed_s"], said["attempts"], said["cached_tokens"] or 0))
    for arm, made in calls.items():
        elapsed = sorted(call[0] for call in made)
        yield {
            "format": "performance/1",
            "run_id": report.run_id,
            "arm": arm,
            "calls": len(made),
            "retried_calls": sum(call[1] > 1 for call in made),
            "attempts_mean": sum(call[1] for call in made) / len(made) if made else None,
            "lat_p50_ms": _quantile_ms(elapsed, 0.5),
            "lat_p95_ms": _quantile_ms(elapsed, 0.95),
            "cached_tokens": sum(call[2] for call in made),
        }


def _quantile_ms(ordered: Sequence[float], q: float) -> float | None:
    return round(1000 * ordered[int(q * (len(ordered) - 1))], 3) if ordered else None
