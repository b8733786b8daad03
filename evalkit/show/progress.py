"""A run's progress for the person who waits: a live display on a terminal, lines elsewhere.

Polls the tally; the episodes never wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from evalkit.judge.intervals import wilson
from evalkit.record.tally import Tally

if TYPE_CHECKING:
    from rich.table import Table

LIVE_PERIOD_S = 0.25
LINE_PERIOD_S = 10.0
Said = Callable[[], Sequence[str]]
"""Lines that are shown below the counts: what is known of every pair of arms by now."""


@asynccontextmanager
async def progress(tally: Tally, stream: TextIO, below: Said = list) -> AsyncIterator[None]:
    """Show `tally` on `stream` while the block runs, and once more when it ends."""
    show = _live(tally, stream, below) if stream.isatty() else _lines(tally, stream, below)
    task = asyncio.create_task(show)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _lines(tally: Tally, stream: TextIO, below: Said) -> None:
    try:
        while True:
            await asyncio.sleep(LINE_PERIOD_S)
            stream.write("\n".join([line(tally), *below(), ""]))
            stream.flush()
    finally:
        stream.write("\n".join([line(tally), *below(), ""]))
        stream.flush()


async def _live(tally: Tally, stream: TextIO, below: Said) -> None:
    from rich.console import Console  # noqa: PLC0415 - only a terminal pays for rich
    from rich.live import Live  # noqa: PLC0415

    with Live(console=Console(file=stream), refresh_per_second=4, transient=False) as live:
        try:
            while True:
                live.update(_table(tally, below))
                await asyncio.sleep(LIVE_PERIOD_S)
        finally:
            live.update(_table(tally, below))


def _table(tally: Tally, below: Said) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=_totals(tally), title_justify="left", box=None, pad_edge=False)
    for column in ("arm", "episodes", "success", "95 % CI", "errors"):
        table.add_column(column)
    for name, arm in tally.arms.items():
        interval = wilson(arm.successes, arm.scored)
        table.add_row(
            name,
            str(arm.episodes),
            f"{arm.successes / arm.scored:.1%}" if arm.scored else "",
            f"{interval.lo:.1%} .. {interval.hi:.1%}" if arm.scored else "",
            str(arm.errors),
        )
    table.caption, table.caption_justify = "\n".join(below()) or None, "left"
    return table


def line(tally: Tally) -> str:
    """Return the progress as one line."""
    arms = []
    for name, arm in tally.arms.items():
        interval = wilson(arm.successes, arm.scored)
        rate = (
            f"{arm.successes / arm.scored:.0%} ({interval.lo:.0%}..{interval.hi:.0%})"
            if arm.scored
            else "-"
        )
        arms.append(f"{name} {rate}")
    return f"{_totals(tally)}  success: {', '.join(arms)}"


def _totals(tally: Tally) -> str:
    elapsed_s = max(1e-9, time.monotonic() - tally.started_s)
    errors = sum(arm.errors for arm in tally.arms.values())
    played = tally.episodes - tally.episodes_before
    left = tally.total_episodes - tally.episodes
    known = played and left and not tally.may_stop
    rest = f"{_clock(left * elapsed_s / played)} left" if known else ""
    of = " of at most " if tally.may_stop else "/"
    parts = [
        f"{tally.episodes}{of}{tally.total_episodes} episodes",
        f"{tally.turns / elapsed_s:.1f} turns/s",
        f"{tally.at_once} at once" if tally.at_once else "",
        f"{errors} errors" if errors else "",
        _clock(elapsed_s),
        rest,
    ]
    return "  ".join(part for part in parts if part)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
