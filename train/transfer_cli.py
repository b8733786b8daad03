"""`checkpoints download`, `push` and `pull`: how a checkpoint leaves a run, and comes back."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from train.errors import BadConfig, BadModel, SaveFailed

if TYPE_CHECKING:
    from train.card import About

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parsers(actions: _Commands) -> None:
    """Add the three to the actions of `checkpoints`."""
    means = "copy a checkpoint out of a run, here or on Modal, and check every file's digest"
    download = actions.add_parser("download", help=means, description=means)
    download.add_argument("run", metavar="RUN", help="the run's folder; on Modal its name")
    download.add_argument("step", type=int, metavar="STEP")
    download.add_argument("--to", type=Path, required=True, metavar="DIR", help="DIR/RUN/step-STEP")
    download.add_argument("--target", choices=("local", "modal"), default="local")
    means = "publish a checkpoint on the Hugging Face hub: weights, tokenizer and a model card"
    push = actions.add_parser("push", help=means, description=means)
    push.add_argument("run", metavar="RUN|DIR", help="a run's folder, or a checkpoint's")
    push.add_argument("repo", metavar="REPO", help="ORG/NAME; it is made if it is not there")
    push.add_argument("--step", type=int, metavar="N", help="of the run (default: the newest)")
    push.add_argument("--private", action="store_true", help="if the repository is made")
    push.add_argument("--base", metavar="ORG/NAME", help="the model that training began with")
    means = "bring a checkpoint from the Hugging Face hub, every file's digest checked"
    pull = actions.add_parser("pull", help=means, description=means)
    pull.add_argument("repo", metavar="REPO", help="ORG/NAME")
    pull.add_argument("--revision", metavar="R", help="branch, tag or commit (default main)")
    pull.add_argument("--to", type=Path, required=True, metavar="DIR", help="the new folder")


def run(options: argparse.Namespace) -> int:
    """Run what was parsed and return the exit code; raises what `train.errors` has."""
    return {"download": download, "push": push, "pull": pull}[options.action](options)


def download(options: argparse.Namespace) -> int:
    """Copy a checkpoint out of a run; print its folder.

    Raises:
        BadConfig: there is no such checkpoint, or the folder is there already.
        SaveFailed: it cannot be written, or came over otherwise.

    """
    if options.target == "modal":
        return _through_modal(options)
    from train.learner.checkpoints import SavedCheckpoints  # noqa: PLC0415  # numpy
    from train.run import RunDir  # noqa: PLC0415

    rundir = RunDir.open(Path(options.run))
    saved = SavedCheckpoints(rundir.checkpoints_path)
    step = _checked(saved.list(), options.step, rundir.path)
    saved.verify(step)
    copied = SavedCheckpoints(options.to / rundir.path.resolve().name)
    target = copied.path(step)
    if target.exists():
        raise BadConfig(f"{target} is there already: move it away, or name another folder")
    try:
        copied.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=copied.root, prefix=".download-") as scratch:
            shutil.copytree(saved.path(step), Path(scratch) / target.name)
            SavedCheckpoints(Path(scratch)).verify(step)
            (Path(scratch) / target.name).rename(target)
    except BadModel as error:
        raise SaveFailed(f"the copy is not what was copied: {error}") from error
    except OSError as error:
        raise SaveFailed(f"cannot copy to {target}: {error}") from error
    sys.stdout.write(f"{target}\n")
    return 0


def push(options: argparse.Namespace) -> int:
    """Publish a checkpoint; print where.

    Raises:
        BadConfig: there is no such checkpoint, no token, or the hub refuses.
        BadModel: it has no weights, or is damaged.
        HubFailed: the hub cannot be reached.

    """
    from train import card, hub  # noqa: PLC0415

    folder, about, tokenizer = _checkpoint(options)
    files: dict[str, Path | bytes] = {**card.published_files(folder, tokenizer)}
    if about.adapter:
        files[card.ADAPTER] = card.adapter_config(folder, about.base)
    files[card.README] = card.card(about, options.repo).encode()
    step = "" if about.step is None else f", step {about.step}"
    name, commit = hub.push(
        options.repo, files, private=options.private, message=f"{about.name}{step}"
    )
    sys.stdout.write(f"{name}: {len(files)} files, {commit}\n")
    return 0


def pull(options: argparse.Namespace) -> int:
    """Bring a checkpoint; print its folder.

    Raises:
        BadConfig: there is no such repository or revision, or the folder is there.
        HubFailed: the hub cannot be reached, or a file came over otherwise.

    """
    from train import hub  # noqa: PLC0415

    hub.pull(options.repo, options.to, revision=options.revision, say=_say)
    sys.stdout.write(f"{options.to}\n")
    return 0


def _checkpoint(options: argparse.Namespace) -> tuple[Path, About, Path | None]:
    """Return a checkpoint's folder, what is known of it, and where its tokenizer may lie."""
    from train import card  # noqa: PLC0415
    from train.learner.checkpoints import MARKER, SavedCheckpoints, TrainState  # noqa: PLC0415
    from train.run import RunDir  # noqa: PLC0415

    given = Path(options.run)
    wanted: int | None = options.step
    if (given / MARKER).is_file() and given.resolve().parent.name == "checkpoints":
        rundir = RunDir.open(given.resolve().parents[1])
        wanted = int(given.resolve().name.removeprefix("step-"))
    elif not (given / "config.yaml").is_file():
        if options.step is not None:
            raise BadConfig(f"--step: {given} is a checkpoint, not a run")
        adapter = (given / card.ADAPTER).is_file()
        name = given.resolve().name
        return given, card.About(name=name, base=options.base, adapter=adapter), None
    else:
        rundir = RunDir.open(given)
    saved = SavedCheckpoints(rundir.checkpoints_path)
    steps = saved.list()
    step = _checked(steps, max(steps, default=0) if wanted is None else wanted, rundir.path)
    saved.verify(step)
    config, folder = rundir.config(), saved.path(step)
    base = Path(config.model.path)
    about = card.About(
        name=options.repo.rpartition("/")[2],
        base=options.base or card.without_folders(config.model.path),
        step=step,
        env=config.env.name,
        env_args=config.env.args,
        strategy=config.rollouts.strategy,
        metrics=TrainState.read(folder).metrics,
        adapter=(folder / card.ADAPTER).is_file(),
    )
    return folder, about, base if base.is_dir() else None


def _checked(steps: tuple[int, ...], step: int, run: Path) -> int:
    if step not in steps:
        known = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
        raise BadConfig(f"{run} has no complete checkpoint of step {step}: {known}")
    return step


def _through_modal(options: argparse.Namespace) -> int:
    """Become the `modal` command that reads the volume."""
    if find_spec("modal") is None:
        raise BadConfig("--target modal needs the package modal: install palaestra[modal]")
    modal = [sys.executable, "-m", "modal", "run", "-m", "train.modal_app::download"]
    said = ["--run", options.run, "--step", str(options.step), "--to", str(options.to)]
    sys.stdout.flush()
    os.execv(sys.executable, [*modal, *said])  # noqa: S606  # the user's own modal


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
