"""The command `checkpoints`: what a run has kept, how to serve it, and which of two is better."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train import transfer_cli
from train.errors import BadConfig, RunFailed

if TYPE_CHECKING:
    from evalkit import Run
    from evalkit.show.report import Report
    from serve.client import AdminClient
    from train.config import TrainConfig
    from train.learner.checkpoints import SavedCheckpoints, TrainState
    from train.run import RunDir

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EVALUATION_SEEDS = 1 << 31
"""Evaluation seeds are below; training plays seeds from 2**32 on."""
ADAPTER = "adapter_config.json"

Serving = Callable[["TrainConfig", Path, Path], AbstractContextManager[str]]
"""Config, a checkpoint's folder and a log to a URL#NAME that plays it, while the block runs."""

_EPILOG = """examples:
  python -m train checkpoints list runs/grpo_20260102_030405
  python -m train checkpoints show runs/grpo_20260102_030405 --step 40
  python -m train checkpoints compare runs/grpo_20260102_030405 --steps 20,40 -n 200
  python -m train checkpoints push runs/grpo_20260102_030405 you/key-door --step 40 --private
  python -m train checkpoints pull you/key-door --to key-door

exit codes: 0 done, 1 episodes were lost to errors, 2 wrong usage
"""


def add_parser(commands: _Commands) -> None:
    """Add `checkpoints` to the commands of a parser."""
    group = commands.add_parser(
        "checkpoints",
        help="list, show, compare, download, push and pull what runs have kept",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")
    _action(actions, "list", "list the complete checkpoints")
    show = _action(actions, "show", "show one checkpoint, and how to serve it")
    show.add_argument("--step", type=int, required=True, metavar="N")
    compare = _action(actions, "compare", "let two checkpoints play the same unseen env seeds")
    compare.add_argument("--steps", required=True, metavar="A,B", help="two of `list`'s steps")
    seeds = compare.add_mutually_exclusive_group()
    seeds.add_argument("-n", type=int, metavar="N", help="env seeds 0 to N-1 (default 100)")
    seeds.add_argument("--seeds", metavar="A:B", help="env seeds A to B-1, or a comma list")
    compare.add_argument(
        "--url", help="a gateway that serves both versions (default: serve one after the other)"
    )
    transfer_cli.add_parsers(actions)


def run(options: argparse.Namespace) -> int:
    """Run what was parsed and return the exit code; raises what `train.errors` has."""
    if options.action in {"download", "push", "pull"}:
        return transfer_cli.run(options)
    from train.learner.checkpoints import SavedCheckpoints  # noqa: PLC0415 - not for --help
    from train.run import RunDir  # noqa: PLC0415

    rundir = RunDir.open(Path(options.run))
    saved = SavedCheckpoints(rundir.checkpoints_path)
    if options.action == "list":
        return _print(_listed(saved))
    if options.action == "show":
        return _print(_shown(rundir, saved, _checked(saved, options.step)))
    return compare(options, rundir, saved)


def compare(
    options: argparse.Namespace,
    rundir: RunDir,
    saved: SavedCheckpoints,
    serving: Serving | None = None,
) -> int:
    """Let two checkpoints play the same seeds; print the table and the verdicts.

    Raises:
        BadConfig: a step, a seed or the gateway is not what it must be; nothing was played.
        RunFailed: it stopped half-way.

    """
    from evalkit.errors import EvalkitError, UsageError  # noqa: PLC0415
    from evalkit.show.files import write_comparison  # noqa: PLC0415

    first, second = steps = _steps(options.steps, saved)
    seeds = _seeds(options)
    config = rundir.config()
    states = [saved.load_state(step) for step in steps]
    specs = _published(options.url, config, states) if options.url else []
    folder = _claim(rundir.path, f"compare-{first}-{second}")
    try:
        if specs:
            played = [_evaluate(specs, config, seeds, folder)]
            report = played[0].report
        else:
            served = serving or serve_folder
            played, report = _one_by_one(steps, saved, config, seeds, folder, served)
        write_comparison(folder, report)
    except UsageError as error:
        raise BadConfig(str(error)) from error
    except EvalkitError as error:
        raise RunFailed(f"{error}; what was played lies in {folder}") from error
    except OSError as error:
        raise RunFailed(f"cannot compare in {folder}: {error}") from error
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
    return _print_report(report, sum(run.n_error for run in played), folder)


@contextmanager
def serve_folder(config: TrainConfig, folder: Path, log: Path) -> Iterator[str]:
    """Serve a checkpoint by a gateway of its own while the block runs; yield URL#NAME.

    An adapter is published over the run's base model, which the gateway then serves beside it.
    """
    import os  # noqa: PLC0415 - none of these for --help
    import tempfile  # noqa: PLC0415

    from train.config import Channel  # noqa: PLC0415
    from train.gateway import OwnGateway, serve_command  # noqa: PLC0415

    adapter = (folder / ADAPTER).is_file()
    model = config.model if adapter else _whole(config, folder)
    publish = config.publish.model_copy(update={"channel": Channel.AUTO})
    served = config.model_copy(update={"model": model, "publish": publish})
    with tempfile.TemporaryDirectory(prefix="palaestra-compare-") as state:
        gateway = OwnGateway(serve_command(served, Path(state)), log=log, env=os.environ)
        gateway.start()
        try:
            gateway.wait_ready(config.gateway.wait_s, _say)
            name = policy_name(config)
            if adapter:
                from serve.client import AdminClient  # noqa: PLC0415

                name = _publish(AdminClient(gateway.url), name, folder)
            yield f"{gateway.url}#{name}"
        finally:
            gateway.stop()


def policy_name(config: TrainConfig) -> str:
    """Return what requests call the run's policy."""
    return config.model.name or Path(config.model.path).name


def serve_lines(config: TrainConfig, folder: Path) -> list[str]:
    """Return the commands that serve a checkpoint."""
    name = shlex.quote(policy_name(config))
    if not (folder / ADAPTER).is_file():
        return [f"python -m serve up --model {shlex.quote(str(folder))} --name {name}"]
    base, adapter = shlex.quote(config.model.path), shlex.quote(str(folder))
    return [
        f"python -m serve up --model {base} --name {name} --lora",
        f"python -m serve policies publish {name} {adapter} --url http://127.0.0.1:8000",
    ]


def _action(actions: _Commands, name: str, meaning: str) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=meaning, description=meaning)
    action.add_argument("run", metavar="RUN", help="the run's folder")
    return action


