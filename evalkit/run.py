"""One run from its config to its report: the Python API, and what the command line calls.

The composition of the package's rooms: connect, play, record, judge, show.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeVar

from envs import digest
from evalkit.arms import env_factory, open_arms, run_id_of, slug
from evalkit.config import RunConfig
from evalkit.environment import cache_path
from evalkit.errors import BadConfig, EvalkitError, RunFailed, UsageError
from evalkit.manifest import describe, fixed_margin, identities, keep_references, now
from evalkit.play.crew import gates_of
from evalkit.play.gate import Gate
from evalkit.play.policy import Policy
from evalkit.play.reference import references
from evalkit.play.rollout import Arm
from evalkit.play.runner import episode_keys, play_all
from evalkit.play.stopping import Stopping
from evalkit.record.references import Reference
from evalkit.record.rundir import RunDir
from evalkit.record.tables import read_csv
from evalkit.record.tally import ArmTally, Tally
from evalkit.show.files import write_report
from evalkit.show.progress import progress
from evalkit.show.report import Report
from evalkit.show.sequential import look_words
from evalkit.wandb_sink import WandbSink, require_wandb

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
        """The comparisons in words: what the run stopped on, then one per pair and metric."""
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
    known = await references(env_factory(config), _certain(config), cache=cache_path())
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
    if manifest.get("fork") is not None:
        raise BadConfig(f"{path} is a fork, which is not resumed: fork its parent again")
    config = reopened(rundir, manifest, model, limits)
    make_env = env_factory(config)
    known = await references(make_env, _certain(config), cache=cache_path())
    async with open_arms(config, make_env, manifest["run_id"], None) as (arms, _):
        return await carry_out(config, rundir, manifest, arms, known, show)


@asynccontextmanager
async def planned(
    config: RunConfig, policy: Policy | None = None
) -> AsyncIterator[tuple[list[Arm], dict[str, Any]]]:
    """Connect a new run's arms and say in a manifest what it will be; nothing is written yet."""
    if config.wandb is not None:
        require_wandb()
    make_env = env_factory(config)
    env = make_env()
    run_id = run_id_of(config, env)
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
    if manifest.get("imported") is not None:
        raise BadConfig(f"{path} was imported: there is nothing to play in it")
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
    """Play what is left of a run, or as much as decides it, then write its tables."""
    stopping = _stopping(config, arms)
    await play_left(config, rundir, arms, config.seeds, show, stopping)
    if stopping is not None:
        known = await references(arms[0].make_env, stopping.judged, cache=cache_path())
        manifest = {**manifest, "n_seeds_judged": len(stopping.judged)}
    return concluded(rundir, manifest, known)


async def play_left(
    config: RunConfig,
    rundir: RunDir,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    show: TextIO | None,
    stopping: Stopping | None = None,
) -> Tally:
    """Play what a run directory does not hold yet of `seeds`; return what was counted."""
    names = [arm.name for arm in arms]
    total = len(seeds) * config.k * len(arms)
    tally = Tally(
        total_episodes=total,
        arms={name: ArmTally() for name in names},
        may_stop=stopping is not None,
    )
    keys = episode_keys(seeds, config.k, names)
    say = show.write if show is not None else _silent
    say(f"run {rundir.path}\n")
    try:
        async with AsyncExitStack() as stack:
            human = any(spec.target == "human" for _, spec in config.models())
            if show is not None and not human:
                below = list if stopping is None else partial(_looks, stopping)
                await stack.enter_async_context(progress(tally, show, below))
            # a person plays one episode after the other
            gates = gates_of(arm.policy for arm in arms)
            at_once = 1 if human else total if gates else min(config.at_once, total)
            await play_all(arms, keys, rundir, tally, concurrency=at_once, stopping=stopping)
    except (asyncio.CancelledError, EvalkitError) as error:
        if isinstance(error, asyncio.CancelledError) or not rundir.untouched:
            say(f"stopped; go on with: python -m evalkit resume {rundir.path}\n")
        if isinstance(error, UsageError) and not rundir.untouched:
            raise RunFailed(str(error)) from error
        raise
    for gate in gates:
        say(f"concurrency settled at {gate.settled}{_whose(gate, arms)}\n")
    if stopping is not None and stopping.wasted:
        say(f"{stopping.wasted} episodes beyond the stop were begun, and do not count\n")
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


def concluded(rundir: RunDir, manifest: Mapping[str, Any], known: Mapping[str, Reference]) -> Run:
    """Finish a run that was played, and log its summary where its config says so.

    Raises:
        RunFailed: it cannot be written, or cannot be logged; then its tables are there.

    """
    run = Run(rundir.path, finish(rundir, manifest, known))
    config = manifest["config"]
    if config.get("wandb") is not None:
        name = rundir.path.name
        with WandbSink(config["wandb"], folder=rundir.path, name=name, config=config) as sink:
            for row in run.summary:
                sink.summarise({f"{row['arm']}/{column}": row[column] for column in row})
    return run


def finish(rundir: RunDir, manifest: Mapping[str, Any], known: Mapping[str, Reference]) -> Report:
    """Write the tables of a run that was played, and say in its manifest that it is finished."""
    try:
        report = write_report(rundir, identities(manifest), known, margin=fixed_margin(manifest))
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


def _certain(config: RunConfig) -> Sequence[int]:
    """Return the seeds that are known to count before a run has been played."""
    return config.seeds if config.stop is None else config.seeds[:1]


def _stopping(config: RunConfig, arms: Sequence[Arm]) -> Stopping | None:
    if config.stop is None or config.stop_on is None:
        return None
    return Stopping(
        seeds=config.seeds,
        k=config.k,
        arms=[arm.name for arm in arms],
        deciding=config.stop_on,
        rule=config.stopping_rule(),
        concurrency=config.at_once,
    )


def _whose(gate: Gate, arms: Sequence[Arm]) -> str:
    """Name the arms of a gate, where it is not the only one."""
    names = [arm.name for arm in arms if arm.policy.gate is gate]
    return f" for {', '.join(names)}" if len(names) < len(arms) else ""


def _looks(stopping: Stopping) -> list[str]:
    """Say what is known of every pair of arms by now."""
    looks = stopping.looks()
    return [look_words(pair, look, stopping.deciding) for pair, look in looks.items()]


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
