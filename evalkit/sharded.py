"""A run that several play: its seeds dealt out, a directory for each shard, one result.

A run that is begun here has its shards in `shards/` of its own directory, each a run directory that
`resume` takes, until they are merged into it. A shard that is begun on its own, on a machine that
knows nothing of the others, lies beside where the run would, for `merge`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from evalkit.arms import env_factory, open_arms
from evalkit.config import Concurrency, RunConfig
from evalkit.environment import cache_path
from evalkit.errors import BadConfig, RunFailed
from evalkit.manifest import now
from evalkit.play.reference import references
from evalkit.record.merge import one_run, write_merged
from evalkit.record.references import Reference
from evalkit.record.rundir import RunDir
from evalkit.record.shard import Shard
from evalkit.record.tally import Tally
from evalkit.run import (
    Run,
    concluded,
    discarded_if_refused,
    planned,
    play_left,
    reopened,
    resume,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedShard:
    """A shard that was played to its end."""

    path: Path
    shard: Shard
    n_episodes: int
    n_error: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a fleet is asked to do."""

    run: RunDir
    """The run that the shards are of."""
    config: RunConfig
    shards: Sequence[RunDir]
    """All of its shards, finished ones too."""
    todo: Sequence[RunDir]
    """The shards that are to be played: `resume`, and each is finished or can be resumed again."""
    options: Sequence[str]
    """What `resume` shall be told beside the shard and its concurrency."""

    def concurrency(self, shard: RunDir) -> Concurrency:
        """Return how many episodes of a shard are played at once: its part of the config's.

        With `auto` each shard finds its own.
        """
        if self.config.concurrency == "auto":
            return "auto"
        each, rest = divmod(self.config.concurrency, len(self.todo))
        return max(1, each + (self.todo.index(shard) < rest))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How playing a shard ended that did not finish."""

    shard: RunDir
    said: str
    """Why, in one line."""
    usage: bool = False
    """Whether it cannot be carried out as asked."""


class Fleet(Protocol):
    """Somewhere to play shards."""

    name: str
    """As in `--target`."""

    async def play(self, task: Task, show: TextIO | None) -> Sequence[Ended]:
        """Play shards, all of them at once; return those that ended without being finished."""
        ...


async def start_shard(
    config: RunConfig, shard: Shard, *, show: TextIO | None = None
) -> PlayedShard:
    """Play one shard of what `config` asks for, in a directory beside the others'.

    Raises:
        UsageError: it cannot be carried out as asked; nothing was written.
        RunFailed: it stopped half-way; `resume_shard` goes on.

    """
    _require_divisible(config)
    seeds = shard.of(config.seeds)
    async with planned(config) as (arms, plan):
        manifest = {**plan, "shard": str(shard)}
        name = f"{manifest['run_id']}.shard-{shard.folder}"
        rundir = RunDir.create(Path(config.out), name, manifest)
        with discarded_if_refused(rundir):
            tally = await play_left(config, rundir, arms, seeds, show)
    return _closed(rundir, manifest, tally)


async def resume_shard(
    path: Path,
    *,
    show: TextIO | None = None,
    model: Sequence[str] | None = None,
    **limits: Any,  # noqa: ANN401 - the fields of RunConfig that change no trajectory
) -> PlayedShard:
    """Go on with a shard; see `evalkit.run.resume`."""
    rundir = RunDir.open(path)
    manifest = rundir.manifest()
    config = reopened(rundir, manifest, model, limits)
    seeds = Shard.parse(manifest["shard"]).of(config.seeds)
    async with open_arms(config, env_factory(config), manifest["run_id"], None) as (arms, _):
        tally = await play_left(config, rundir, arms, seeds, show)
    return _closed(rundir, manifest, tally)


async def merge(out: Path, paths: Sequence[Path]) -> Run:
    """Make one run, `out/<run_id>`, of all of its shards.

    Its tables are those of the run that one process would have played.

    Raises:
        BadConfig: a shard is missing, twice, unfinished, or of another run.
        DamagedRun: a shard holds other episodes than its own.

    """
    shards = one_run(paths)
    manifests = [shard.manifest() for shard in shards]
    manifest = {key: value for key, value in manifests[0].items() if key != "shard"}
    manifest["shards"] = len(shards)
    manifest["started_at"] = min(each["started_at"] for each in manifests)
    manifest["finished_at"] = None
    config = reopened(shards[0], manifest, None, {})
    known = await references(env_factory(config), config.seeds, cache=cache_path())
    rundir = RunDir.create(out, manifest["run_id"], manifest)
    with discarded_if_refused(rundir):
        return _merged(rundir, shards, manifest, known)


async def start_sharded(
    config: RunConfig, count: int, fleet: Fleet, *, show: TextIO | None = None
) -> Run:
    """Carry out a config as a new run whose shards a fleet plays.

    Raises:
        UsageError: it cannot be carried out as asked; nothing was written.
        RunFailed: a shard did not finish; `resume_sharded` plays what is missing.

    """
    _require_divisible(config)
    Shard.all(count, config.seeds)
    known = await references(env_factory(config), config.seeds, cache=cache_path())
    async with planned(config) as (_, manifest):
        pass
    manifest = {**manifest, "shards": count, "target": fleet.name}
    rundir = RunDir.create(Path(config.out), manifest["run_id"], manifest)
    return await _play_and_merge(rundir, manifest, config, fleet, known, show, options=(), new=True)


async def resume_sharded(
    path: Path,
    fleet: Fleet,
    *,
    show: TextIO | None = None,
    options: Sequence[str] = (),
    model: Sequence[str] | None = None,
    **limits: Any,  # noqa: ANN401 - the fields of RunConfig that change no trajectory
) -> Run:
    """Play the shards that are missing, and merge; `options` say the rest as `resume` takes it."""
    rundir = RunDir.open(path)
    manifest = rundir.manifest()
    if manifest["finished_at"] is not None:  # it was merged, and ended before it had cleared up
        shutil.rmtree(rundir.shards_path)
        return await resume(path, show=show, model=model, **limits)
    config = reopened(rundir, manifest, model, limits)
    known = await references(env_factory(config), config.seeds, cache=cache_path())
    return await _play_and_merge(
        rundir, manifest, config, fleet, known, show, options=options, new=False
    )


async def _play_and_merge(
    rundir: RunDir,
    manifest: Mapping[str, Any],
    config: RunConfig,
    fleet: Fleet,
    known: Mapping[str, Reference],
    show: TextIO | None,
    *,
    options: Sequence[str],
    new: bool,
) -> Run:
    shards = _prepared(rundir, manifest)
    with _held(rundir):
        todo = [shard for shard in shards if not _is_finished(shard)]
        ended: Sequence[Ended] = []
        if todo:
            task = Task(run=rundir, config=config, shards=shards, todo=todo, options=options)
            ended = await fleet.play(task, show)
        if not all(map(_is_finished, shards)):
            if new and all(shard.untouched for shard in shards):
                shutil.rmtree(rundir.path)
            raise _failed(rundir, len(shards), ended)
        run = _merged(rundir, one_run([shard.path for shard in shards]), manifest, known)
        shutil.rmtree(rundir.shards_path)
    return run


def _prepared(rundir: RunDir, manifest: Mapping[str, Any]) -> list[RunDir]:
    """Return the directories of a run's shards, having made those that are not there."""
    kept = {key: value for key, value in manifest.items() if key not in {"shards", "target"}}
    found = []
    try:
        for shard in Shard.all(manifest["shards"], manifest["config"]["seeds"]):
            each = RunDir(rundir.shards_path / shard.folder)
            each.path.mkdir(parents=True, exist_ok=True)
            if not each.manifest_path.exists():
                each.write_manifest({**kept, "shard": str(shard)})
            found.append(each)
    except OSError as error:
        raise BadConfig(f"cannot write below {rundir.path}: {error}") from error
    return found