def _listed(saved: SavedCheckpoints) -> Iterable[str]:
    from evalkit.show.report import text_table  # noqa: PLC0415
    from train.learner.checkpoints import TrainState  # noqa: PLC0415

    rows = [["step", "version", "success", "return", "size", "folder"]]
    for step in saved.list():
        state = TrainState.read(saved.path(step))
        size = sum(file.size_bytes for file in saved.files(step))
        success, return_ = state.metrics.get("success"), state.metrics.get("return_mean")
        rows.append(
            [
                str(step),
                "" if state.published_version is None else str(state.published_version),
                "" if success is None else f"{success:.1%}",
                "" if return_ is None else f"{return_:.3f}",
                _size(size),
                str(saved.path(step)),
            ]
        )
    return text_table(rows) if len(rows) > 1 else [f"{saved.root} has no complete checkpoint"]


def _shown(rundir: RunDir, saved: SavedCheckpoints, step: int) -> Iterable[str]:
    config, state, folder = rundir.config(), saved.load_state(step), saved.path(step)
    name, version = policy_name(config), state.published_version
    yield f"step {step} of {rundir.path}"
    yield f"  published as  {'(not published)' if version is None else f'{name}@{version}'}"
    yield f"  next group    {state.next_group}"
    yield "metrics"
    known = {key: value for key, value in state.metrics.items() if value is not None}
    yield from (f"  {key:18} {value:g}" for key, value in known.items())
    yield f"files of {folder}"
    for file in saved.files(step):
        yield f"  {file.name:32} {_size(file.size_bytes):>10}  {(file.sha256 or '')[:12]}".rstrip()
    yield "serve it"
    yield from (f"  {line}" for line in serve_lines(config, folder))


def _checked(saved: SavedCheckpoints, step: int) -> int:
    """Return the step if it has a complete checkpoint; raise BadConfig."""
    there = saved.list()
    if step not in there:
        known = f"there are {', '.join(map(str, there))}" if there else "there is none"
        raise BadConfig(f"{saved.root} has no complete checkpoint of step {step}: {known}")
    return step


def _steps(text: str, saved: SavedCheckpoints) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise BadConfig(f"--steps takes two steps, A,B, not {text!r}")
    first, second = (_checked(saved, int(part)) for part in parts)
    if first == second:
        raise BadConfig(f"--steps {text}: step {first} is compared with itself")
    return first, second


