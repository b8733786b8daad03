"""How a command that plays ends: what it prints, and its exit code. Imports nothing heavy."""

from __future__ import annotations

import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from evalkit.matrix import Matrix
    from evalkit.run import Run
    from evalkit.show.report import Report

T = TypeVar("T")


def awaited(work: Coroutine[Any, Any, T]) -> T | int:
    """Run a coroutine that SIGTERM cancels; return what it does, or the exit code."""
    import asyncio  # noqa: PLC0415

    from evalkit.run import run_async  # noqa: PLC0415

    async def terminable() -> T:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return run_async(terminable())
    except asyncio.CancelledError:
        return 143


def played(work: Coroutine[Any, Any, Run]) -> int:
    """Play a run to its end, print what it found, and return the exit code."""
    run = awaited(work)
    if isinstance(run, int):
        return run
    print_report(run.report, run.path)
    if run.n_error:
        print(
            f"\n{run.n_error} episodes were lost to errors and are not scored; "
            f"play them again: python -m evalkit resume {run.path}"
        )
    return 1 if run.n_error else 0


def matrix_played(work: Coroutine[Any, Any, Matrix]) -> int:
    """Play a matrix to its end, print which strategy pays, and return the exit code."""
    matrix = awaited(work)
    if isinstance(matrix, int):
        return matrix
    from evalkit.show.matrix import matrix_cells, which_pays  # noqa: PLC0415
    from evalkit.show.report import text_table  # noqa: PLC0415

    print("\n".join(["", *text_table(matrix_cells(matrix.rows)), "", *which_pays(matrix.cells)]))
    print(f"\n{matrix.path}/: matrix.md matrix.csv, and a run in each folder")
    if matrix.n_error:
        print(
            f"\n{matrix.n_error} episodes were lost to errors and are not scored; "
            f"play them again: python -m evalkit resume {matrix.path}"
        )
    return 1 if matrix.n_error else 0


def print_report(report: Report, folder: Path) -> None:
    """Print the table, the verdicts, and which files there are."""
    from evalkit.show.report import table_cells, text_table  # noqa: PLC0415
    from evalkit.show.sequential import decisions  # noqa: PLC0415
    from evalkit.show.verdict import verdict  # noqa: PLC0415

    print("\n".join(["", *text_table(table_cells(report))]))
    if report.compared:
        few = len(report.pairs) <= 1
        fixed = [each for each in report.of_fixed_size if few or each.metric.name == "success"]
        decided = decisions(report.sequential)
        others = ["Not corrected for the stop:"] if decided and fixed else []
        print("\n" + "\n".join([*decided, *others, *map(verdict, fixed)]))
    tables = " ".join(sorted(file.name for file in folder.glob("*.csv")))
    print(f"\n{folder}/: report.html report.md {tables}")
