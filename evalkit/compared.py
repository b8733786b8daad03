"""Two finished runs of the same env, compared on the seeds that both finished."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from evalkit.errors import BadConfig
from evalkit.manifest import identities, kept_references
from evalkit.record.numbers import ArmNumbers, gather
from evalkit.record.rundir import RunDir, TrajectoryFile
from evalkit.run import Run
from evalkit.show.report import Report, make_report


def compare(
    run_a: Run | Path | str, run_b: Run | Path | str, *, names: tuple[str, str] | None = None
) -> Report:
    """Compare two finished runs of the same env: every arm of A with every arm of B.

    Arms go by `names`, or else by the runs' directories, or by A and B where those have the same
    name. Random and oracle stand beside them as run A knew them.

    Raises:
        BadConfig: no finished run there, or not the same env with the same parameters.

    """
    paths = [run.path if isinstance(run, Run) else Path(run) for run in (run_a, run_b)]
    manifests = [RunDir.open(path).manifest() for path in paths]
    for path, manifest in zip(paths, manifests, strict=True):
        if manifest["finished_at"] is None:
            raise BadConfig(f"{path} is not finished: python -m evalkit resume {path}")
    if manifests[0]["env"]["digest"] != manifests[1]["env"]["digest"]:
        raise BadConfig(f"{paths[0]} and {paths[1]} did not play the same env: nothing to compare")
    if paths[0].resolve() == paths[1].resolve():
        raise BadConfig(f"{paths[0]} is compared with itself")
    known: dict[str, dict[str, Any]] = {}
    numbers: dict[str, ArmNumbers] = {}
    arms: list[list[str]] = [[], []]
    called = names or tuple(path.resolve().name for path in paths)
    called = called if called[0] != called[1] else ("A", "B")
    for side, path, manifest in zip((0, 1), paths, manifests, strict=True):
        columns = identities(manifest)
        gathered = gather(TrajectoryFile(RunDir(path).trajectories_path), columns)
        for arm, identity in columns.items():
            name = called[side] if len(columns) == 1 else f"{called[side]}.{arm}"
            known[name], numbers[name] = {**identity, "arm": name}, gathered[arm]
            arms[side].append(name)
    pairs = list(product(arms[0], arms[1]))
    return make_report(numbers, known, kept_references(manifests[0]), pairs)
