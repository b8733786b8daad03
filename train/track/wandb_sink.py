"""Weights & Biases, where it is asked for. The only place that knows it; imported when it is used.

The id of the W&B run lies in the run's folder as wandb.json, so that a resumed run goes on in the
same one. Steps that were told before a crash are not told again.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from train.config import TrackSection
from train.errors import BadConfig
from train.track.metrics import StepMetrics

FILE = "wandb.json"
FORMAT = "train-wandb/1"
_INIT_TIMEOUT_S = 30.0
_FINISH_TIMEOUT_S = 60.0
"""Longest time that the end of a run waits for what is still to be sent."""


class WandbSink:
    """Tells Weights & Biases of each step."""

    name = "wandb"

    def __init__(
        self, track: TrackSection, *, run_dir: Path, run_name: str, config: Mapping[str, Any]
    ) -> None:
        """Begin a W&B run, or go on with the one that `run_dir` names.

        Raises:
            BadConfig: wandb is not installed, not logged in, or does not know the project.
            OSError: it cannot be reached.

        """
        self._path = run_dir / FILE
        self._id, self._told = self._known()
        self._run = _begin(
            id=self._id,
            project=track.wandb_project,
            entity=track.wandb_entity,
            mode=track.wandb_mode,
            name=track.run_name or run_name,
            dir=str(run_dir),
            config=dict(config),
        )
        self._remember()

    def step(self, metrics: StepMetrics) -> None:
        """Tell a step, unless it was told already; raise OSError if it cannot be."""
        if metrics.step <= self._told:
            return
        row = {key: value for key, value in asdict(metrics).items() if value is not None}
        try:
            self._run.log(row, step=metrics.step)
        except Exception as error:  # its errors have no root in common, and none is worth a run
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        self._told = metrics.step
        self._remember()

    def close(self) -> None:
        """Send what is left, for a minute at most; harmless the second time."""
        try:
            self._run.finish()
        except Exception as error:  # as above
            raise ConnectionError(f"{type(error).__name__}: {error}") from error

    def _known(self) -> tuple[str, int]:
        """Return the id and the newest step that was told; a new id where there is none."""
        if not self._path.exists():
            return secrets.token_hex(4), 0
        try:
            said = json.loads(self._path.read_text("utf-8"))
            if said["format"] != FORMAT:
                raise ValueError(f"expected format {FORMAT}, found {said['format']}")
            return str(said["id"]), int(said["told"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadConfig(
                f"{self._path} does not name a W&B run: {error}; remove it to begin a new one"
            ) from error

    def _remember(self) -> None:
        scratch = self._path.with_suffix(".tmp")
        told = {"format": FORMAT, "id": self._id, "told": self._told}
        scratch.write_text(json.dumps(told) + "\n", "utf-8")
        scratch.replace(self._path)


def _begin(**settings: Any) -> Any:  # noqa: ANN401 - wandb's own types
    """Start a W&B run; see `WandbSink`."""
    try:
        wandb = import_module("wandb")  # optional, and heavy
    except ImportError as error:
        raise BadConfig(
            "track.wandb_project is set, and wandb is not installed: pip install wandb, "
            "or leave track.wandb_project out"
        ) from error
    try:
        return wandb.init(
            **settings,
            resume="allow",
            settings=wandb.Settings(
                init_timeout=_INIT_TIMEOUT_S,
                finish_timeout=_FINISH_TIMEOUT_S,
                console="off",
                silent=True,
            ),
        )
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        raise BadConfig(f"wandb: {error}; or set track.wandb_mode=offline") from error
    except wandb.Error as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
