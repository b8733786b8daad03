"""Counts what other processes play, from the files that they append to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from evalkit.errors import DamagedRun
from evalkit.record.rundir import RunDir
from evalkit.record.tally import Tally
from evalkit.record.trajectory import Key, Trajectory


class Follower:
    """Brings a tally up to date with run directories that others write.

    What is there at first is what earlier sessions finished.
    """

    def __init__(self, rundirs: Sequence[RunDir], tally: Tally) -> None:
        self._tally = tally
        self._seen: set[Key] = set()
        self._trajectories = [_Growing(rundir.trajectories_path) for rundir in rundirs]
        self._journals = [_Growing(rundir.journal_path) for rundir in rundirs]
        for file in self._journals:
            file.new_lines()
        for trajectory in self._news():
            if trajectory.scored:
                self._count(trajectory)
        tally.episodes_before = tally.episodes

    def look(self) -> None:
        """Count what is new."""
        for file in self._journals:
            self._tally.turns += len(file.new_lines())
        for trajectory in self._news():
            self._count(trajectory)

    def _news(self) -> list[Trajectory]:
        """Return the episodes that were not counted yet."""
        found = []
        for file in self._trajectories:
            for line in file.new_lines():
                try:
                    trajectory = Trajectory.from_json(line)
                except DamagedRun:
                    continue  # it is said, with its place, when the shards are merged
                if trajectory.key not in self._seen:
                    found.append(trajectory)
        return found

    def _count(self, trajectory: Trajectory) -> None:
        if trajectory.key not in self._seen:
            self._seen.add(trajectory.key)
            self._tally.add(trajectory)


class _Growing:
    """A file that others append whole lines to, or replace."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._offset = 0

    def new_lines(self) -> list[bytes]:
        """Return the whole lines that were not returned before; all of them of another file."""
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if inode != self._inode:
                    self._inode, self._offset = inode, 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self._offset += end
        return data[:end].split(b"\n")[:-1]
