"""`evalkit report`. Half of the tables are written by another process while this one judges."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.arguments import Parser
from evalkit.commands.ends import print_report
from evalkit.errors import BadConfig
from evalkit.record.lines import write_lines
from evalkit.record.rundir import RunDir
from evalkit.record.shard import Shard

if TYPE_CHECKING:
    from evalkit.record.numbers import ArmNumbers
    from evalkit.record.references import Reference
    from evalkit.show.report import Report


def command(words: Sequence[str]) -> int:
    """Make the tables and the reports of a run anew from what was recorded, finished or not."""
    parser = Parser(prog="evalkit report", description=command.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's directory")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RUN)")
    typed = parser.parse_args(words)
    rundir = RunDir.open(typed.run)
    manifest = rundir.manifest()
    if rundir.shards_path.exists() and not rundir.trajectories_path.exists():
        raise BadConfig(
            f"{rundir.path} is played in shards: python -m evalkit resume {rundir.path}"
        )
    folder = typed.out or rundir.path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with uncollected(), meanwhile(partial(write_lines, rundir, manifest, folder)):
            report = _findings(rundir, manifest, folder)
    except OSError as error:
        raise BadConfig(f"cannot write below {folder}: {error}") from error
    print_report(report, folder)
    if report.unfinished:
        print(f"\n{report.unfinished}; go on with: python -m evalkit resume {rundir.path}")
    return 0


@contextmanager
def uncollected() -> Iterator[None]:
    """Make no search for cyclic garbage: half the time of many episodes, and there is none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do some work in a process of its own while the block runs; its errors rise at the end.

    Only where this process is a command's, with one thread: the other is a copy of it.
    """
    pid = os.fork()
    if not pid:
        failed = 1
        try:
            work()
            failed = 0
        finally:
            os._exit(failed)
    try:
        yield
    except BaseException:  # raised again: the other process must not outlive this one
        os.kill(pid, signal.SIGINT)
        os.waitpid(pid, 0)
        raise
    if os.waitpid(pid, 0)[1]:
        work()  # once more, where its error can be seen


def _findings(rundir: RunDir, manifest: Mapping[str, Any], folder: Path) -> Report:
    """Judge, and write what was found."""
    from evalkit.manifest import fixed_margin, identities  # noqa: PLC0415
    from evalkit.record.numbers import gather  # noqa: PLC0415
    from evalkit.record.rundir import episodes  # noqa: PLC0415
    from evalkit.show.files import write_findings  # noqa: PLC0415

    columns = identities(manifest)
    numbers = gather(episodes(rundir.trajectories_path), columns)
    return write_findings(
        rundir,
        columns,
        numbers,
        _references(manifest, numbers),
        folder,
        fixed_margin(manifest),
        _unfinished(manifest, numbers),
    )


def _references(
    manifest: Mapping[str, Any], numbers: Mapping[str, ArmNumbers]
) -> Mapping[str, Reference]:
    """Return random and oracle: as a finished run keeps them, or else on what is to be played."""
    from evalkit.manifest import kept_references  # noqa: PLC0415

    if "references" in manifest:
        return kept_references(manifest)
    import asyncio  # noqa: PLC0415

    from evalkit.arms import env_factory  # noqa: PLC0415
    from evalkit.config import RunConfig  # noqa: PLC0415
    from evalkit.environment import cache_path  # noqa: PLC0415
    from evalkit.play.reference import references  # noqa: PLC0415

    config = RunConfig.read(dict(manifest["config"]), "manifest.json")
    played = {seed for arm in numbers.values() for seed in (*arm.success, *arm.lost)}
    stops = config.stop is not None
    seeds = [seed for seed in config.seeds if seed in played] if stops else config.seeds
    return asyncio.run(references(env_factory(config), seeds, cache=cache_path()))


def _unfinished(manifest: Mapping[str, Any], numbers: Mapping[str, ArmNumbers]) -> str:
    """Say what is missing of a run that did not come to its end."""
    if manifest["finished_at"] is not None:
        return ""
    config, shard = manifest["config"], manifest.get("shard")
    seeds = config["seeds"] if shard is None else Shard.parse(shard).of(config["seeds"])
    expected = len(seeds) * config["k"]
    played = {arm: each.stops.total() for arm, each in numbers.items()}
    parts = ", ".join(f"{arm} {n} of {expected}" for arm, n in played.items())
    fewer = ", or fewer once it is decided" if config.get("stop") else ""
    total = expected * len(played)
    return f"Unfinished: {sum(played.values())} of {total} episodes are played{fewer} ({parts})"
