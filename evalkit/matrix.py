"""Runs of one env in several sizes: one run a cell, all arms in it, and one table of them all.

`results/matrix-<env>-<digest>/` holds `matrix.json`, the cells' run directories as ever, and at the
end `matrix.csv` and `matrix.md`. Each cell can be resumed, replayed and compared by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TextIO

import orjson

from envs import TextEnv
from evalkit.arms import env_factory, run_id_of, slug
from evalkit.config import RunConfig
from evalkit.errors import BadConfig, DamagedRun, RunFailed
from evalkit.manifest import identities, kept_references
from evalkit.play.faithful import faith_by_seed
from evalkit.play.strategies import Scratchpad, parse_strategy
from evalkit.record.numbers import gather
from evalkit.record.rundir import RunDir, TrajectoryFile, write_whole
from evalkit.record.tables import write_csv
from evalkit.run import resume, start
from evalkit.show.matrix import MATRIX, Cell, Kept, matrix_markdown, matrix_rows
from evalkit.show.report import make_report

FORMAT = "matrix/1"
MAX_CELLS = 100
Sweep = Mapping[str, Sequence[Any]]
"""Values to try, by parameter of the env."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A matrix that was played."""

    path: Path
    cells: Sequence[Cell]
    rows: Sequence[Mapping[str, Any]]
    """Rows of matrix.csv, with numbers as numbers."""

    @property
    def n_error(self) -> int:
        """Episodes lost to errors; `resume` plays them again."""
        return sum(row["n_error"] for row in self.rows)


def cell_configs(config: RunConfig, sweep: Sweep) -> list[tuple[dict[str, Any], RunConfig]]:
    """Return (parameters, config) of every cell, the first parameter slowest.

    Raises:
        BadConfig: there are too many, or the env does not take one of these parameters.

    """
    combined = [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]
    if len(combined) > MAX_CELLS:
        raise BadConfig(f"at most {MAX_CELLS} cells, not {len(combined)}: sweep fewer values")
    cells = []
    for swept in combined:
        values = {**config.model_dump(), "env_args": {**config.env_args, **swept}}
        cell = RunConfig.read(values, "sweep")
        env_factory(cell)
        cells.append((swept, cell))
    return cells


async def start_matrix(config: RunConfig, sweep: Sweep, *, show: TextIO | None = None) -> Matrix:
    """Play every cell, one after the other, in a new directory below the config's `out`.

    Raises:
        BadConfig: it cannot be played as asked, or the same matrix is there already.

    """
    cells = cell_configs(config, sweep)
    path = Path(config.out) / matrix_id(cells)
    if path.exists():
        raise BadConfig(f"{path} is there already: python -m evalkit resume {path}")
    described = {
        "format": FORMAT,
        "matrix_id": path.name,
        "config": config.model_dump(mode="json"),
        "sweep": {name: list(values) for name, values in sweep.items()},
    }
    try:
        path.mkdir(parents=True)
        write_whole(path / "matrix.json", orjson.dumps(described, option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise BadConfig(f"cannot write results below {config.out}: {error}") from error
    return await _carry_out(path, cells, show)


async def resume_matrix(
    path: Path,
    *,
    show: TextIO | None = None,
    **limits: Any,  # noqa: ANN401 - the fields of RunConfig that change no trajectory
) -> Matrix:
    """Go on with a matrix: cells that are finished without errors are left as they are."""
    config, sweep = _read(path)
    limited = RunConfig.read({**config, **limits}, f"{path / 'matrix.json'}")
    return await _carry_out(path, cell_configs(limited, sweep), show, limits)


def matrix_id(cells: Sequence[tuple[Mapping[str, Any], RunConfig]]) -> str:
    """Name a matrix by its env and by everything that can change a trajectory in it."""
    ids = [run_id_of(cell, env_factory(cell)()) for _, cell in cells]
    named = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:8]
    return f"matrix-{slug(cells[0][1].env)}-{named}"


async def _carry_out(
    path: Path,
    cells: Sequence[tuple[dict[str, Any], RunConfig]],
    show: TextIO | None,
    limits: Mapping[str, Any] | None = None,
) -> Matrix:
    done: list[Cell] = []
    for swept, config in cells:
        here = config.model_copy(update={"out": str(path)})
        env = env_factory(here)()
        rundir = RunDir(path / run_id_of(here, env))
        if not rundir.manifest_path.exists():
            await start(here, show=show)
        elif not _complete(rundir):
            await resume(rundir.path, show=show, **(limits or {}))
        done.append(_cell(swept, rundir, env))
    rows = matrix_rows(path.name, done)
    try:
        write_csv(path / "matrix.csv", MATRIX, rows)
        title = f"{done[0].report.env}: {len(done)} cells"
        write_whole(path / "matrix.md", matrix_markdown(title, rows, done).encode())
    except OSError as error:
        raise RunFailed(f"cannot write {path}: {error}") from error
    return Matrix(path=path, cells=done, rows=rows)


def _complete(rundir: RunDir) -> bool:
    """Whether a run was played to its end with no episode lost."""
    if rundir.manifest()["finished_at"] is None:
        return False
    return not TrajectoryFile(rundir.trajectories_path).unscored


def _cell(swept: Mapping[str, Any], rundir: RunDir, env: TextEnv) -> Cell:
    """Read a finished run; notes are compared where arms keep some that the env can read."""
    manifest = rundir.manifest()
    known = identities(manifest)
    played = TrajectoryFile(rundir.trajectories_path)
    report = make_report(gather(played, known), known, kept_references(manifest))
    noting = {
        arm["name"]: strategy
        for arm in manifest["arms"]
        if isinstance(strategy := parse_strategy(arm["strategy"]), Scratchpad)
    }
    readable = type(env).facts is not TextEnv.facts
    notes = {arm: _kept(rundir, arm, strategy, env) for arm, strategy in noting.items() if readable}
    return Cell(swept=swept, report=report, notes=notes)


def _kept(rundir: RunDir, arm: str, strategy: Scratchpad, env: TextEnv) -> Kept:
    of_arm = (t for t in TrajectoryFile(rundir.trajectories_path) if t.key.arm == arm)
    found = faith_by_seed(of_arm, lambda: env, strategy)
    return Kept(
        recall={
            seed: [f.recall for f in each if f.recall is not None] for seed, each in found.items()
        },
        precision={
            seed: [f.precision for f in each if f.precision is not None]
            for seed, each in found.items()
        },
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    file = path / "matrix.json"
    try:
        raw = orjson.loads(file.read_bytes())
        if raw["format"] != FORMAT:
            raise DamagedRun(f"{file}: expected format {FORMAT}, not {raw['format']!r}")
        return raw["config"], raw["sweep"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedRun(f"{file} cannot be read: {error}") from error
