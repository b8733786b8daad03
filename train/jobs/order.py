"""What a container is told to do, and what it says at the end; both are JSON on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from train.config import TrainConfig, digest, resolve
from train.errors import BadConfig

FORMAT = "train-order/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One run. Carried out again, by another container, it goes on with the same run."""

    run: str
    """The run's name, and its folder's on the volume."""
    config: TrainConfig

    def dump(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "format": FORMAT,
            "run": self.run,
            "config": self.config.model_dump(mode="json"),
            "sha256": digest(self.config),
        }

    @classmethod
    def load(cls, told: Mapping[str, Any]) -> Order:
        """Read plain data; raise BadConfig for what another version has written."""
        if told.get("format") != FORMAT:
            raise BadConfig(
                f"the deployed app expects {FORMAT}, and was told {told.get('format')}: deploy it "
                "again with `modal deploy -m train.modal_app`"
            )
        config = resolve(dict(told["config"]), {})
        if digest(config) != told["sha256"]:
            raise BadConfig(
                "the deployed app reads the config otherwise than it was written: deploy it again "
                "with `modal deploy -m train.modal_app`"
            )
        return cls(run=str(told["run"]), config=config)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended that ended by itself; what may be repeated is raised instead."""

    run: str
    state: str
    """As in status.json; `refused` for what cannot be carried out as asked."""
    step: int
    steps: int
    version: int | None
    message: str
    gpu_hours: float | None
    usd: float | None

    def dump(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def load(cls, told: Mapping[str, Any]) -> Outcome:
        """Read plain data."""
        return cls(**told)


def run_folder(config: TrainConfig, run: str) -> Path:
    """Return where a container sees a run."""
    return Path(config.volumes.root) / "runs" / run
