"""How a command that plays ends: what it prints, and its exit code. Imports nothing heavy."""

from __future__ import annotations

import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
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


def print_report(report: Report, folder: Path) -> None:
    """Print the table, the verdicts, and which files there are."""
    from evalkit.show.report import table_cells, text_table  # noqa: PLC0415

    print("\n".join(["", *text_table(table_cells(report))]))
    if report.compared:
        few = len(report.pairs) <= 1
        shown = [
            v
            for c, v in zip(report.compared, report.verdicts, strict=True)
            if few or c.metric.name == "success"
        ]
        print("\n" + "\n".join(shown))
    tables = " ".join(sorted(file.name for file in folder.glob("*.csv")))
    print(f"\n{folder}/: report.md {tables}")
