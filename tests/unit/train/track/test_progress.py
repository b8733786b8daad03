"""What a person sees of a run."""

from __future__ import annotations

import io

from train.track.metrics import StepMetrics
from train.track.progress import Progress, line

KNOWN = StepMetrics(
    step=12,
    return_mean=0.4321,
    success=0.625,
    success_lo=0.48,
    success_hi=0.74,
    staleness_mean=0.75,
    step_s=1.634,
    wait_s=0.21,
    learn_s=1.2,
    sync_s=0.22,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_line_says_all_that_is_known() -> None:
    assert line(KNOWN, 100, 143.8) == (
        "step 12/100  return 0.432  success 62% (48%..74%)  staleness 0.75  "
        "1.63 s (wait 0.21, learn 1.20, sync 0.22)  2:24 left"
    )


def test_a_line_leaves_out_what_is_not_known() -> None:
    assert line(StepMetrics(step=1), 2, None) == "step 1/2"
    assert line(StepMetrics(step=1, success=0.5, step_s=2.0), 2, 3700.0) == (
        "step 1/2  success 50%  2.00 s  1:01:40 left"
    )


def test_without_a_terminal_there_is_a_line_per_step_with_what_is_left() -> None:
    stream = io.StringIO()
    progress = Progress(stream, steps=4)
    for step, step_s in enumerate((10.0, 30.0, 20.0, 20.0), 1):
        progress.step(StepMetrics(step=step, step_s=step_s))
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step 1/4  10.00 s  0:30 left",
        "step 2/4  30.00 s  0:40 left",
        "step 3/4  20.00 s  0:20 left",
        "step 4/4  20.00 s",
    ]


def test_a_terminal_has_the_lines_and_a_live_bar() -> None:
    stream = Terminal()
    progress = Progress(stream, steps=2)
    progress.step(StepMetrics(step=1, step_s=3.0))
    progress.close()
    progress.close()
    shown = stream.getvalue()
    assert "step 1/2  3.00 s" in shown
    assert "1/2  0:03 left" in shown
    assert "\x1b[" in shown
