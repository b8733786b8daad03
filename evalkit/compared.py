"""Finished runs of the same env, compared on the seeds that they share; of several envs, each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from evalkit.errors import BadConfig
from evalkit.manifest import identities, kept_references
from evalkit.record.chosen import Source
from evalkit.record.numbers import ArmNumbers, gather
from evalkit.record.rundir import RunDir, episodes
from evalkit.run import Run
from evalkit.show.pairs import METRICS, corrected
from evalkit.show.report import Report, make_report


def compare(
    *runs: Run | Path | str, names: Sequence[str] | None = None, margin: float | None = None
) -> Report:
    """Compare finished runs of the same env: every arm of one with every arm of the later ones.

    Arms go by `names`, or else by the runs' directories, or by A, B, C... where those have the same
    name. Random and oracle stand beside them as the first run knew them. Rates that differ by less
    than `margin` count as equivalent.

    Raises:
        BadConfig: fewer than two runs, not finished, or not the same env with the same parameters;
            a margin outside (0, 1).

    """
    reports = compare_many(*runs, names=names, margin=margin)
    if len(reports) > 1:
        envs = ", ".join(report.env for report in reports)
        raise BadConfig(f"the runs did not play the same env ({envs}): see compare_many")
    return reports[0]


def compare_many(
    *runs: Run | Path | str, names: Sequence[str] | None = None, margin: float | None = None
) -> list[Report]:
    """Compare finished runs env by env; a report for each env, corrected as one family.

    So Holm and e-BH are over all pairs of arms of all envs, metric by metric. See `compare`.

    Raises:
        BadConfig: as `compare`, or an env that only one of the runs played.

    """
    if margin is not None and not 0.0 < margin < 1.0:
        raise BadConfig(f"a margin is a difference of rates, between 0 and 1, not {margin}")
    paths = [run.path if isinstance(run, Run) else Path(run) for run in runs]
    if len(paths) < 2:
        raise BadConfig(f"expected two runs or more to compare, found {len(paths)}")
    manifests = [RunDir.open(path).manifest() for path in paths]
    groups: dict[str, list[_Side]] = {}
    for path, name, manifest in zip(paths, _names(paths, names), manifests, strict=True):
        if manifest["finished_at"] is None:
            raise BadConfig(f"{path} is not finished: python -m evalkit resume {path}")
        side = _Side(path=path, name=name, manifest=manifest)
        groups.setdefault(manifest["env"]["digest"], []).append(side)
    alone = [sides[0] for sides in groups.values() if len(sides) == 1]
    if alone:
        others = "the others did" if len(paths) > 2 else "the other did"
        raise BadConfig(
            f"{alone[0].path} did not play the same env as {others}: nothing to compare"
        )
    reports = [_report(sides, margin) for sides in groups.values()]
    return reports if len(reports) == 1 else _together(reports)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """A run of a comparison, and what to call it."""

    path: Path
    name: str
    manifest: Mapping[str, Any]


def _names(paths: Sequence[Path], names: Sequence[str] | None) -> Sequence[str]:
    resolved = [path.resolve() for path in paths]
    twice = next((path for path in resolved if resolved.count(path) > 1), None)
    if twice is not None:
        raise BadConfig(f"{paths[resolved.index(twice)]} is compared with itself")
    if names is None:
        folders = [path.name for path in resolved]
        return folders if len(set(folders)) == len(folders) else ascii_uppercase[: len(folders)]
    if len(names) != len(paths) or len(set(names)) != len(names) or not all(names):
        raise BadConfig(f"expected {len(paths)} distinct names, one for each run, not {names!r}")
    return names


def _report(sides: Sequence[_Side], margin: float | None) -> Report:
    """Compare the runs of one env."""
    known: dict[str, dict[str, Any]] = {}
    numbers: dict[str, ArmNumbers] = {}
    sources: dict[str, Source] = {}
    arms: list[list[str]] = []
    for side in sides:
        columns = identities(side.manifest)
        path = RunDir(side.path).trajectories_path
        gathered = gather(episodes(path), columns)
        arms.append([])
        for arm, identity in columns.items():
            name = side.name if len(columns) == 1 else f"{side.name}.{arm}"
            known[name], numbers[name] = {**identity, "arm": name}, gathered[arm]
            sources[name] = Source(path=path, arm=arm)
            arms[-1].append(name)
    pairs = [pair for a, b in combinations(arms, 2) for pair in product(a, b)]
    references = kept_references(sides[0].manifest)
    report = make_report(numbers, known, references, pairs, margin)
    stopped = [side.name for side in sides if side.manifest["config"].get("stop")]
    return replace(report, sources=sources, stopped=stopped)


def _together(reports: Sequence[Report]) -> list[Report]:
    """Correct the comparisons of several reports as one family, metric by metric."""
    found = {
        metric.name: corrected(
            [each for report in reports for each in report.compared if each.metric is metric]
        )
        for metric in METRICS
    }
    rest = {name: iter(family) for name, family in found.items()}
    return [
        replace(report, compared=[next(rest[each.metric.name]) for each in report.compared])
        for report in reports
    ]
