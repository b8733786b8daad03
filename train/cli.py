"""The command line: `grpo` trains, `start` does so as a job, `checkpoints` looks at what was kept.

Imports nothing heavy before the arguments are parsed, so that --help is instant.
"""

from __future__ import annotations

import argparse
import os
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
  python -m train start --config train/configs/key_door_tiny.yaml --target modal
  python -m train logs fc-01ABC --follow --target modal
  python -m train checkpoints list runs/grpo_20260101_120000
  python -m train tiny key_door --out tiny-key-door
{_EXIT_CODES}"""
_GRPO_EPILOG = f"""examples:
  python -m train grpo --env key_door --env-arg size=4 --model ./checkpoint --steps 50
  python -m train grpo --env key_door --model ./checkpoint --url http://127.0.0.1:8000/v1
  python -m train grpo --config FILE --set learn.loss=cispo --set rollouts.temperature=0.9
  python -m train grpo --config FILE --dry-run
  python -m train grpo --resume runs/grpo_20260101_120000 --set learn.steps=400

  python -m train grpo --config FILE --target modal --set compute.gpu=H100

--set wins over the other options, they win over the environment
(PALAESTRA_TRAIN__LEARN__STEPS=200), that over the file, and that over the defaults; all keys are in
train/config.py and train/target.py, and --dry-run shows them as they are resolved, with the costs
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


_JOB_VERBS = {
    "start": "start a run as a job, and say its id",
    "status": "say how far a job is",
    "cancel": "have a job save a checkpoint and end",
    "logs": "show what a job says",
    "list": "show all jobs",
}


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
    if options.command in _JOB_VERBS:
        from train import jobs_cli  # noqa: PLC0415  # not for --help

        return jobs_cli.run(options, read_config)
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
    for verb, about in _JOB_VERBS.items():
        _add_job_verb(commands, verb, about)
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
    add("--resume", metavar="RUN", help="go on with the run in this folder")
    add("--run", metavar="DIR", help="begin the run in this folder, or go on with one there")
    add("--target", choices=("local", "modal"), default="local", help="default: %(default)s")
    add("--dry-run", action="store_true", help="print the resolved config and its costs, and stop")
    _add_settings(grpo)


def _add_job_verb(commands: _Commands, verb: str, about: str) -> None:
    parser = commands.add_parser(verb, help=about, allow_abbrev=False)
    add = parser.add_argument
    add("--target", choices=("local", "modal"), default="local", help="default: %(default)s")
    if verb in ("status", "cancel", "logs"):
        add("job", metavar="JOB", help="the id that `start` has said")
    if verb == "logs":
        add("--follow", action="store_true", help="go on until the job is over")
    if verb == "status":
        add("--json", action="store_true", help="all that is known, as JSON")
    if verb == "start":
        _add_settings(parser)
    else:
        add("--config", metavar="FILE", help="YAML with the volumes or the folder of the jobs")
        add("--out", metavar="DIR", help="where jobs of this machine lie (default: runs)")
        add("--set", action="append", default=[], metavar="A.B=C", help="any setting; C is YAML")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options that make up a config."""
    add = parser.add_argument
    add("--config", metavar="FILE", help="YAML with any of the settings")
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


def _grpo(options: argparse.Namespace) -> int:
    if options.resume:
        return _resume(options)
    config = read_config(options)
    if options.dry_run:
        return _dry_run(config, options.target)
    if options.target == "modal":
        from train import jobs_cli  # noqa: PLC0415  # not for --help

        return jobs_cli.start_and_follow(config, options)
    from train.preflight import ready  # noqa: PLC0415  # not for --help
    from train.run import RunDir  # noqa: PLC0415

    folder = Path(options.run) if options.run else None
    if folder and RunDir.is_begun(folder):
        return _go_on(config, RunDir.open(folder))
    config, about = ready(config, _say)
    _check_gateway(config)
    out = Path(config.out)
    run = RunDir.create_at(folder, config, about) if folder else RunDir.create(out, config, about)
    with run.locked():
        return _supervise(config, run, resume=False)


def _check_gateway(config: TrainConfig) -> None:
    """Raise BadConfig where a gateway that is named is not there: then there is no run to make."""
    if config.gateway.url is None:
        return
    from train.remote import ensure_serves  # noqa: PLC0415  # not for --help

    ensure_serves(config, os.environ.get(config.gateway.api_key_env) or None)


def read_config(options: argparse.Namespace) -> TrainConfig:
    """Return the config of a command: its options over the environment over the file."""
    from train import environment  # noqa: PLC0415  # not for --help
    from train.config import read_tree, resolve  # noqa: PLC0415

    environment.load_dotenv(Path(".env"))
    file = Path(options.config) if options.config else None
    tree = read_tree(file) if file else {}
    return resolve(tree, environment.settings() | _overrides(options, tree), file)


def _dry_run(config: TrainConfig, target: str = "local") -> int:
    """Print the config as a file that can be taken, and what it would cost in comments."""
    from train import costs  # noqa: PLC0415  # not for --help
    from train.config import digest, dumps  # noqa: PLC0415

    rates = costs.list_rates()
    if target == "modal":
        from train.jobs_cli import ensure_modal  # noqa: PLC0415  # not for --help

        ensure_modal()
        from train.jobs.modal_jobs import account_rates  # noqa: PLC0415  # modal

        rates = rates.of_account(account_rates())
    print(dumps(config), end="")
    for line in (f"sha256 {digest(config)}", *costs.estimate(config, rates)):
        print(f"# {line}")
    return 0


def _resume(options: argparse.Namespace) -> int:
    from train.preflight import resumed  # noqa: PLC0415  # not for --help
    from train.run import RunDir  # noqa: PLC0415

    if options.config:
        raise BadConfig("--resume goes on with the run's own config: leave --config out")
    if options.target != "local" or options.run:
        raise BadConfig("--resume goes on with a run of this machine: leave --target and --run out")
    run = RunDir.open(Path(options.resume))
    stored = run.config()
    config = resumed(stored, _overrides(options, stored.model_dump()))
    return _dry_run(config) if options.dry_run else _go_on(config, run)


def _go_on(config: TrainConfig, run: RunDir) -> int:
    """Go on with a run that was begun, if anything is left to do."""
    from train.preflight import ensure_same, ready  # noqa: PLC0415  # not for --help

    config, about = ready(config, _say)
    ensure_same(run.config(), config)
    if _is_done(config, run):
        return 0
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
    from train.costs import ensure_budget_left  # noqa: PLC0415  # not for --help
    from train.notify import telling  # noqa: PLC0415
    from train.supervise import supervise  # noqa: PLC0415

    ensure_budget_left(run.costs_path, config)
    with telling(config, run, _say):
        return supervise(config, run, resume, _say)


def _overrides(options: argparse.Namespace, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the command line says, by dotted key; `tree` is what lies below."""
    from train.config import parse_setting  # noqa: PLC0415  # not for --help

    values = {
        key: getattr(options, option)
        for option, key in _KEYS.items()
        if getattr(options, option, None) is not None
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
    from evalkit.arguments import env_args  # noqa: PLC0415  # not for --help
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
