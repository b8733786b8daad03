"""The command line: what was typed becomes a config, what was found becomes text and an exit code.

Exit codes: 0 done; 1 the run failed or lost episodes to errors, and can be resumed; 2 the request
cannot be carried out as typed; 130 and 143 interrupted, and can be resumed. Heavy modules are
imported by the command that needs them, so that `--help` is instant.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from evalkit.arguments import (
    NOT_GIVEN,
    Parser,
    add_limits,
    add_target,
    env_args,
    limit_options,
    merged,
    run_parser,
    settings,
)
from evalkit.errors import BadConfig, EvalkitError, UsageError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from evalkit.run import Run
    from evalkit.sharded import Fleet, PlayedShard
    from evalkit.show.report import Report

    Containers = Callable[[Sequence[str]], Fleet]
    """Makes the fleet on Modal, from the names of the secrets it shall have."""

T = TypeVar("T")
DEFAULT_SHARDS = 8


def main(argv: Sequence[str] | None = None, containers: Containers | None = None) -> int:
    """Carry out a command line; return the exit code.

    `containers` is given where a program that Modal started calls: shards are played there.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in COMMANDS:
            return COMMANDS[words[0]](words[1:])
        if words and words[0] == "resume":
            return resume_command(words[1:], containers)
        return run_command(words[1:] if words[:1] == ["run"] else words, containers)
    except UsageError as error:
        return _fail(error, 2)
    except EvalkitError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def run_command(words: Sequence[str], containers: Containers | None = None) -> int:
    """Play a new run and report it."""
    parser = run_parser()
    if not words:
        parser.print_help()
        return 2
    typed = vars(parser.parse_args(words))
    place = Place.taken_from(typed, there=containers is not None)
    from evalkit.config import RunConfig, load_yaml  # noqa: PLC0415
    from evalkit.environment import load_env_file  # noqa: PLC0415

    load_env_file(Path(".env"))
    file = typed.pop("config", None)
    values = merged(settings(load_yaml(Path(file)) if file else {}), settings(typed))
    for required in ("model", "env"):
        if required not in values:
            raise BadConfig(f"--{required} is missing (see --help)")
    config = RunConfig.read(values, file or "command line")
    if place.target == "modal" and containers is None:
        return _through_modal("evaluate", words, detach=place.detach)
    from evalkit.record.shard import Shard  # noqa: PLC0415
    from evalkit.run import start  # noqa: PLC0415

    if place.shard is None and place.procs is None and place.target != "modal":
        return _played(start(config, show=sys.stderr))
    from evalkit.sharded import start_shard, start_sharded  # noqa: PLC0415

    if place.shard is not None:
        return _shard_played(start_shard(config, Shard.parse(place.shard), show=sys.stderr))
    asked = place.shards if place.procs is None else place.procs
    count = min(DEFAULT_SHARDS, len(config.seeds)) if asked is None else asked
    fleet = place.fleet(containers)
    return _played(start_sharded(config, count, fleet, show=sys.stderr))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the episodes are to be played, and by how many."""

    target: str | None
    procs: int | None = None
    shard: str | None = None
    shards: int | None = None
    secret: Sequence[str] = ()
    detach: bool = False

    @classmethod
    def taken_from(cls, typed: dict[str, Any], *, there: bool) -> Place:
        """Take what says where out of what was typed; `there` is a program that Modal started.

        Raises:
            BadConfig: one needs the other target.

        """
        names = ("procs", "shard", "shards", "secret", "detach")
        said = {name: typed.pop(name) for name in names if name in typed}
        target = typed.pop("target", "modal" if there else None)
        place = cls(target=target, **said)
        if place.target == "modal" and (place.procs is not None or place.shard is not None):
            raise BadConfig("--target modal takes --shards; --procs and --shard play here")
        if place.target != "modal" and (place.shards is not None or place.secret or place.detach):
            raise BadConfig("--shards, --secret and --detach need --target modal")
        return place

    def fleet(self, containers: Containers | None) -> Fleet:
        """Return what plays the shards: `containers`, or else processes."""
        if containers is not None:
            return containers(self.secret)
        from evalkit.processes import Processes  # noqa: PLC0415

        return Processes()


def resume_command(words: Sequence[str], containers: Containers | None = None) -> int:
    """Go on with an interrupted run."""
    parser = Parser(
        prog="evalkit resume",
        description=resume_command.__doc__,
        argument_default=NOT_GIVEN,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="the run's directory")
    parser.add_argument(
        "--model",
        action="append",
        metavar="[LABEL=]URL[#NAME]",
        help="where a model that has moved is now",
    )
    add_limits(parser)
    add_target(parser)
    typed = vars(parser.parse_args(words))
    place = Place.taken_from(typed, there=containers is not None)
    from evalkit.environment import load_env_file  # noqa: PLC0415
    from evalkit.record.rundir import RunDir  # noqa: PLC0415

    load_env_file(Path(".env"))
    rundir = RunDir.open(typed.pop("run"))
    manifest = rundir.manifest()
    if not rundir.shards_path.exists() and manifest.get("shard") is None:
        from evalkit.run import resume  # noqa: PLC0415

        return _played(resume(rundir.path, show=sys.stderr, **typed))
    from evalkit.sharded import resume_shard, resume_sharded  # noqa: PLC0415

    if manifest.get("shard") is not None:
        return _shard_played(resume_shard(rundir.path, show=sys.stderr, **typed))
    target = place.target or manifest["target"]
    if target == "modal" and containers is None:
        return _through_modal("resume", words, detach=place.detach)
    fleet = place.fleet(containers if target == "modal" else None)
    options = limit_options(typed)
    return _played(resume_sharded(rundir.path, fleet, show=sys.stderr, options=options, **typed))


def merge_command(words: Sequence[str]) -> int:
    """Make one run of all of its shards, as if one process had played it."""
    parser = Parser(prog="evalkit merge", description=merge_command.__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="where OUT/<run_id>/ is made")
    parser.add_argument(
        "shard", type=Path, nargs="+", metavar="SHARD", help="the shards' directories"
    )
    typed = parser.parse_args(words)
    from evalkit.sharded import merge  # noqa: PLC0415

    return _played(merge(typed.out, typed.shard))


def replay_command(words: Sequence[str]) -> int:
    """Show a run's episodes turn by turn."""
    parser = Parser(prog="evalkit replay", description=replay_command.__doc__)
    parser.add_argument("run", type=Path, help="the run's directory")
    parser.add_argument("--seed", type=int, required=True, help="env seed")
    parser.add_argument("--arm", help="only this arm")
    parser.add_argument("--repetition", type=int, default=0)
    typed = parser.parse_args(words)
    from evalkit.record.rundir import RunDir, TrajectoryFile  # noqa: PLC0415
    from evalkit.show.replay import replay_lines  # noqa: PLC0415

    rundir = RunDir.open(typed.run)
    wanted = [
        trajectory
        for trajectory in TrajectoryFile(rundir.trajectories_path)
        if trajectory.key.env_seed == typed.seed
        and trajectory.key.repetition == typed.repetition
        and typed.arm in (None, trajectory.key.arm)
    ]
    if not wanted:
        arms = ", ".join(arm["name"] for arm in rundir.manifest()["arms"])
        raise BadConfig(
            f"{typed.run} has no finished episode of seed {typed.seed}, "
            f"repetition {typed.repetition}; its arms are {arms}"
        )
    print("\n\n".join("\n".join(replay_lines(trajectory)) for trajectory in wanted))
    return 0


