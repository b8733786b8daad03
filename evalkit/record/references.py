"""What random and perfect play score on a run's seeds, as a record and as a cached file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from evalkit.record.rundir import write_whole

FORMAT = "reference/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a baseline scores on the seeds of a run, each played once; only where the env held."""

    policy: str
    n_episodes: int
    successes: int
    return_mean: float
    turns_mean: float

    @property
    def success_rate(self) -> float:
        """Successes per episode."""
        return self.successes / self.n_episodes


def save_references(file: Path, references: Mapping[str, Reference]) -> None:
    """Keep references by policy name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(reference) for reference in references.values()]
    write_whole(file, orjson.dumps({"format": FORMAT, "references": rows}))


def load_references(file: Path) -> dict[str, Reference] | None:
    """Read what was kept; a file of another format is as good as none."""
    try:
        raw = orjson.loads(file.read_bytes())
        if raw["format"] != FORMAT:
            return None
        return {row["policy"]: Reference(**row) for row in raw["references"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
