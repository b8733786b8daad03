"""The files that people open, made from a run's trajectories.

Everything but performance.csv, and the latencies that report.html shows of a served model, is a
function of the trajectories alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evalkit.record.chosen import sources
from evalkit.record.lines import write_lines
from evalkit.record.numbers import ArmNumbers, gather
from evalkit.record.references import Reference
from evalkit.record.rundir import RunDir, episodes, write_whole
from evalkit.record.tables import write_csv
from evalkit.show.html.page import write_page
from evalkit.show.pairs import COMPARE, PAIRED, Compared, compare_row, paired_rows
from evalkit.show.report import Report, make_report, markdown
from evalkit.show.sequential import SEQUENTIAL, sequential, sequential_rows
from evalkit.show.summary import PASS, SUMMARY


def write_report(
    rundir: RunDir,
    identities: Mapping[str, Mapping[str, Any]],
    references: Mapping[str, Reference],
    out: Path | None = None,
    margin: float | None = None,
) -> Report:
    """Write every table of a run, and report.md, into `out` or else beside the trajectories.

    `margin` is `make_report`'s.
    """
    folder = out or rundir.path
    write_lines(rundir, rundir.manifest(), folder)
    numbers = gather(episodes(rundir.trajectories_path), identities)
    return write_findings(rundir, identities, numbers, references, folder, margin)


def write_findings(
    rundir: RunDir,
    identities: Mapping[str, Mapping[str, Any]],
    numbers: Mapping[str, ArmNumbers],
    references: Mapping[str, Reference],
    folder: Path,
    margin: float | None = None,
    unfinished: str = "",
) -> Report:
    """Write what is worked out of a run's numbers: all that `write_lines` does not write.

    `margin` is `make_report`'s; `unfinished` is `Report.unfinished`.
    """
    report = make_report(numbers, identities, references, margin=margin)
    judged = sequential(rundir.manifest()["config"], numbers, report.pairs)
    played = sources(rundir, report.numbers)
    report = replace(report, sequential=judged, unfinished=unfinished, sources=played)
    write_comparison(folder, report)
    return report


def write_comparison(folder: Path, report: Report) -> None:
    """Write summary.csv, report.md and report.html.

    Also pass.csv for several repetitions, and for two arms or more compare.csv and paired.csv.
    """
    write_csv(folder / "summary.csv", SUMMARY, report.summary)
    if report.tries:
        write_csv(folder / "pass.csv", PASS, report.tries)
    if len(report.numbers) > 1:
        rows = (
            compare_row(
                report.run_id,
                report.env,
                _strategies(report, compared),
                compared,
                report.word(compared),
            )
            for compared in report.compared
        )
        write_csv(folder / "compare.csv", COMPARE, rows)
        write_csv(
            folder / "paired.csv", PAIRED, paired_rows(report.run_id, report.numbers, report.pairs)
        )
    if report.sequential:
        looks = sequential_rows(report.run_id, report.sequential)
        write_csv(folder / "sequential.csv", SEQUENTIAL, looks)
    write_whole(folder / "report.md", markdown(report).encode())
    write_page(folder / "report.html", report)


def _strategies(report: Report, compared: Compared) -> str:
    """Name the strategy of both arms, or both strategies."""
    by_arm = {row["arm"]: str(row["strategy"]) for row in report.summary}
    both = (by_arm[compared.a], by_arm[compared.b])
    return " | ".join(dict.fromkeys(both))
