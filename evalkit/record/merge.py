"""Shards of one run, put together: whether they are one run, and its journal and trajectories.

Every episode must be there once. What cannot be one run is refused before anything is written.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit.errors import BadConfig, DamagedRun
from evalkit.record.journal import read_lines
from evalkit.record.rundir import RunDir, TrajectoryFile, WholeFile
from evalkit.record.shard import Shard
from evalkit.record.trajectory import Key

ALIKE = ("config_digest", "env", "policy", "arms", "evalkit_version", "git_sha")
"""What the manifests of all shards must agree on: everything that a table shows."""


def one_run(paths: Sequence[Path]) -> list[RunDir]:
    """Return the shards of one run, in order, if they are all there and finished.

    Raises:
        BadConfig: one is missing, twice, unfinished, or of another run; says which.
        DamagedRun: a shard holds other episodes than its own.

    """
    found: dict[Shard, RunDir] = {}
    first: Mapping[str, Any] | None = None
    for path in paths:
        rundir = RunDir.open(path)
        manifest = rundir.manifest()
        first = manifest if first is None else first
        shard = _belongs(path, manifest, paths[0], first)
        if shard in found:
            raise BadConfig(f"shard {shard} is there twice: {found[shard].path} and {path}")
        if manifest["finished_at"] is None:
            raise BadConfig(
                f"{path} is not finished: python -m evalkit resume {path}, then merge again"
            )
        found[shard] = rundir
    if first is None:
        raise BadConfig("nothing to merge: name the shards' directories")
    shards = Shard.all(next(iter(found)).count, first["config"]["seeds"])
    missing = [str(shard) for shard in shards if shard not in found]
    if missing:
        raise BadConfig(
            f"run {first['run_id']} lacks shard {', '.join(missing)}: "
            f"expected {len(shards)} shards, found {len(found)}"
        )
    return [found[shard] for shard in shards]


def write_merged(into: RunDir, shards: Sequence[RunDir]) -> None:
    """Write the journal and the trajectories of all shards into one directory.

    Raises:
        DamagedRun: a shard holds other episodes than its own; nothing is written.

    """
    files = [_whole(shard) for shard in shards]
    with WholeFile(into.journal_path) as journal:
        for shard in shards:
            for _, line in read_lines(shard.journal_path):
                journal.write(line + b"\n")
    with WholeFile(into.trajectories_path) as trajectories:
        for _, line in heapq.merge(*(file.lines() for file in files)):
            trajectories.write(line + b"\n")


def _belongs(
    path: Path, manifest: Mapping[str, Any], first_path: Path, first: Mapping[str, Any]
) -> Shard:
    """Return which shard lies at `path`, if it is of the same run as the first one."""
    if manifest.get("shard") is None:
        raise BadConfig(f"{path} is a whole run, not a shard of one")
    shard = Shard.parse(manifest["shard"])
    if manifest["run_id"] != first["run_id"]:
        raise BadConfig(
            f"{path} is a shard of run {manifest['run_id']}, and {first_path} of {first['run_id']}"
        )
    differing = [name for name in ALIKE if manifest[name] != first[name]]
    if differing:
        raise BadConfig(
            f"{path} and {first_path} cannot be one run: their manifests differ in "
            f"{', '.join(differing)}"
        )
    if shard.count != Shard.parse(first["shard"]).count:
        raise BadConfig(
            f"{path} is shard {shard} and {first_path} is shard {first['shard']}: "
            "a run is divided in one way only"
        )
    return shard


def _whole(rundir: RunDir) -> TrajectoryFile:
    """Return a shard's trajectories, if they are exactly those that it was to play."""
    manifest = rundir.manifest()
    config, arms = manifest["config"], [arm["name"] for arm in manifest["arms"]]
    expected = {
        Key(env_seed=seed, repetition=repetition, arm=arm)
        for seed in Shard.parse(manifest["shard"]).of(config["seeds"])
        for repetition in range(config["k"])
        for arm in arms
    }
    file = TrajectoryFile(rundir.trajectories_path)
    played = file.scored.keys() | file.unscored.keys()
    if strange := sorted(played - expected):
        raise DamagedRun(f"{file.path}: episode {strange[0]} is not of shard {manifest['shard']}")
    if missing := sorted(expected - played):
        raise DamagedRun(f"{file.path}: episode {missing[0]} is missing")
    return file
