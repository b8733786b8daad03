"""The command line: `grpo` trains, `checkpoints` looks at what was kept, `tiny` makes a policy.

Imports nothing heavy before the arguments are parsed, so that --help is instant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from train.errors import BadConfig, TrainError, UsageError

if TYPE_CHECKING:
    from train.config import TrainConfig
    from train.run import RunDir

    _Commands = argparse._SubParsersAction[Any]

_EXIT_CODES = """
exit codes: 0 done, 1 it stopped half-way and --resume goes on, 2 wrong usage,
130 and 143 stopped by a signal
"""
_EPILOG = f"""examples:
  python -m train grpo --env key_door --model ./checkpoint
  python -m train grpo --config train/configs/key_door_tiny.yaml --set learn.steps=200
  python -m train grpo --resume runs/grpo_20260101_120000
  python -m train checkpoints list runs/grpo_20260101_120000
  python -m train tiny key_door --out tiny-key-door
{_EXIT_CODES}"""
_GRPO_EPILOG = f"""examples:
  python -m train grpo --env key_door --env-arg size=4 --model ./checkpoint --steps 50
  python -m train grpo --env key_door --model ./checkpoint --url http://127.0.0.1:8000/v1
  python -m train grpo --config FILE --set learn.loss=cispo --set rollouts.temperature=0.9
  python -m train grpo --config FILE --dry-run
  python -m train grpo --resume runs/grpo_20260101_120000 --set learn.steps=400

