"""A few episodes of a run, read from its trajectories without making anything of the others.

Must not know why they were chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from evalkit.record.journal import read_lines
from evalkit.record.rundir import RunDir
from evalkit.record.trajectory import FORMAT, Key, Trajectory

MAX_WHOLE = (1 << 63) - 1
"""The greatest whole number that a line can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where an arm's episodes lie: a trajectories.jsonl, and what the arm is called there."""

    path: Path
    arm: str


def sources(rundir: RunDir, arms: Iterable[str]) -> dict[str, Source]:
    """Return the sources of a run's own arms."""
    return {arm: Source(path=rundir.trajectories_path, arm=arm) for arm in arms}


def read_chosen(
    found_in: Mapping[str, Source], episodes: Iterable[tuple[int, int]]
) -> dict[Key, Trajectory]:
    """Read (env seed, repetition) of every arm, by keys that name the arms as `found_in` does.

    What is not there is left out. A line that was scored counts before one that was not, and a
    later one before an earlier one, as in `TrajectoryFile`.

    Raises:
        DamagedRun: the line of such an episode cannot be read.

    """
    wanted: dict[Path, dict[bytes, list[Key]]] = {}
    for seed, repetition in episodes:
        if max(abs(seed), abs(repetition)) > MAX_WHOLE:
            continue
        for name, source in found_in.items():
            there = Key(env_seed=seed, repetition=repetition, arm=source.arm)
            keys = wanted.setdefault(source.path, {}).setdefault(_begin(there), [])
            keys.append(Key(env_seed=seed, repetition=repetition, arm=name))
    found: dict[Key, Trajectory] = {}
    for path, by_begin in wanted.items():
        for _, line in read_lines(path):
            for key in by_begin.get(line[: line.find(b"}") + 1], ()):
                played = Trajectory.from_json(line)
                if played.scored or key not in found or not found[key].scored:
                    found[key] = played
    return found


def _begin(key: Key) -> bytes:
    """Return how the line of an episode begins, up to the end of its key."""
    return orjson.dumps({"format": FORMAT, "key": asdict(key)})[:-1]
