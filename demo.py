"""The main job, end to end, with the commands that a user would type.

First a tiny policy that was trained with this project plays key_door against what it was before, on
the same seeds: served, evaluated, the trained weights published into the running engine, evaluated
again, compared. Then a language model that anybody can download plays in two arms: answers as they
come, and answers that the server keeps in the env's format. Ends with the tables, the verdicts and
the place of the CSVs, and leaves no process behind.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

ROOT = Path(__file__).parent
SHIPPED = ROOT / "train/tiny/shipped"
CONFIGS = ROOT / "train/configs"
MODEL = "smollm2-135m-instruct"
EVALUATION = (
    "--env key_door --env-arg size=3 --env-arg max_turns=20 -n 20 --guided off,on "
    "--temperature 0.7 --max-tokens 40 -c 40"
).split()
CORES = sorted(os.sched_getaffinity(0))


def main() -> int:
    """Run the demo; return the exit code of the last evaluation."""
    signal.signal(signal.SIGTERM, stop)
    before_and_after("key_door")
    do("serve", "pull", MODEL)
    with tempfile.TemporaryDirectory() as state, served(MODEL, state) as url:
        return do("evalkit", "--model", url, *EVALUATION, check=False)


def before_and_after(recipe: str) -> dict[str, str]:
    """Play a shipped policy against what it was before its training; return the verdict's row."""
    config = yaml.safe_load((CONFIGS / f"{recipe}_tiny.yaml").read_text())
    name = config["model"]["name"]
    old, new = (SHIPPED / f"{recipe}_{when}" for when in ("before", "after"))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with served(str(old), str(work / "state"), "--name", name) as url:
            before = evaluated(url, name, config, work / "before")
            control = url.removesuffix("/v1")
            do("serve", "policies", "publish", name, str(new), "--url", control)
            after = evaluated(url, name, config, work / "after")
        return compared(before, after)


@contextmanager
def served(model: str, state: str, *words: str) -> Iterator[str]:
    """Serve a model while the block runs; yield the base URL. `state` is not the user's own."""
    words = ("serve", "up", "--port", "0", "--model", model, *words)
    say("a gateway and an engine: python -m", *words)
    command = [sys.executable, "-m", *words, "--state", state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
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


def evaluated(url: str, name: str, config: dict[str, Any], out: Path, episodes: int = 200) -> Path:
    """Play as a training config plays, on seeds that training never uses; return the run."""
    words = ["--model", f"{url}#{name}", "--env", config["env"]["name"]]
    for key, value in config["env"].get("args", {}).items():
        words += ["--env-arg", f"{key}={value}"]
    rollouts = config["rollouts"]
    words += ["--strategy", rollouts["strategy"], "--max-tokens", str(rollouts["max_tokens"])]
    words += ["--temperature", "1.0", "-n", str(episodes), "-c", "32", "--out", str(out)]
    do("evalkit", *words)
    (run,) = out.iterdir()
    return run


def compared(before: Path, after: Path) -> dict[str, str]:
    """Say the verdict on two runs; return the row of compare.csv on success."""
    out = after / "against-before"
    do("evalkit", "compare", str(before), str(after), "--names", "before,after", "--out", str(out))
    with (out / "compare.csv").open() as file:
        return next(row for row in csv.DictReader(file) if row["metric"] == "success")


def do(*words: str, check: bool = True, cores: Sequence[int] = ()) -> int:
    """Run one of our commands to its end, on some cores only; leave where it fails."""
    say("python -m", *words)
    os.sched_setaffinity(0, cores or CORES)  # children inherit it
    done = subprocess.run([sys.executable, "-m", *words], check=False)
    os.sched_setaffinity(0, CORES)
    if check and done.returncode:
        sys.exit(done.returncode)
    return done.returncode


def say(*words: str) -> None:
    """Head what comes next."""
    sys.stdout.write(f"\n== {' '.join(words)}\n")
    sys.stdout.flush()


def stop(signum: int, frame: FrameType | None) -> None:
    """Leave by way of every `finally`."""
    del frame
    sys.exit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
