"""A run's progress for the person who waits: a line per step, on a terminal with a live one below.

Knows numbers only; never waits and draws no time of its own.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING, TextIO

from train.track.metrics import StepMetrics

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

_REMEMBERED = 20
"""Steps whose median duration the estimate is made of."""


class Progress:
    """Writes a line per step to a stream."""

    name = "progress"

    def __init__(self, stream: TextIO, *, steps: int) -> None:
        self._stream = stream
        self._steps = steps
        self._durations_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._live: Live | None = None
        if stream.isatty():
            self._live = _open_live(stream, _bar(0, steps, None))

    def step(self, metrics: StepMetrics) -> None:
        """Show a step."""
        if metrics.step_s is not None:
            self._durations_s.append(metrics.step_s)
        left_s = self._left_s(metrics.step)
        if self._live is None:
            self._stream.write(line(metrics, self._steps, left_s) + "\n")
            self._stream.flush()
            return
        told = line(metrics, self._steps, None)
        self._live.console.print(told, markup=False, highlight=False, soft_wrap=True)
        self._live.update(_bar(metrics.step, self._steps, left_s))

    def close(self) -> None:
        """Give the terminal back; harmless the second time."""
        if self._live is not None:
            self._live.stop()

    def _left_s(self, step: int) -> float | None:
        left = self._steps - step
        return left * median(self._durations_s) if self._durations_s and left > 0 else None


def line(metrics: StepMetrics, steps: int, left_s: float | None) -> str:
    """Return a step as one line; what is not known is left out."""
    parts = [
        f"step {metrics.step}/{steps}",
        _told("return", metrics.return_mean, ".3f"),
        _success(metrics),
        _told("staleness", metrics.staleness_mean, ".2f"),
        _seconds(metrics),
        f"{_clock(left_s)} left" if left_s is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def _told(name: str, value: float | None, form: str) -> str:
    return "" if value is None else f"{name} {value:{form}}"


def _success(metrics: StepMetrics) -> str:
    if metrics.success is None:
        return ""
    if metrics.success_lo is None or metrics.success_hi is None:
        return f"success {metrics.success:.0%}"
    return f"success {metrics.success:.0%} ({metrics.success_lo:.0%}..{metrics.success_hi:.0%})"


def _seconds(metrics: StepMetrics) -> str:
    if metrics.step_s is None:
        return ""
    split = [("wait", metrics.wait_s), ("learn", metrics.learn_s), ("sync", metrics.sync_s)]
    told = ", ".join(f"{name} {value:.2f}" for name, value in split if value is not None)
    return f"{metrics.step_s:.2f} s" + (f" ({told})" if told else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _bar(step: int, steps: int, left_s: float | None) -> Text:
    from rich.text import Text  # noqa: PLC0415 - only a terminal pays for rich

    full = round(30 * step / steps)
    left = f"  {_clock(left_s)} left" if left_s is not None else ""
    return Text(f"{'━' * full}{'·' * (30 - full)} {step}/{steps}{left}")


def _open_live(stream: TextIO, text: Text) -> Live:
    from rich.console import Console  # noqa: PLC0415 - only a terminal pays for rich
    from rich.live import Live  # noqa: PLC0415

    live = Live(text, console=Console(file=stream), refresh_per_second=4, transient=True)
    live.start()
    # A trainer may be killed at any time: the terminal must not be left without its cursor.
    live.console.show_cursor(True)
    return live
