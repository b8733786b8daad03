"""One run from its config to its report: the Python API, and what the command line calls.

The composition of the package's rooms: connect, play, record, judge, show.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from envs import digest, env_id
from evalkit.arms import env_factory, open_arms, slug
from evalkit.config import RunConfig
from evalkit.environment import cache_path
from evalkit.errors import BadConfig, EvalkitError, RunFailed, UsageError
from evalkit.manifest import describe, identities, keep_references, now
from evalkit.play.policy import Policy
from evalkit.play.reference import references
from evalkit.play.rollout import Arm
from evalkit.play.runner import episode_keys, play_all
from evalkit.record.references import Reference
from evalkit.record.rundir import RunDir
from evalkit.record.tables import read_csv
from evalkit.record.tally import ArmTally, Tally
from evalkit.show.files import write_report
from evalkit.show.progress import progress
from evalkit.show.report import Report

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its directory, and what it found."""

    path: Path
    report: Report

    @property
    def summary(self) -> list[dict[str, Any]]:
        """Rows of summary.csv, one per arm, with numbers as numbers."""
        return self.report.summary

    @property
    def verdicts(self) -> list[str]:
        """The comparisons in words, one per pair of arms and metric."""
        return self.report.verdicts

    @property
    def n_error(self) -> int:
        """Episodes lost to infrastructure or to the env; `resume` plays them again."""
        return sum(numbers.n_error for numbers in self.report.numbers.values())

    def episodes(self) -> list[dict[str, str]]:
        """Read episodes.csv."""
        return read_csv(self.path / "episodes.csv")

    def turns(self) -> list[dict[str, str]]:
        """Read turns.csv."""
        return read_csv(self.path / "turns.csv")


def evaluate(
    model: str | Policy | Sequence[str],
    env: str,
    *,
    show: TextIO | None = None,
    **settings: Any,  # noqa: ANN401 - the fields of RunConfig
) -> Run:
    """Play `env` with `model` and report; blocks until done.

    `model` is what `--model` takes, several of them, or a `Policy` object of your own. `settings`
    are the fields of `RunConfig` (`strategy`, `seeds`, `k`, `concurrency`, `temperature`, ...).
    `show` is a stream for progress. In a running event loop, await `evaluate_async`.

    Raises:
        UsageError: it cannot be carried out as asked; nothing was written.
        RunFailed: it stopped half-way; `resume` goes on.

    """
    if asyncio._get_running_loop() is not None:
        raise BadConfig("evaluate() blocks, and an event loop is running: await evaluate_async()")
    return run_async(evaluate_async(model, env, show=show, **settings))


async def evaluate_async(
    model: str | Policy | Sequence[str],
    env: str,
    *,
    show: TextIO | None = None,
    **settings: Any,  # noqa: ANN401 - the fields of RunConfig
) -> Run:
    """Do what `evaluate` does, in a running event loop."""
    own = model if isinstance(model, Policy) else None
    named = model if own is None else f"{slug(type(own).__name__)[:40] or 'policy'}=noop"
    config = RunConfig.read({"model": named, "env": env, **settings}, "evaluate")
    return await start(config, show=show, policy=own)


async def start(
    config: RunConfig, *, show: TextIO | None = None, policy: Policy | None = None
) -> Run:
    """Carry out a config as a new run."""
    known = await references(env_factory(config), config.seeds, cache=cache_path())
    async with planned(config, policy) as (arms, manifest):
        rundir = RunDir.create(Path(config.out), manifest["run_id"], manifest)
        with discarded_if_refused(rundir):
            return await carry_out(config, rundir, manifest, arms, known, show)


async def resume(
    path: Path,
    *,
    show: TextIO | None = None,
    model: Sequence[str] | None = None,
    **limits: Any,  # noqa: ANN401 - the fields of RunConfig that change no trajectory
) -> Run:
    """Go on with a run that was interrupted, and play again what was lost to errors.

    `model` says anew where the models are, with the same labels, when a server has moved; `limits`
    are settings that cannot change a trajectory (`concurrency`, `timeout_s`, `attempts`, ...).

    Raises:
        BadConfig: no run there, or its env is not what it was.

    """
    rundir = RunDir.open(path)
    manifest = rundir.manifest()
    if manifest.get("shard") or rundir.shards_path.exists():
        raise BadConfig(f"{path} is played in shards: python -m evalkit resume {path}")
    config = reopened(rundir, manifest, model, limits)
    make_env = env_factory(config)
    known = await references(make_env, config.seeds, cache=cache_path())
    async with open_arms(config, make_env, manifest["run_id"], None) as (arms, _):
        return await carry_out(config, rundir, manifest, arms, known, show)


