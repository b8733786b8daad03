"""`evalkit debug`."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.arguments import (
    NOT_GIVEN,
    Parser,
    add_limits,
    json_object,
    optional_float,
    optional_int,
    settings,
)
from evalkit.errors import BadConfig

if TYPE_CHECKING:
    from evalkit.debug.origin import Episode

EXAMPLES = """\
examples:
  python -m evalkit debug --env key_door --model http://127.0.0.1:8000
  python -m evalkit debug --run results/RUN --seed 17 --turn 4
  printf 'step 3\\nback 1\\ndo up\\nrun\\n' | python -m evalkit debug --env key_door --model oracle
"""
LIMITS = ("concurrency", "api_key_env", "timeout_s", "wait_s", "attempts", "out")


def command(words: Sequence[str]) -> int:
    """Play one episode turn by turn: look, change, go back, fork, compare.

    A new episode (--env, --model), or one of a run (--run, --seed), whose replies are given as they
    were recorded until something is changed. `help` lists the commands. Piped commands are echoed;
    the exit code is 1 if one could not be carried out.
    """
    typed = _parser().parse_args(words)
    from evalkit.environment import load_env_file  # noqa: PLC0415

    load_env_file(Path(".env"))
    episode = _recorded(typed) if "run" in typed else _fresh(typed)
    return _session(episode, getattr(typed, "turn", 0), getattr(typed, "api_key_env", ()))


def _parser() -> Parser:
    import argparse  # noqa: PLC0415

    parser = Parser(
        prog="evalkit debug",
        description=command.__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=NOT_GIVEN,
        allow_abbrev=False,
    )
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--env", help="play a new episode of key_door, tic_tac_toe, file.py:Class")
    where.add_argument("--run", type=Path, metavar="RUN", help="take an episode of a run")
    add(
        "--model", metavar="[LABEL=]URL[#NAME]", help="who plays; random, oracle, noop, script:FILE"
    )
    add("--seed", type=int, help="env seed (default 0)")
    add("--arm", help="with --run: needed where the run has several")
    add("--repetition", type=int, help="with --run")
    add("--turn", type=int, metavar="T", help="play the turns before T first")
    add("--env-arg", action="append", metavar="NAME=VALUE", help="with --env: parameter of the env")
    add("--strategy", metavar="NAME", help="with --env: history strategy (default NO_HISTORY)")
    add("--guided", action="store_true", help="with --env: answers only in the env's format")
    add("--temperature", type=optional_float, help="with --env: default 0.1")
    add("--max-tokens", type=optional_int, help="with --env: per completion (default 256)")
    add("--extra-body", type=json_object, metavar="JSON", help="with --env: more request fields")
    add("--run-seed", type=int, help="with --env: seed of the sampling (default 0)")
    add("--out", metavar="DIR", help="where `save` writes (default: results, or beside the run)")
    add_limits(parser)
    return parser


def _fresh(typed: Namespace) -> Episode:
    from evalkit.config import RunConfig  # noqa: PLC0415
    from evalkit.debug.origin import Episode  # noqa: PLC0415

    given = vars(typed)
    _require_none(given, ("arm", "repetition"), "--run")
    if "model" not in given:
        raise BadConfig("--model is missing (see --help)")
    values = {name: value for name, value in given.items() if name not in {"turn", "seed"}}
    values = settings({**values, "seeds": str(given.get("seed", 0))})
    return Episode.fresh(RunConfig.read(values, "command line"))


def _recorded(typed: Namespace) -> Episode:
    from evalkit.debug.origin import RecordedRun  # noqa: PLC0415

    given = vars(typed)
    of_a_new_one = ("env_arg", "strategy", "guided", "temperature", "max_tokens")
    _require_none(given, (*of_a_new_one, "extra_body", "run_seed"), "--env")
    run = RecordedRun(typed.run)
    found = run.find(given.get("seed", 0), given.get("arm"), given.get("repetition", 0))
    limits = {name: given[name] for name in LIMITS if name in given}
    return run.episode(found, given.get("model"), **limits)


def _require_none(given: dict[str, Any], names: Sequence[str], other: str) -> None:
    for name in names:
        if name in given:
            raise BadConfig(f"--{name.replace('_', '-')} needs {other}")


def _session(episode: Episode, turn: int, keys: Sequence[str]) -> int:
    """Sit at the terminal until it is left; return the exit code."""
    from evalkit.debug.origin import Models  # noqa: PLC0415
    from evalkit.debug.terminal import Terminal  # noqa: PLC0415
    from evalkit.debug.workbench import Verb, Workbench  # noqa: PLC0415

    at_terminal = sys.stdin.isatty()
    if at_terminal:
        import readline  # noqa: F401, PLC0415 - importing it is what gives `input` a history
    with asyncio.Runner() as runner:
        models = Models(episode.config, keys)
        bench = Workbench(episode, models)
        try:
            if episode.recorded is None:
                runner.run(models.open(models.first))
            if turn:
                runner.run(bench.do(Verb.RUN, str(turn)))  # before anybody listens
            terminal = Terminal(bench, runner, sys.stdout, echo=not at_terminal)
            terminal.loop(input if at_terminal else _piped)
        finally:
            runner.run(models.aclose())
    return 1 if terminal.failed and not at_terminal else 0


def _piped(_: str) -> str:
    """Read a line of what is piped in."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
