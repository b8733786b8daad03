"""Evaluation on Modal: the shards of a run in CPU containers, against any URL.

    modal run -m evalkit.modal_app::evaluate --env key_door --model URL -n 200 --shards 8
    modal run -m evalkit.modal_app::resume results/RUN

take what `python -m evalkit` takes. Decorators and translation only: `cargo` says what happens in a
container, `containers` what happens here.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import modal

from evalkit import cli
from evalkit.environment import load_env_file, runs_volume, volumes_root

if TYPE_CHECKING:
    from evalkit.cargo import Job, Returned
    from evalkit.sharded import Fleet

PACKAGES = "httptools httpx msgspec numpy orjson platformdirs pydantic pyyaml rich uvloop".split()
PINS = Path(__file__).parents[1] / "requirements" / "base.txt"
DAY_S = 24 * 3600
STARTUP_S = 300

if modal.is_local():
    load_env_file(Path(".env"))
ROOT = volumes_root()
app = modal.App("palaestra-evaluate")
results = modal.Volume.from_name(runs_volume(), create_if_missing=True, version=2)


def _image() -> modal.Image:
    """Return an image with the versions that are in use here, and our sources with their data."""
    base = modal.Image.debian_slim(python_version="3.11")
    if PINS.is_file():
        base = base.uv_pip_install(requirements=[str(PINS)])
    else:
        base = base.uv_pip_install(*[pin for name in PACKAGES if (pin := _pin(name))])
    return base.env({"PALAESTRA_VOLUMES_ROOT": ROOT}).add_local_python_source(
        "envs", "evalkit", ignore=["**/__pycache__", "**/*.pyc"]
    )


def _pin(name: str) -> str:
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return ""


image = _image()
retries = modal.Retries(max_retries=3, initial_delay=1.0)


@app.function(
    image=image,
    volumes={f"{ROOT}/runs": results},
    cpu=1.0,
    memory=2048,
    timeout=DAY_S,
    startup_timeout=STARTUP_S,
    retries=retries,
)
def evaluate_shard(job: Job) -> Returned:
    """Play one shard; what it has played is on the volume when the container is taken away."""
    from evalkit.cargo import carry  # noqa: PLC0415 - heavy, and only here

    return carry(job, Path(ROOT) / "runs", reload=results.reload, commit=results.commit)


@app.function(
    image=image,
    cpu=0.25,
    memory=1024,
    timeout=DAY_S,
    startup_timeout=STARTUP_S,
    retries=retries,
)
def evaluate_run(
    play: modal.Function[[Job], Returned, Returned], jobs: Sequence[Job]
) -> list[Returned]:
    """Play all shards of a run at once.

    It is a function of its own because of a detached app only the call that was begun last lives
    on: this one, and it calls the others from within.
    """
    from evalkit.cargo import Returned  # noqa: PLC0415

    outcomes = play.map(jobs, return_exceptions=True)
    return [
        outcome
        if isinstance(outcome, Returned)
        else Returned(shard=job.shard, code=1, said=f"{type(outcome).__name__}: {outcome}")
        for job, outcome in zip(jobs, outcomes, strict=True)
    ]


@app.local_entrypoint()
def evaluate(*arguments: str) -> None:
    """Play a new run in containers; takes what `python -m evalkit` takes."""
    _exit(cli.main(["run", *arguments], containers=_containers))


@app.local_entrypoint()
def resume(*arguments: str) -> None:
    """Go on with a run that containers play; takes what `python -m evalkit resume` takes."""
    _exit(cli.main(["resume", *arguments], containers=_containers))


def _containers(secrets: Sequence[str]) -> Fleet:
    from evalkit.containers import Containers  # noqa: PLC0415

    return Containers(evaluate_run, evaluate_shard, results, secrets)


def _exit(code: int) -> None:
    if code:
        raise SystemExit(code)
