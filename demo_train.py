"""A policy learns: tiny, on two cores, against real vLLM behind the gateway; then it is judged.

Builds a model of about a million weights that plays its env now and then, serves it, evaluates it,
trains it by GRPO on the served policy, evaluates it again on the same seeds, which training never
uses, and compares. Exit code 0 only if the trained version is better: the paired interval lies
above 0 and success rose by 20 points or more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import yaml

from demo import CONFIGS, CORES, compared, do, evaluated, say, served, stop

RECIPES = ("key_door", "tic_tac_toe", "key_door_memory")
LEAST_POINTS = 20.0


def main() -> int:
    """Train one tiny policy; return 0 if it got better."""
    signal.signal(signal.SIGTERM, stop)
    options = _options()
    # Engine and trainer on cores of their own: threads that share one wait for each other.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", str(CORES[0]))
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="demo-train-") as folder:
        row = train(options, Path(folder))
    low, points = 100 * float(row["lo"]), 100 * float(row["diff"])
    better = low > 0 and points >= LEAST_POINTS
    say(
        f"{options.recipe}: {points:+.1f} points success after {time.monotonic() - began_s:.0f} s:",
        "it learned" if better else f"not {LEAST_POINTS:.0f} points with an interval above 0",
    )
    return 0 if better else 1


def train(options: argparse.Namespace, work: Path) -> dict[str, str]:
    """Build, serve, evaluate, train, evaluate; return the verdict's row."""
    path = CONFIGS / f"{options.recipe}_tiny.yaml"
    config = yaml.safe_load(path.read_text())
    name, model = config["model"]["name"], work / "model"
    do("train", "tiny", options.recipe, "--out", str(model), "--seed", str(options.seed))
    with served(str(model), str(work / "state"), "--name", name) as url:
        before = evaluated(url, name, config, work / "before")
        settings = [f"model.path={model}", f"learn.seed={options.seed}", *options.set]
        words = [word for each in settings for word in ("--set", each)]
        where = ("--url", url, "--out", str(work / "runs"))
        do("train", "grpo", "--config", str(path), *where, *words, cores=CORES[1:])
        after = evaluated(url, name, config, work / "after")
        do("serve", "policies", "list", "--url", url.removesuffix("/v1"))
    row = compared(before, after)
    if options.keep is not None:
        (run,) = (work / "runs").iterdir()
        keep(options.keep, model, run)
    return row


def keep(folder: Path, model: Path, run: Path) -> None:
    """Copy both versions, without the trainer's own files, and the run's numbers."""
    last = max((run / "checkpoints").glob("step-*"))
    for name, source in (("before", model), ("after", last)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in model.iterdir():
            shutil.copyfile(source / file.name, folder / name / file.name)
    shutil.copyfile(run / "metrics.csv", folder / "metrics.csv")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", nargs="?", default="key_door", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0, help="of the warm start and of the run")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="put both versions and metrics.csv there"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
