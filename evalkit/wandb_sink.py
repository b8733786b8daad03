"""Weights & Biases, where it is asked for. The only door to it; wandb is imported when it is used.

The id of the W&B run lies beside the results, so that what is told later goes to the same one. The
mode is wandb's own to say: WANDB_MODE=offline keeps everything in the folder.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from evalkit.errors import BadConfig, RunFailed

FILE = "wandb.json"
FORMAT = "evalkit-wandb/1"
INIT_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 60.0


def require_wandb() -> None:
    """Raise BadConfig unless wandb is installed: before anything is played."""
    if find_spec("wandb") is None:
        raise BadConfig("--wandb needs the package wandb: install palaestra[wandb]")


class WandbSink:
    """A W&B run that goes with a folder of results."""

    def __init__(self, project: str, *, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """Begin a W&B run, or go on with the one that `folder` names.

        Raises:
            BadConfig: wandb is not installed, not logged in, or does not know the project.
            RunFailed: it cannot be reached.

        """
        require_wandb()
        wandb = import_module("wandb")
        refused = (ValueError, wandb.errors.UsageError, wandb.errors.AuthenticationError)
        try:
            self._run = wandb.init(
                project=project,
                id=_run_id(folder / FILE),
                resume="allow",
                name=name,
                dir=str(folder),
                config=dict(config),
                settings=wandb.Settings(
                    init_timeout=INIT_TIMEOUT_S,
                    finish_timeout=FINISH_TIMEOUT_S,
                    console="off",
                    silent=True,
                ),
            )
        except refused as error:
            raise BadConfig(
                f"wandb: {error}; what was played lies in {folder}: log in, or set "
                f"WANDB_MODE=offline, and resume it"
            ) from error
        except wandb.Error as error:
            raise RunFailed(
                f"wandb: {error}; what was played lies in {folder}: resume it to log it again"
            ) from error

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Tell the numbers of one step; what is no number is left out."""
        self._run.log(_numbers(values), step=step)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Tell numbers that hold for the whole run."""
        self._run.summary.update(_numbers(values))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Send what is left, for a minute at most."""
        self._run.finish()


def _run_id(path: Path) -> str:
    """Return the id of the folder's W&B run, having made one where there was none."""
    if path.exists():
        try:
            said = json.loads(path.read_text("utf-8"))
            if said["format"] != FORMAT:
                raise ValueError(f"expected format {FORMAT}, found {said['format']}")
            return str(said["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadConfig(
                f"{path} does not name a W&B run: {error}; remove it to begin a new one"
            ) from error
    made = secrets.token_hex(4)
    path.write_text(json.dumps({"format": FORMAT, "id": made}) + "\n", "utf-8")
    return made


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