@asynccontextmanager
async def planned(
    config: RunConfig, policy: Policy | None = None
) -> AsyncIterator[tuple[list[Arm], dict[str, Any]]]:
    """Connect a new run's arms and say in a manifest what it will be; nothing is written yet."""
    make_env = env_factory(config)
    env = make_env()
    run_id = f"{slug(env_id(env))}-{config.digest(digest(env))}"
    own = None if policy is None else type(policy).__qualname__
    async with open_arms(config, make_env, run_id, policy) as (arms, connected):
        yield arms, describe(config, env, run_id, arms, connected, own)


def reopened(
    rundir: RunDir,
    manifest: Mapping[str, Any],
    model: Sequence[str] | None,
    limits: Mapping[str, Any],
) -> RunConfig:
    """Return the config of a run that was begun, if it can still be played as it was.

    Raises:
        BadConfig: its env or a script is not what it was, or its policy was a Python object.

    """
    path = rundir.path
    config = RunConfig.read({**manifest["config"], **limits}, f"{rundir.manifest_path}")
    if digest(env_factory(config)()) != manifest["env"]["digest"]:
        raise BadConfig(
            f"the env {config.env} is not what it was when {path} began: start a new run"
        )
    if config.digest(manifest["env"]["digest"]) != manifest["config_digest"]:
        raise BadConfig(
            f"a script that {path} plays is not what it was, or not there: start a new run"
        )
    if manifest["policy"] is not None:
        raise BadConfig(
            f"{path} was played by a Python object, {manifest['policy']}: not resumable"
        )
    if model is not None:
        config = config.model_copy(update={"model": _moved(config, model)})
    return config


async def carry_out(
    config: RunConfig,
    rundir: RunDir,
    manifest: Mapping[str, Any],
    arms: Sequence[Arm],
    known: Mapping[str, Reference],
    show: TextIO | None,
) -> Run:
    """Play what is left of a run, then write its tables."""
    await play_left(config, rundir, arms, config.seeds, show)
    return Run(rundir.path, finish(rundir, manifest, known))


async def play_left(
    config: RunConfig,
    rundir: RunDir,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    show: TextIO | None,
) -> Tally:
    """Play what a run directory does not hold yet of `seeds`; return what was counted."""
    names = [arm.name for arm in arms]
    total = len(seeds) * config.k * len(arms)
    tally = Tally(total_episodes=total, arms={name: ArmTally() for name in names})
    keys = episode_keys(seeds, config.k, names)
    say = show.write if show is not None else _silent
    say(f"run {rundir.path}\n")
    try:
        async with AsyncExitStack() as stack:
            human = any(spec.target == "human" for _, spec in config.models())
            if show is not None and not human:
                await stack.enter_async_context(progress(tally, show))
            # a person plays one episode after the other
            at_once = 1 if human else min(config.concurrency, total)
            await play_all(arms, keys, rundir, tally, concurrency=at_once)
    except (asyncio.CancelledError, EvalkitError) as error:
        if isinstance(error, asyncio.CancelledError) or not rundir.untouched:
            say(f"stopped; go on with: python -m evalkit resume {rundir.path}\n")
        if isinstance(error, UsageError) and not rundir.untouched:
            raise RunFailed(str(error)) from error
        raise
    return tally


@contextmanager
def discarded_if_refused(rundir: RunDir) -> Iterator[None]:
    """Remove a new run's directory if an error ends the block before anything was played."""
    try:
        yield
    except EvalkitError:
        if rundir.untouched:
            rundir.discard()
        raise


def finish(rundir: RunDir, manifest: Mapping[str, Any], known: Mapping[str, Reference]) -> Report:
    """Write the tables of a run that was played, and say in its manifest that it is finished."""
    try:
        report = write_report(rundir, identities(manifest), known)
        rundir.write_manifest({**manifest, **keep_references(known), "finished_at": now()})
    except OSError as error:
        raise RunFailed(f"cannot write {rundir.path}: {error}") from error
    return report


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop where there is one."""
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _moved(config: RunConfig, model: Sequence[str]) -> tuple[str, ...]:
    """Return the models named anew, each under the label that it had: arms keep their names."""
    moved = RunConfig.read({**config.model_dump(mode="json"), "model": list(model)}, "--model")
    before, after = [label for label, _ in config.models()], [label for label, _ in moved.models()]
    if before != after:
        raise BadConfig(f"the run's models are {', '.join(before)}, not {', '.join(after)}")
    pairs = zip(config.models(), moved.models(), strict=True)
    return tuple(now_at.under(was.label) for (_, was), (_, now_at) in pairs)


def _silent(_: str) -> None:
    """Say nothing."""
