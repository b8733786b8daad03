"""A policy learns: tiny, on two cores, against real vLLM behind the gateway; then it is judged.

Builds a model of about a million weights that plays key_door now and then, serves it, evaluates it,
trains it by GRPO on the served policy, evaluates it again on the same seeds, which training never
uses, and compares. Exit code 0 only if the trained version is better: the paired interval lies
above 0 and success rose by 20 points or more.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

RECIPES = ("key_door", "tic_tac_toe", "key_door_memory")
CONFIGS = Path("train/configs")
EPISODES = 200
LEAST_POINTS = 20.0
CORES = sorted(os.sched_getaffinity(0))


def main() -> int:
    """Train one tiny policy; return 0 if it got better."""
    signal.signal(signal.SIGTERM, _stop)
    options = _options()
    began_s = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="demo-train-"))
    config_path = CONFIGS / f"{options.recipe}_tiny.yaml"
    config = yaml.safe_load(config_path.read_text())
    name = config["model"]["name"]
    before = work / "before"
    _do("train", "tiny", options.recipe, "--out", str(before), "--seed", str(options.seed))
    with served(before, name, work / "state") as url:
        runs = [_evaluate(url, name, config, work / "before-run")]
        settings = [f"model.path={before}", f"learn.seed={options.seed}", *options.set]
        words = [word for each in settings for word in ("--set", each)]
        _do(
            *("train", "grpo", "--config", str(config_path), "--url", url),
            *("--out", str(work / "runs")),
            *words,
            cores=CORES[1:] or CORES,
        )
        runs.append(_evaluate(url, name, config, work / "after-run"))
        _do("serve", "policies", "list", "--state", str(work / "state"))
    row = _compare(*runs)
    (run,) = (work / "runs").iterdir()
    if options.keep is not None:
        _keep(options.keep, before, run)
    shutil.rmtree(work)
    low, points = 100 * float(row["lo"]), 100 * float(row["diff"])
    better = low > 0 and points >= LEAST_POINTS
    _say(
        f"{options.recipe}: {points:+.1f} points success in {time.monotonic() - began_s:.0f} s:",
        "it learned" if better else "that is not what was promised",
    )
    return 0 if better else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", nargs="?", default="key_door", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0, help="of the warm start and of the run")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="put both versions and metrics.csv there"
    )
    return parser.parse_args()


@contextmanager
def served(checkpoint: Path, name: str, state: Path) -> Iterator[str]:
    """Serve a checkpoint while the block runs; yield the base URL."""
    words = ("serve", "up", "--port", "0", "--model", str(checkpoint), "--name", name)
    _say("a gateway and an engine: python -m", *words)
    command = [sys.executable, "-m", *words, "--state", str(state)]
    # Engine and trainer on cores of their own: threads that share one wait for each other.
    env = {"VLLM_CPU_OMP_THREADS_BIND": str(CORES[0])} | os.environ
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as server:
        try:
            yield _base_url(server)
        finally:
            server.terminate()
            server.wait()


def _base_url(server: subprocess.Popen[str]) -> str:
    """Pass on what the server says until it is ready; return the URL it names."""
    assert server.stdout is not None
    url = ""
    for line in server.stdout:
        sys.stdout.write(f"  {line}")
        sys.stdout.flush()
        if line.startswith("base URL"):
            url = line.split()[-1]
        if line.startswith("ready"):
            return url
    sys.exit(f"the server ended before it was ready (exit code {server.wait()})")


def _evaluate(url: str, name: str, config: dict[str, Any], out: Path) -> Path:
    """Play the env on unseen seeds as training plays it; return the run's folder."""
    words = ["--model", f"{url}#{name}", "--env", config["env"]["name"]]
    for key, value in config["env"].get("args", {}).items():
        words += ["--env-arg", f"{key}={value}"]
    rollouts = config["rollouts"]
    words += ["--strategy", rollouts["strategy"], "--max-tokens", str(rollouts["max_tokens"])]
    words += ["--temperature", "1.0", "-n", str(EPISODES), "-c", "32", "--out", str(out)]
    _do("evalkit", *words)
    (run,) = out.iterdir()
    return run


def _compare(before: Path, after: Path) -> dict[str, str]:
    """Say the verdict; return the row of compare.csv on success."""
    out = before.parent / "compare"
    words = ("--names", "before,after", "--out", str(out))
    _do("evalkit", "compare", str(before), str(after), *words)
    with (out / "compare.csv").open() as file:
        return next(row for row in csv.DictReader(file) if row["metric"] == "success")


def _keep(folder: Path, before: Path, run: Path) -> None:
    """Copy both versions, without the trainer's own files, and the run's numbers."""
    last = max((run / "checkpoints").glob("step-*"))
    for name, source in (("before", before), ("after", last)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in before.iterdir():
            shutil.copyfile(source / file.name, folder / name / file.name)
    shutil.copyfile(run / "metrics.csv", folder / "metrics.csv")


def _do(*words: str, cores: Sequence[int] = ()) -> None:
    """Run one of our commands to its end, on some cores only; leave with its exit code."""
    _say("python -m", *words)
    os.sched_setaffinity(0, cores or CORES)  # children inherit it
    done = subprocess.run([sys.executable, "-m", *words], check=False)
    os.sched_setaffinity(0, CORES)
    if done.returncode:
        sys.exit(done.returncode)


def _say(*words: str) -> None:
    sys.stdout.write(f"\n== {' '.join(words)}\n")
    sys.stdout.flush()


def _stop(signum: int, frame: FrameType | None) -> None:
    """Leave by way of every `finally`."""
    del frame
    sys.exit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
