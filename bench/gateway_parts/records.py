"""What one peer gave in one round, in memory and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FORMAT = "gateway-bench/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One start of one peer, with every load put on it."""

    peer: str
    version: str
    round: int
    figures: Mapping[str, float]
    """Of the start as a whole: boot_s, rss_idle_mb, rss_after_mb, kb_per_idle, ..."""
    cells: Mapping[str, Mapping[str, float]]
    """Per load: what the load generator counted, CPU, memory, and `foreign` cores."""
    problems: Mapping[str, str]
    """Per load or step that gave no figures: why."""


def save(path: Path, runs: Sequence[Run], about: Mapping[str, object]) -> None:
    """Write all runs so far."""
    document = {"format": FORMAT, **about, "runs": [asdict(run) for run in runs]}
    path.write_text(json.dumps(document, indent=1) + "\n")


def load(path: Path) -> list[Run]:
    """Read what `save` wrote."""
    document = json.loads(path.read_text())
    if document.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, found {document.get('format')}")
    return [Run(**run) for run in document["runs"]]