def compare_command(words: Sequence[str]) -> int:
    """Compare two runs of the same env on the seeds that both finished."""
    parser = Parser(prog="evalkit compare", description=compare_command.__doc__)
    parser.add_argument("run_a", type=Path)
    parser.add_argument("run_b", type=Path)
    parser.add_argument("--names", metavar="A,B", help="what to call them (default: their folders)")
    parser.add_argument("--out", type=Path, help="where to write (default: RUN_B/compare-RUN_A)")
    typed = parser.parse_args(words)
    a, comma, b = (typed.names or "").partition(",")
    if typed.names is not None and not (a and comma and b and a != b):
        raise BadConfig(f"--names takes two names, A,B, not {typed.names!r}")
    from evalkit.run import compare  # noqa: PLC0415
    from evalkit.show.report import write_comparison  # noqa: PLC0415

    report = compare(typed.run_a, typed.run_b, names=(a, b) if comma else None)
    folder = typed.out or typed.run_b / f"compare-{typed.run_a.resolve().name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_comparison(folder, report)
    except OSError as error:
        raise BadConfig(f"cannot write below {folder}: {error}") from error
    _print_report(report, folder)
    return 0


def check_env_command(words: Sequence[str]) -> int:
    """Check that an env keeps every rule of the env contract."""
    parser = Parser(prog="evalkit check-env", description=check_env_command.__doc__)
    parser.add_argument("env", help="key_door, pkg.module:Class or path/to/file.py:Class")
    parser.add_argument("--env-arg", action="append", metavar="NAME=VALUE", default=[])
    parser.add_argument("--seeds", type=int, default=1000, help="episodes of the oracle")
    typed = parser.parse_args(words)
    from envs import BadEnvParams, UnknownEnv, make  # noqa: PLC0415
    from envs.testing import check_env  # noqa: PLC0415

    arguments = env_args(typed.env_arg)
    try:
        make(typed.env, **arguments)
    except (UnknownEnv, BadEnvParams) as error:
        raise BadConfig(str(error)) from error
    report = check_env(lambda: make(typed.env, **arguments), seeds=typed.seeds)
    print(report)
    return 0 if report.ok else 1


