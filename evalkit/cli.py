"""The command line: what was typed becomes a config, what was found becomes text and an exit code.

Exit codes: 0 done; 1 the run failed or lost episodes to errors, and can be resumed; 2 the request
cannot be carried out as typed; 130 and 143 interrupted, and can be resumed. Heavy modules are
imported by the command that needs them, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from evalkit.errors import BadConfig, EvalkitError, UsageError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from evalkit.run import Run
    from evalkit.show.report import Report

NOT_GIVEN = argparse.SUPPRESS
EXAMPLES = """\
examples:
  python -m evalkit --model http://127.0.0.1:8000 --env key_door -n 200
  python -m evalkit --model URL --env key_door --strategy NO_HISTORY,SCRATCHPAD
  python -m evalkit --model A=URL#base --model B=URL#trained --env tic_tac_toe
  python -m evalkit --model oracle --env key_door --env-arg size=5

commands: resume, replay, compare, check-env, envs (each with --help)
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors as one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise BadConfig(f"{message} (see --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = COMMANDS.get(words[0]) if words else None
    try:
        if command is not None:
            return command(words[1:])
        return run_command(words)
    except UsageError as error:
        return _fail(error, 2)
    except EvalkitError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def run_command(words: Sequence[str]) -> int:
    """Play a new run and report it."""
    parser = run_parser()
    if not words:
        parser.print_help()
        return 2
    typed = vars(parser.parse_args(words))
    from evalkit.config import RunConfig, load_yaml  # noqa: PLC0415
    from evalkit.run import start  # noqa: PLC0415

    file = typed.pop("config", None)
    values = merged(settings(load_yaml(Path(file)) if file else {}), settings(typed))
    for required in ("model", "env"):
        if required not in values:
            raise BadConfig(f"--{required} is missing (see --help)")
    config = RunConfig.read(values, file or "command line")
    return _played(start(config, show=sys.stderr))


def run_parser() -> Parser:
    """Return the parser of the default command."""
    parser = Parser(
        prog="evalkit",
        description="Play episodes against any OpenAI-compatible URL and compare honestly.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=NOT_GIVEN,
        allow_abbrev=False,
    )
    _add_task(parser)
    _add_sampling(parser)
    _add_limits(parser)
    return parser


def _add_task(parser: Parser) -> None:
    """Add who plays what, on which seeds."""
    add = parser.add_argument
    add("--config", metavar="FILE", help="YAML with any of these settings; the command line wins")
    add(
        "--model",
        action="append",
        metavar="[LABEL=]URL[#NAME]",
        help="server and model (twice or more: arms); or random, oracle, noop, human, script:FILE",
    )
    add("--env", help="key_door, tic_tac_toe, pkg.module:Class or path/to/file.py:Class")
    add("--env-arg", action="append", metavar="NAME=VALUE", help="parameter of the env")
    add(
        "--strategy",
        action="append",
        metavar="NAME[,NAME]",
        help="NO_HISTORY, FULL_HISTORY, SCRATCHPAD, OPTIMAL_SCRATCHPAD, WINDOW(k), SUMMARY(k); "
        "several are arms",
    )
    add(
        "--guided",
        nargs="?",
        const="on",
        metavar="on|off|off,on",
        help="the server may only answer in the env's format; off,on plays both as arms",
    )
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("-n", type=int, metavar="N", help="env seeds 0 to N-1 (default 100)")
    seeds.add_argument("--seeds", metavar="A:B", help="env seeds A to B-1, or a comma list")
    add("-k", type=int, help="repetitions of every seed (default 1)")
    add("--out", metavar="DIR", help="where DIR/<run_id>/ is made (default results)")


def _add_sampling(parser: Parser) -> None:
    """Add how the model is asked."""
    add = parser.add_argument
    add("--temperature", type=optional_float, help="default 0.1; 'none' leaves it to the server")
    add("--top-p", type=optional_float)
    add("--max-tokens", type=optional_int, help="per completion (default 256)")
    add("--extra-body", type=json_object, metavar="JSON", help="further fields of every request")
    add(
        "--keep-reasoning",
        action=argparse.BooleanOptionalAction,
        help="keep reasoning in the history",
    )
    add("--run-seed", type=int, help="seed of the sampling (default 0)")


def _add_limits(parser: Parser) -> None:
    """Add what cannot change a result."""
    add = parser.add_argument
    add("-c", "--concurrency", type=int, metavar="C", help="episodes at once (default 64)")
    add(
        "--api-key-env",
        action="append",
        metavar="[LABEL=]VAR",
        help="environment variable that holds the API key",
    )
    add("--timeout-s", type=float, help="for one completion (default 120)")
    add(
        "--wait-s",
        type=float,
        help="for a server that is away or starting (default 300; for an absent one at first 0)",
    )
    add("--attempts", type=int, help="tries of a failing call (default 6)")


def settings(typed: dict[str, Any]) -> dict[str, Any]:
    """Turn what was typed into fields of `RunConfig`."""
    values = dict(typed)
    if "n" in values:
        count = values.pop("n")
        if type(count) is not int or count < 1:
            raise BadConfig(f"-n is at least 1, not {count}")
        values["seeds"] = f"0:{count}"
    if "env_arg" in values:
        pairs = values.pop("env_arg")
        values["env_args"] = env_args([pairs] if isinstance(pairs, str) else pairs)
    return values


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay settings over others; parameters of the env one by one."""
    values = {**base, **over}
    under = base.get("env_args")
    if "env_args" in over and isinstance(under, dict):
        values["env_args"] = {**under, **over["env_args"]}
    return values


def env_args(pairs: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE pairs; values are JSON where they parse as it, else texts."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise BadConfig(f"--env-arg is NAME=VALUE, not {pair!r}")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = {"True": True, "False": False, "None": None}.get(text, text)
    return values


def resume_command(words: Sequence[str]) -> int:
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
    _add_limits(parser)
    typed = vars(parser.parse_args(words))
    from evalkit.run import resume  # noqa: PLC0415

    return _played(resume(typed.pop("run"), show=sys.stderr, **typed))


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
    "run": run_command,
    "resume": resume_command,
    "replay": replay_command,
    "compare": compare_command,
    "check-env": check_env_command,
    "envs": envs_command,
}


def optional_float(text: str) -> float | None:
    """Read a number, or "none"."""
    try:
        return None if text.lower() == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or none, not {text!r}") from None


def optional_int(text: str) -> int | None:
    """Read a whole number, or "none"."""
    try:
        return None if text.lower() == "none" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number or none, not {text!r}") from None


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, not {text!r}")
    return value


def _played(work: Coroutine[Any, Any, Run]) -> int:
    """Play a run to its end, print what it found, and return the exit code."""
    import asyncio  # noqa: PLC0415

    from evalkit.run import run_async  # noqa: PLC0415

    async def terminable() -> Run:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        run = run_async(terminable())
    except asyncio.CancelledError:
        return 143
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
