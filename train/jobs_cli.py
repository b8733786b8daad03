"""`python -m train start|status|cancel|logs|list`: runs as jobs, on this machine or on Modal."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.config import TrainConfig, parse_setting, read_tree, resolve
from train.errors import BadConfig
from train.jobs.base import Job, Jobs, JobState

_EXIT_CODES = {JobState.FINISHED: 0, JobState.STOPPED: 143}
"""Of `grpo --target modal`; everything else is 1."""
_COLUMNS = ("id", "state", "step", "env", "model", "created", "used")

ReadConfig = Callable[[argparse.Namespace], TrainConfig]


def run(options: argparse.Namespace, read_config: ReadConfig) -> int:
    """Run one verb and return the exit code."""
    if options.command == "start":
        config = read_config(options)
        job = _jobs(config, options.target).start(config)
        _say(job)
        print(_hint(job, options.target), file=sys.stderr)
        return 0
    jobs = _jobs(_whereabouts(options), options.target)
    if options.command == "list":
        _show(jobs.list())
    elif options.command == "status":
        _tell(jobs.status(options.job), as_json=options.json)
    elif options.command == "cancel":
        jobs.cancel(options.job)
        _say(f"{options.job} saves a checkpoint and ends; `status` says when it has")
    else:
        _follow(jobs, options.job, follow=options.follow)
    return 0


def start_and_follow(config: TrainConfig, options: argparse.Namespace) -> int:
    """Start a job elsewhere and show what it says; return the exit code when it is over.

    Ctrl-C ends the watching; the job goes on.
    """
    jobs = _jobs(config, options.target)
    job = jobs.start(config)
    _say(f"job {job}; Ctrl-C stops watching, and the job goes on")
    _say(_hint(job, options.target))
    _follow(jobs, job, follow=True)
    ended = jobs.status(job)
    _tell(ended, as_json=False)
    return _EXIT_CODES.get(ended.state, 1)


def ensure_modal() -> None:
    """Raise BadConfig where Modal's client is not installed."""
    if importlib.util.find_spec("modal") is None:
        raise BadConfig(
            "--target modal needs Modal's client: pip install 'palaestra[modal]', or `make modal`"
        )


def _jobs(config: TrainConfig, target: str) -> Jobs:
    if target == "modal":
        ensure_modal()
        from train.jobs.modal_jobs import ModalJobs  # noqa: PLC0415  # modal

        return ModalJobs.of(config)
    from train.jobs.local import LocalJobs  # noqa: PLC0415

    return LocalJobs(Path(config.out))


def _whereabouts(options: argparse.Namespace) -> TrainConfig:
    """Return a config of which only the places are looked at: no env and no model is needed."""
    from train import environment  # noqa: PLC0415

    environment.load_dotenv(Path(".env"))
    file = Path(options.config) if options.config else None
    least: dict[str, Any] = {"env": {"name": "any"}, "model": {"path": "any"}}
    tree = least | (read_tree(file) if file else {})
    told = environment.settings()
    if options.out:
        told["out"] = options.out
    return resolve(tree, told | dict(map(parse_setting, options.set)), file)


def _follow(jobs: Jobs, job: str, *, follow: bool) -> None:
    for line in jobs.logs(job, follow=follow):
        _say(line)


def _tell(job: Job, *, as_json: bool) -> None:
    told = dataclasses.asdict(job)
    if as_json:
        _say(json.dumps(told, indent=2))
        return
    for name, value in told.items():
        if value not in (None, ""):
            _say(f"{name:<10} {value}")


def _show(jobs: tuple[Job, ...]) -> None:
    rows = [_COLUMNS, *(_row(job) for job in jobs)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS))]
    for row in rows:
        _say("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


def _row(job: Job) -> tuple[str, ...]:
    used = "" if job.gpu_hours is None else f"{job.gpu_hours:.2f} GPU-h"
    if job.usd is not None and job.gpu_hours:
        used += f", {job.usd:.2f} USD"
    step = f"{job.step}/{job.steps}"
    return job.id, job.state.value, step, job.env, job.model, job.created, used


def _hint(job: str, target: str) -> str:
    return f"python -m train logs {job} --follow --target {target}"


def _say(line: str) -> None:
    print(line, flush=True)