@contextmanager
def _held(rundir: RunDir) -> Iterator[None]:
    """Keep others from playing or merging the same run meanwhile."""
    handle = os.open(rundir.shards_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise BadConfig(f"{rundir.path} is being played by another process") from error
    try:
        yield
    finally:
        os.close(handle)


def _merged(
    rundir: RunDir,
    shards: Sequence[RunDir],
    manifest: Mapping[str, Any],
    known: Mapping[str, Reference],
) -> Run:
    try:
        write_merged(rundir, shards)
    except OSError as error:
        raise RunFailed(f"cannot write {rundir.path}: {error}") from error
    return concluded(rundir, manifest, known)


def _failed(rundir: RunDir, count: int, ended: Sequence[Ended]) -> BadConfig | RunFailed:
    """Say which shards did not finish, and why."""
    if not rundir.path.exists():
        return BadConfig(ended[0].said) if ended[0].usage else RunFailed(ended[0].said)
    reasons = "; ".join(f"{each.shard.path.name}: {each.said}" for each in ended)
    return RunFailed(
        f"{len(ended)} of {count} shards did not finish ({reasons}); what was played is kept: "
        f"python -m evalkit resume {rundir.path}"
    )


def _closed(rundir: RunDir, manifest: Mapping[str, Any], tally: Tally) -> PlayedShard:
    """Say in a shard's manifest that it is finished."""
    try:
        rundir.write_manifest({**manifest, "finished_at": now()})
    except OSError as error:
        raise RunFailed(f"cannot write {rundir.path}: {error}") from error
    return PlayedShard(
        path=rundir.path,
        shard=Shard.parse(manifest["shard"]),
        n_episodes=tally.episodes,
        n_error=sum(arm.errors for arm in tally.arms.values()),
    )


def _is_finished(rundir: RunDir) -> bool:
    return rundir.manifest()["finished_at"] is not None


def _require_divisible(config: RunConfig) -> None:
    if config.stop is not None:
        raise BadConfig("a run with stop: decided judges seed by seed, and not in shards")
    if any(spec.target == "human" for _, spec in config.models()):
        raise BadConfig("a human plays alone, and not in shards")
