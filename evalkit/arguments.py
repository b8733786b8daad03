"""What can be typed: the options of the commands, and how they become settings.

Imports nothing heavy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from evalkit.errors import BadConfig

NOT_GIVEN = argparse.SUPPRESS
EXAMPLES = """\
examples:
  python -m evalkit --model http://127.0.0.1:8000 --env key_door -n 200
  python -m evalkit --model URL --env key_door --strategy NO_HISTORY,SCRATCHPAD
  python -m evalkit --model A=URL#base --model B=URL#trained --env tic_tac_toe
  python -m evalkit --model oracle --env key_door --env-arg size=5
  python -m evalkit --model A=URL --model B=URL --env key_door --stop decided --margin .02
  python -m evalkit --model URL --env key_door --strategy all --size 3,4,5,7

  python -m evalkit --model URL --env key_door -n 1000 --procs 4
  python -m evalkit --model URL --env key_door -n 1000 --target modal --shards 8
  python -m evalkit --model URL --env key_door -n 1000 --shard 2/8

commands: resume, merge, report, replay, fork, debug, compare, power, check-stats, check-env, envs,
  view, leaderboard, export, import, watch (each with --help)
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors as one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise BadConfig(f"{message} (see --help)")


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
    _add_seeds(parser)
    add_sampling(parser)
    _add_stop(parser)
    add_limits(parser)
    _add_places(parser)
    return parser


def _add_task(parser: Parser) -> None:
    """Add who plays what."""
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
        "--sweep",
        action="append",
        metavar="NAME=V,V",
        help="values of a parameter of the env to try one by one: a run each, and a matrix",
    )
    add("--size", metavar="N[,N]", help="the env's size; several are --sweep size=N,N")
    add(
        "--strategy",
        action="append",
        metavar="NAME[,NAME]",
        help="NO_HISTORY, FULL_HISTORY, SCRATCHPAD, OPTIMAL_SCRATCHPAD, WINDOW(k), SUMMARY(k); "
        "several are arms, and so are all of them: all",
    )
    add(
        "--guided",
        nargs="?",
        const="on",
        metavar="on|off|off,on",
        help="the server may only answer in the env's format; off,on plays both as arms",
    )


def _add_seeds(parser: Parser) -> None:
    """Add how often it is played, and what becomes of it."""
    add = parser.add_argument
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument(
        "-n",
        "--num-examples",
        dest="n",
        type=int,
        metavar="N",
        help="env seeds 0 to N-1 (default 100)",
    )
    seeds.add_argument("--seeds", metavar="A:B", help="env seeds A to B-1, or a comma list")
    seeds.add_argument(
        "--max-seeds",
        type=int,
        metavar="N",
        help="with --stop: env seeds 0 to N-1 at most (default 2000)",
    )
    add("-k", type=int, help="repetitions of every seed (default 1)")
    add("--out", metavar="DIR", help="where DIR/<run_id>/ is made (default results)")
    add("--wandb", metavar="PROJECT", help="log the summary to Weights & Biases")
    add(
        "--price",
        action="append",
        metavar="[LABEL=]IN,OUT",
        help="$ per million tokens, of prompts and of completions: gives the cost of each success",
    )


def _add_stop(parser: Parser) -> None:
    """Add when a comparison of arms stops before its seeds are used up."""
    add = parser.add_argument
    add(
        "--stop",
        choices=("decided",),
        help="look after every seed, and stop when all pairs of arms are decided",
    )
    add(
        "--stop-on",
        metavar="METRIC",
        help="what decides: success (default), valid_action_rate, or return with --span",
    )
    add("--alpha", type=float, help="with --stop: chance of a false decision (default .05)")
    add(
        "--margin",
        type=float,
        help="arms whose rates differ by less are equivalent, .02 is 2 points (default: none)",
    )
    add(
        "--span",
        type=float,
        help="with --stop-on return: the highest return less the lowest that there can be",
    )


def add_sampling(parser: Parser) -> None:
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


def add_limits(parser: Parser) -> None:
    """Add what cannot change a result."""
    add = parser.add_argument
    add(
        "-c",
        "--concurrency",
        type=number_or_auto,
        metavar="C|auto",
        help="episodes at once (default 64); auto finds what each server answers fastest",
    )
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


def _add_places(parser: Parser) -> None:
    """Add where the episodes are played, and by how many."""
    shared = parser.add_mutually_exclusive_group()
    shared.add_argument(
        "--procs", type=int, metavar="N", help="play in N processes of this machine, and merge"
    )
    shared.add_argument(
        "--shard", metavar="I/N", help="play every N-th env seed from the I-th on, for `merge`"
    )
    shared.add_argument("--shards", type=int, metavar="N", help="containers (default 8)")
    add_target(parser)


def add_target(parser: Parser) -> None:
    """Add the choice between this machine and containers on Modal."""
    parser.add_argument(
        "--target", choices=("local", "modal"), help="where to play (default local)"
    )
    parser.add_argument(
        "--secret",
        action="append",
        metavar="NAME",
        help="secret on Modal that holds the API key; else it is sent from here",
    )
    parser.add_argument(
        "--detach", action="store_true", help="on Modal: go on when this command is gone"
    )


def limit_options(typed: Mapping[str, Any]) -> list[str]:
    """Write limits, and where models are now, as the command line has them."""
    words = []
    for name, value in typed.items():
        if name == "concurrency" or value is None:
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [f"--{name.replace('_', '-')}", str(each)]
    return words


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


def sweep_of(typed: dict[str, Any]) -> dict[str, list[Any]]:
    """Take what shall be swept out of what was typed, and a single size as parameter of the env.

    Raises:
        BadConfig: a parameter is named twice, or has no values, or one twice.

    """
    texts = typed.pop("sweep", [])
    texts = [texts] if isinstance(texts, str) else list(texts)
    size = typed.pop("size", None)
    if size is not None and "," in str(size):
        texts.append(f"size={size}")
    elif size is not None:
        given = typed.get("env_arg", [])
        typed["env_arg"] = [*([given] if isinstance(given, str) else given), f"size={size}"]
    sweep: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        parts = [part.strip() for part in values.split(",")]
        if not equals or not name.isidentifier() or not all(parts):
            raise BadConfig(f"--sweep is NAME=VALUE,VALUE, not {text!r}")
        if name in sweep or len(set(parts)) != len(parts):
            raise BadConfig(f"--sweep {text!r}: a parameter once, and each value once")
        sweep[name] = [env_args([f"{name}={part}"])[name] for part in parts]
    return sweep


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


def optional_float(text: str) -> float | None:
    """Read a number, or "none"."""
    try:
        return None if text.lower() == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or none, not {text!r}") from None


def number_or_auto(text: str) -> int | str:
    """Read a whole number, or "auto"."""
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number or auto, not {text!r}") from None


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
