"""A fork as a run of its own: a directory that says of which run, episode and turn it is the fork.

The first turns are the parent's, replayed and compared to the byte before anything is written.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from evalkit.config import RunConfig
from evalkit.debug.interventions import Intervention, InterventionKind
from evalkit.debug.origin import FORK_FORMAT, Episode, Models, RecordedRun, Unasked, origin_run_id
from evalkit.debug.session import Debugger
from evalkit.environment import cache_path
from evalkit.errors import BadConfig, EvalkitError, first_error
from evalkit.manifest import describe
from evalkit.play.policy import Policy
from evalkit.play.reference import references
from evalkit.play.runner import RecordedPolicy
from evalkit.record.journal import Appender
from evalkit.record.rundir import RunDir, TrajectoryFile
from evalkit.record.tally import Tally
from evalkit.record.trajectory import Trajectory
from evalkit.run import discarded_if_refused, finish

Change = tuple[InterventionKind, str]
MAX_ORIGIN_CHARS = 120
"""A fork is named after its parent, as far as forks of forks still make the name of a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """A fork that was played to its end."""

    path: Path
    parent: Trajectory
    futures: tuple[Trajectory, ...]


async def fork(
    run: RecordedRun,
    parent: Trajectory,
    turn: int,
    changes: Sequence[Change],
    *,
    model: str | None = None,
    n: int = 1,
    **settings: object,
) -> Forked:
    """Replay an episode up to `turn`, change something there, and play on, `n` times.

    The first future has the request seeds of the parent's repetition, the others those of the
    repetitions after it. `settings` are limits, `api_key_env` and `out`.

    Raises:
        BadConfig: it has no such turn, or cannot be changed so; nothing was written.
        ReplayDiffers: the parent does not play the same again; nothing was written.

    """
    episode = run.episode(parent, model, k=n, **settings)
    rehearsed = await _at(episode, turn, Unasked())
    _change(rehearsed, changes)
    async with Models(episode.config) as models:
        found = await models.open(models.first)
        config = episode.config.model_copy(
            update={"strategy": (str(rehearsed.arm.strategy),), "k": n}
        )
        made = rehearsed.interventions
        if model is not None:
            changed = Intervention(turn=turn, kind=InterventionKind.MODEL, value=models.first)
            made = [*made, changed]
        arm = replace(rehearsed.arm, policy=found.policy)
        env = arm.make_env()
        label = config.models()[0][0]
        described = describe(config, env, "", [arm], {label: found}, None)
        manifest = _manifest(episode, described, turn, made)
        rundir = RunDir.create(Path(config.out), manifest["run_id"], manifest)
        with discarded_if_refused(rundir):
            named = replace(episode, arm=replace(episode.arm, run_id=manifest["run_id"]))
            futures = await _play(named, turn, changes, found.policy, rundir, n)
    await _finish(rundir, manifest, episode)
    return Forked(path=rundir.path, parent=parent, futures=futures)


async def save(episode: Episode, debugger: Debugger, models: Models, model: str) -> Path:
    """Write an episode that was debugged to its end as a run; return its directory.

    `model` played last. Where it was never asked, the run that the episode comes from describes it.

    Raises:
        BadConfig: it is not over.

    """
    if debugger.end is None:
        raise BadConfig(f"the episode is not over, it is at turn {debugger.turn}: run it to an end")
    config = models.config(model).model_copy(update={"strategy": (str(debugger.arm.strategy),)})
    label, spec = config.models()[0]
    found = models.connected(model)
    if found is None and not spec.is_url:
        found = await models.open(model)
    env = debugger.arm.make_env()
    if found is not None:
        arm = replace(debugger.arm, policy=found.policy)
        described = describe(config, env, "", [arm], {label: found}, None)
    elif episode.entry is None or model != models.first:
        raise BadConfig(f"{model} was never asked: nothing is known of it to write down")
    else:
        described = describe(config, env, "", [], {}, None)
        entry = {"name": episode.arm.name, "strategy": str(debugger.arm.strategy)}
        described["arms"] = [{**episode.entry, **entry}]
    manifest = _manifest(episode, described, _parted(episode, debugger), debugger.interventions)
    rundir = RunDir.create(Path(config.out), manifest["run_id"], manifest)
    with Appender(rundir.trajectories_path) as file:
        key = replace(debugger.end.key, arm=manifest["arms"][0]["name"])
        TrajectoryFile(rundir.trajectories_path).append(file, replace(debugger.end, key=key))
    await _finish(rundir, manifest, episode)
    return rundir.path