--set wins over the other options, they win over the file, and that over the defaults; all keys
are in train/config.py, and --dry-run shows them as they are resolved
{_EXIT_CODES}"""
_KEYS = {
    "env": "env.name",
    "model": "model.path",
    "url": "gateway.url",
    "strategy": "rollouts.strategy",
    "steps": "learn.steps",
    "mode": "learn.mode",
    "seed": "learn.seed",
    "lr": "learn.learning_rate",
    "group_size": "rollouts.group_size",
    "groups_per_step": "rollouts.groups_per_step",
    "out": "out",
}
"""The options that stand for a key of the config each."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors as one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise BadConfig(f"{message} (see --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except UsageError as error:
        return _complain(error, 2)
    except TrainError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _run(words: list[str]) -> int:
    parser = _parser(words)
    if not words:
        parser.print_help()
        return 2
    options = parser.parse_args(words)
    if options.command == "grpo":
        return _grpo(options)
    if options.command == "tiny":
        return _tiny(options)
    from train import checkpoints_cli  # noqa: PLC0415  # not for --help

    return checkpoints_cli.run(options)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; `checkpoints` in full only where it is asked for."""
    parser: argparse.ArgumentParser = Parser(
        prog="python -m train",
        description="Improve a served policy by GRPO on the env that evaluates it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_grpo(commands)
    if words[:1] == ["checkpoints"]:
        from train import checkpoints_cli  # noqa: PLC0415  # not for --help

        checkpoints_cli.add_parser(commands)
    else:
        commands.add_parser("checkpoints", help="list, show and compare the checkpoints of a run")
    tiny = commands.add_parser(
        "tiny", help="make a tiny policy that plays a game a little", allow_abbrev=False
    )
    tiny.add_argument("name", metavar="NAME", help="which recipe: key_door, for instance")
    tiny.add_argument("--out", required=True, metavar="DIR", help="the checkpoint's folder")
    tiny.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    return parser


def _add_grpo(commands: _Commands) -> None:
    grpo = commands.add_parser(
        "grpo",
        help="train a policy; it is served, played, improved and published",
        description="Train a policy by GRPO, with rollouts from the gateway that serves it.",
        epilog=_GRPO_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = grpo.add_argument
    add("--config", metavar="FILE", help="YAML with any of the settings")
    add("--resume", metavar="RUN", help="go on with the run in this folder")
    add("--env", help="key_door, tic_tac_toe, pkg.module:Class or path/to/file.py:Class")
    add("--env-arg", action="append", default=[], metavar="K=V", help="parameter of the env")
    add("--model", metavar="PATH", help="a folder, or what `python -m serve pull` knows")
    add("--url", help="a gateway's http://HOST:PORT/v1 (default: one is started for the run)")
    add("--strategy", metavar="S", help="FULL_HISTORY (default), NO_HISTORY, SCRATCHPAD ...")
    add("--steps", type=int, metavar="N", help="optimizer steps (default: 100)")
    add("--mode", metavar="async|sync", help="play while learning (default), or in turns")
    add("--seed", type=int, metavar="N", help="of the run (default: 0)")
    add("--lr", type=float, metavar="X", help="learning rate (default: 1e-6)")
    add("--group-size", type=int, metavar="G", help="episodes of one env seed (default: 8)")
    add("--groups-per-step", type=int, metavar="B", help="env seeds per step (default: 8)")
    add("--lora", action="store_true", help="train an adapter instead of all weights")
    add("--out", metavar="DIR", help="where DIR/grpo_DATE_TIME/ is made (default: runs)")
    add("--set", action="append", default=[], metavar="A.B=C", help="any setting; C is YAML")
    add("--dry-run", action="store_true", help="print the resolved config and stop")


def _grpo(options: argparse.Namespace) -> int:
    from train.config import dumps, read_tree, resolve  # noqa: PLC0415  # not for --help

    if options.resume:
        return _resume(options)
    file = Path(options.config) if options.config else None
    tree = read_tree(file) if file else {}
    config = resolve(tree, _overrides(options, tree), file)
    if options.dry_run:
        print(dumps(config), end="")
        return 0
    from train.preflight import ready  # noqa: PLC0415  # not for --help
    from train.run import RunDir  # noqa: PLC0415

    config, about = ready(config, _say)
    run = RunDir.create(Path(config.out), config, about)
    with run.locked():
        return _supervise(config, run, resume=False)


def _resume(options: argparse.Namespace) -> int:
    from train.config import dumps  # noqa: PLC0415  # not for --help
    from train.preflight import ready, resumed  # noqa: PLC0415
    from train.run import RunDir  # noqa: PLC0415

    if options.config:
        raise BadConfig("--resume goes on with the run's own config: leave --config out")
    run = RunDir.open(Path(options.resume))
    stored = run.config()
    config = resumed(stored, _overrides(options, stored.model_dump()))
    if options.dry_run:
        print(dumps(config), end="")
        return 0
    if _is_done(config, run):
        return 0
    config, about = ready(config, _say)
    with run.locked():
        if run.about().get("env") != about["env"]:
            _say("the env is another one than when the run began; it goes on with this one")
        run.write_config(config)
        run.note_resumed(about)
        return _supervise(config, run, resume=True)


def _is_done(config: TrainConfig, run: RunDir) -> bool:
    """Whether nothing is left to do; says where things are."""
    from train.run import State  # noqa: PLC0415  # not for --help
    from train.supervise import summary  # noqa: PLC0415

    status = run.status()
    if status.state is not State.FINISHED or status.step < config.learn.steps:
        return False
    for line in summary(config, run, finished=True):
        _say(line)
    return True


def _supervise(config: TrainConfig, run: RunDir, *, resume: bool) -> int:
    from train.supervise import supervise  # noqa: PLC0415  # not for --help

    return supervise(config, run, resume, _say)


def _overrides(options: argparse.Namespace, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the command line says, by dotted key; `tree` is what lies below."""
    from train.config import parse_setting  # noqa: PLC0415  # not for --help

    values = {
        key: getattr(options, option)
        for option, key in _KEYS.items()
        if getattr(options, option) is not None
    }
    model = tree.get("model")
    if options.lora and not (isinstance(model, dict) and model.get("lora")):
        values["model.lora"] = {}
    for name, value in _env_args(options.env_arg).items():
        values[f"env.args.{name}"] = value
    for setting in options.set:
        key, value = parse_setting(setting)
        values.pop(key, None)  # so that it is put last
        values[key] = value
    return values


def _env_args(pairs: Sequence[str]) -> dict[str, Any]:
    if not pairs:
        return {}
    from evalkit.cli import env_args  # noqa: PLC0415  # not for --help
    from evalkit.errors import UsageError as Refused  # noqa: PLC0415

    try:
        return env_args(pairs)
    except Refused as error:
        raise BadConfig(str(error)) from None


def _tiny(options: argparse.Namespace) -> int:
    from train.tiny.recipes import RECIPES  # noqa: PLC0415  # not for --help

    if options.name not in RECIPES:
        raise BadConfig(f"no recipe is called {options.name!r}: there are {', '.join(RECIPES)}")
    from train.tiny.build import build  # noqa: PLC0415  # torch

    print(build(RECIPES[options.name], Path(options.out), options.seed, _say))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(error: Exception, code: int) -> int:
    told = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    print(f"error: {told}", file=sys.stderr, flush=True)
    return code