def _seeds(options: argparse.Namespace) -> tuple[int, ...]:
    from evalkit.specs import parse_seeds  # noqa: PLC0415

    count = 100 if options.n is None else options.n
    if count < 1:
        raise BadConfig(f"-n is at least 1, not {count}")
    try:
        seeds = parse_seeds(options.seeds or f"0:{count}")
    except ValueError as error:
        raise BadConfig(f"--seeds: {error}") from error
    if max(seeds) >= EVALUATION_SEEDS:
        raise BadConfig(
            f"seed {max(seeds)} is none for an evaluation: those are below 2**31, "
            "and from there on seeds are trained on"
        )
    return seeds


def _published(url: str, config: TrainConfig, states: Sequence[TrainState]) -> list[str]:
    """Return what plays each checkpoint at a gateway; raise BadConfig if one was not published."""
    for state in states:
        if state.published_version is None:
            raise BadConfig(
                f"the checkpoint of step {state.step} was not published: leave --url out, "
                "and it is served from its folder"
            )
    name = policy_name(config)
    return [f"step-{state.step}={url}#{name}@{state.published_version}" for state in states]


def _one_by_one(
    steps: Sequence[int],
    saved: SavedCheckpoints,
    config: TrainConfig,
    seeds: tuple[int, ...],
    folder: Path,
    serving: Serving,
) -> tuple[list[Run], Report]:
    """Play each checkpoint while it alone is served, so that one engine runs at a time."""
    from dataclasses import replace  # noqa: PLC0415

    from evalkit import compare as compare_runs  # noqa: PLC0415

    played = []
    for step in steps:
        with serving(config, saved.path(step), folder / f"gateway-{step}.log") as spec:
            run = _evaluate([f"step-{step}={spec}"], config, seeds, folder)
        # A comparison names the arms by the runs' folders.
        played.append(replace(run, path=run.path.rename(folder / f"step-{step}")))
    return played, compare_runs(*played)


def _evaluate(models: list[str], config: TrainConfig, seeds: tuple[int, ...], folder: Path) -> Run:
    """Play the run's env as the run plays it."""
    import os  # noqa: PLC0415

    from evalkit import evaluate  # noqa: PLC0415

    rollouts, gateway = config.rollouts, config.gateway
    key = gateway.api_key_env
    return evaluate(
        models,
        config.env.name,
        show=sys.stderr,
        env_args=config.env.args,
        strategy=rollouts.strategy,
        seeds=seeds,
        temperature=rollouts.temperature,
        top_p=rollouts.top_p,
        max_tokens=rollouts.max_tokens,
        concurrency=rollouts.concurrency,
        timeout_s=gateway.timeout_s,
        api_key_env=(key,) if os.environ.get(key) else (),
        out=str(folder),
    )


def _publish(client: AdminClient, name: str, folder: Path) -> str:
    """Publish an adapter to a gateway and wait until it is served; return NAME@VERSION."""
    from serve.errors import AdminError  # noqa: PLC0415

    try:
        published = client.publish(name, folder)
        client.wait_ready(name, published.version)
    except (AdminError, TimeoutError) as error:
        raise RunFailed(f"the gateway does not take {folder}: {error}") from error
    finally:
        client.close()
    return f"{name}@{published.version}"


def _whole(config: TrainConfig, folder: Path) -> Any:  # noqa: ANN401 - a section of the config
    """Return the config's model with the weights of a checkpoint."""
    name = policy_name(config)
    return config.model.model_copy(update={"path": str(folder), "name": name, "lora": None})


def _claim(parent: Path, name: str) -> Path:
    """Make the first free folder of `name`, `name.2`, `name.3`..."""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}.{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        except OSError as error:
            raise BadConfig(f"cannot write below {parent}: {error}") from error
        else:
            return folder


def _print_report(report: Report, n_error: int, folder: Path) -> int:
    from evalkit.show.report import table_cells, text_table  # noqa: PLC0415

    lines = ["", *text_table(table_cells(report)), "", *report.verdicts, "", f"{folder}/report.md"]
    if n_error:
        lines.append(f"{n_error} episodes were lost to errors and are not scored")
    _print(lines)
    return 1 if n_error else 0


def _print(lines: Iterable[str]) -> int:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.1f} kB"
