"""The tables that are lines of what was recorded: episodes.csv, turns.csv and performance.csv.

Needs no statistics, so that another process can write them meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalkit.record.performance import write_performance
from evalkit.record.rundir import RunDir, episodes
from evalkit.record.tables import EPISODES, TURNS, Table, episode_line, turn_lines
from evalkit.record.trajectory import UNSCORED


def write_lines(rundir: RunDir, manifest: Mapping[str, Any], folder: Path) -> None:
    """Write the three tables of a run into a folder.

    Raises:
        DamagedRun: a trajectory or an entry of the journal cannot be read; says where.

    """
    run_id = manifest["run_id"]
    turns = Counter({arm["name"]: 0 for arm in manifest["arms"]})
    with (
        Table(folder / "episodes.csv", EPISODES) as episode_table,
        Table(folder / "turns.csv", TURNS) as turn_table,
    ):
        for played in episodes(rundir.trajectories_path):
            if played["stop_reason"] not in UNSCORED:
                turns[played["key"]["arm"]] += len(played["turns"])
            episode_table.write(episode_line(run_id, played))
            turn_table.write(turn_lines(run_id, played))
    write_performance(folder / "performance.csv", rundir.journal_path, run_id, turns)
