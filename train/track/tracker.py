"""Hands what is known of a step to everybody who is told: the file, the terminal, a service."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TextIO

from train.config import TrainConfig
from train.track.metrics import MetricsFile, StepMetrics
from train.track.progress import Progress

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """One that is told, and that a run can do without. Fails with an OSError."""

    name: str

    def step(self, metrics: StepMetrics) -> None:
        """Take in a step."""

    def close(self) -> None:
        """Let go of everything; harmless the second time."""


class Tracker:
    """Tells metrics.csv first, which must hold every step, then all others.

    A sink that fails is said once and told again at the next step: it must not stop a run.
    """

    def __init__(self, file: MetricsFile, sinks: Sequence[Sink] = ()) -> None:
        self._file = file
        self._sinks = tuple(sinks)
        self._said: set[str] = set()

    def step(self, metrics: StepMetrics) -> None:
        """Tell a step to all; raise SaveFailed if metrics.csv cannot hold it."""
        self._file.step(metrics)
        for sink in self._sinks:
            try:
                sink.step(metrics)
            except OSError as error:
                self._complain(sink, error)

    def close(self) -> None:
        """Close all; harmless the second time."""
        self._file.close()
        for sink in self._sinks:
            try:
                sink.close()
            except OSError as error:
                self._complain(sink, error)

    def _complain(self, sink: Sink, error: OSError) -> None:
        if sink.name not in self._said:
            self._said.add(sink.name)
            logger.warning("%s fails, training goes on: %s", sink.name, error)


def open_tracker(
    config: TrainConfig, *, run_dir: Path, after_step: int, stream: TextIO | None
) -> Tracker:
    """Open everything that the config asks for, for the steps beyond `after_step`.

    Raises:
        BadConfig: metrics.csv is not one, or wandb is asked for and cannot be used.
        SaveFailed: metrics.csv cannot be written.

    """
    file = MetricsFile(run_dir / "metrics.csv", after_step=after_step)
    sinks: list[Sink] = []
    if config.track.wandb_project is not None:
        from train.track.wandb_sink import WandbSink  # noqa: PLC0415 - only where it is asked for

        try:
            sinks.append(
                WandbSink(
                    config.track,
                    run_dir=run_dir,
                    run_name=run_dir.name,
                    config=config.model_dump(mode="json"),
                )
            )
        except OSError as error:
            logger.warning("wandb fails, training goes on without it: %s", error)
    if stream is not None:
        sinks.append(Progress(stream, steps=config.learn.steps))
    return Tracker(file, sinks)