async def _at(episode: Episode, turn: int, live: Policy) -> Debugger:
    """Return an episode that was replayed up to a turn, and goes on live."""
    debugger = episode.debugger(live)
    recorded = () if episode.recorded is None else episode.recorded.turns
    if 0 <= turn <= len(recorded):
        await debugger.run(turn)
    if debugger.turn != turn or debugger.end is not None:
        raise BadConfig(
            f"{debugger.key}: no turn {turn} to fork at: it has turns 0 to {len(recorded) - 1}"
        )
    debugger.leave_record()
    return debugger


def _change(debugger: Debugger, changes: Sequence[Change]) -> None:
    for kind, value in changes:
        debugger.intervene(kind, value)


async def _play(
    episode: Episode, turn: int, changes: Sequence[Change], policy: Policy, rundir: RunDir, n: int
) -> tuple[Trajectory, ...]:
    """Play the futures, with their calls in the journal."""
    with Appender(rundir.journal_path) as journal, Appender(rundir.trajectories_path) as file:
        trajectories = TrajectoryFile(rundir.trajectories_path)
        live = RecordedPolicy(policy, journal, {}, Tally(total_episodes=n, arms={}))
        asked = episode.config.concurrency
        limit = asyncio.Semaphore(asked if isinstance(asked, int) else n)

        async def one(number: int) -> Trajectory:
            async with limit:
                debugger = await _at(episode, turn, live)
                if number:
                    repetition = str(debugger.key.repetition + number)
                    debugger.intervene(InterventionKind.REPETITION, repetition)
                _change(debugger, changes)
                trajectory = await debugger.finish()
                trajectories.append(file, trajectory)
                return trajectory

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number)) for number in range(n)]
        except BaseExceptionGroup as several:
            raise first_error(several, EvalkitError) from several
        trajectories.arrange()
        return tuple(task.result() for task in tasks)


def _manifest(
    episode: Episode, described: Mapping[str, Any], turn: int, made: Sequence[Intervention]
) -> dict[str, Any]:
    """Return what describes a run, as a fork of another."""
    parent = None
    if episode.recorded is not None:
        key = episode.recorded.key
        parent = {"run_id": origin_run_id(episode), "directory": episode.directory, **asdict(key)}
    record = {
        "format": FORK_FORMAT,
        "parent": parent,
        "turn": turn,
        "strategy": str(episode.arm.strategy),
        "repetition": episode.key.repetition,
        "interventions": [asdict(one) for one in made],
    }
    named = orjson.dumps([record, described["config_digest"]], option=orjson.OPT_SORT_KEYS)
    seed = episode.key.env_seed
    name = hashlib.sha256(named).hexdigest()[:8]
    run_id = f"{origin_run_id(episode)[:MAX_ORIGIN_CHARS]}-s{seed}-t{turn}-{name}"
    return {**described, "run_id": run_id, "fork": record}


def _parted(episode: Episode, debugger: Debugger) -> int:
    """Return the turn at which a debugged episode leaves the one that it comes from."""
    if episode.recorded is None:
        return min((made.turn for made in debugger.interventions), default=0)
    pairs = zip(episode.recorded.turns, debugger.turns, strict=False)
    same = next((number for number, (was, now) in enumerate(pairs) if was != now), None)
    return min(len(episode.recorded.turns), debugger.turn) if same is None else same


async def _finish(rundir: RunDir, manifest: Mapping[str, Any], episode: Episode) -> None:
    """Write the fork's tables."""
    config: RunConfig = episode.config
    known = await references(episode.arm.make_env, config.seeds, cache=cache_path())
    finish(rundir, manifest, known)