def envs_command(words: Sequence[str]) -> int:
    """List the envs that are shipped."""
    Parser(prog="evalkit envs", description=envs_command.__doc__).parse_args(words)
    from envs import make  # noqa: PLC0415
    from envs.registry import SHIPPED  # noqa: PLC0415

    for name in sorted(SHIPPED):
        env = make(name)
        params = " ".join(f"{key}={value}" for key, value in env.params.items())
        print(f"{name}  version {env.version}  {params}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "merge": merge_command,
    "replay": replay_command,
    "compare": compare_command,
    "check-env": check_env_command,
    "envs": envs_command,
}


def _through_modal(entrypoint: str, words: Sequence[str], *, detach: bool) -> int:
    """Become the `modal` command that plays the shards in containers."""
    if find_spec("modal") is None:
        raise BadConfig("--target modal needs the package modal: install palaestra[modal]")
    modal = [sys.executable, "-m", "modal", "run", *(["--detach"] if detach else [])]
    kept = [word for word in words if word != "--detach"]
    argv = [*modal, "-m", f"evalkit.modal_app::{entrypoint}", *kept]
    sys.stdout.flush()
    os.execv(sys.executable, argv)  # noqa: S606 - the user's own modal


def _shard_played(work: Coroutine[Any, Any, PlayedShard]) -> int:
    """Play a shard to its end, and return the exit code."""
    played = _awaited(work)
    if isinstance(played, int):
        return played
    lost = f", {played.n_error} lost to errors" if played.n_error else ""
    print(
        f"{played.path}: {played.n_episodes} episodes of shard {played.shard}{lost}; when all "
        f"shards are done: python -m evalkit merge OUT SHARD..."
    )
    return 1 if played.n_error else 0


def _awaited(work: Coroutine[Any, Any, T]) -> T | int:
    """Run a coroutine that SIGTERM cancels; return what it does, or the exit code."""
    import asyncio  # noqa: PLC0415

    from evalkit.run import run_async  # noqa: PLC0415

    async def terminable() -> T:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return run_async(terminable())
    except asyncio.CancelledError:
        return 143


def _played(work: Coroutine[Any, Any, Run]) -> int:
    """Play a run to its end, print what it found, and return the exit code."""
    run = _awaited(work)
    if isinstance(run, int):
        return run
    _print_report(run.report, run.path)
    if run.n_error:
        print(
            f"\n{run.n_error} episodes were lost to errors and are not scored; "
            f"play them again: python -m evalkit resume {run.path}"
        )
    return 1 if run.n_error else 0


def _print_report(report: Report, folder: Path) -> None:
    from evalkit.show.report import table_cells, text_table  # noqa: PLC0415

    print("\n".join(["", *text_table(table_cells(report))]))
    if report.compared:
        few = len(report.pairs) <= 1
        shown = [
            v
            for c, v in zip(report.compared, report.verdicts, strict=True)
            if few or c.metric.name == "success"
        ]
        print("\n" + "\n".join(shown))
    tables = " ".join(sorted(file.name for file in folder.glob("*.csv")))
    print(f"\n{folder}/: report.md {tables}")


def _fail(error: Exception, code: int) -> int:
    print(f"evalkit: {' '.join(str(error).split())}", file=sys.stderr)
    return code
