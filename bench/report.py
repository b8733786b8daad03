"""What a report of many episodes costs: `python -m evalkit report RUN` as a whole process.

    python bench/report.py [--seeds 50000] [--env tic_tac_toe] [--repeats 3] [--tree DIR]

The run has two arms, random and oracle. So many real episodes as `--played` says are played; the
others are these again under other env seeds, with request seeds and prompt digests of their own and
with latencies, stamps and token counts drawn as a served model would have them. It is made once and
kept in the temporary folder. Prints the wall time of the process from its start to its end, its CPU
time and the peak of its memory, its children's included, and what it wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

# evalkit.py beside this file has the package's name: this folder must not be searched before it.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

from evalkit.record.rundir import RunDir  # noqa: E402
from evalkit.run import Run, evaluate  # noqa: E402

BEGAN_S = 1_700_000_000.0
CALLS_PER_S = 500.0


def made(env: str, env_args: dict[str, Any], seeds: int, played: int) -> RunDir:
    """Return the run, made before or now."""
    name = "-".join([env, *(f"{key}{value}" for key, value in env_args.items()), str(seeds)])
    folder = Path(tempfile.gettempdir()) / "palaestra-bench-report" / name
    if not (folder / "manifest.json").exists():
        with tempfile.TemporaryDirectory() as scratch:
            run = evaluate(
                ["A=random", "B=oracle"],
                env,
                env_args=env_args,
                seeds=f"0:{min(seeds, played)}",
                out=scratch,
            )
            folder.mkdir(parents=True, exist_ok=True)
            multiply(run, RunDir(folder), seeds)
    return RunDir(folder)


def multiply(run: Run, into: RunDir, seeds: int) -> None:
    """Write a run of `seeds` env seeds from a smaller one that was played."""
    source, drawn = RunDir(run.path), random.Random(0)
    lines = [orjson.loads(line) for line in source.trajectories_path.read_bytes().splitlines()]
    played = [list(same) for _, same in groupby(lines, key=lambda raw: raw["key"]["env_seed"])]
    manifest = source.manifest()
    at_s = BEGAN_S
    with into.trajectories_path.open("wb") as trajectories, into.journal_path.open("wb") as journal:
        for seed in range(seeds):
            for raw in played[seed % len(played)]:
                raw["key"]["env_seed"] = seed
                for entry in calls(raw, manifest["run_id"], drawn):
                    at_s += drawn.expovariate(CALLS_PER_S)
                    journal.write(orjson.dumps({**entry, "at": round(at_s, 3)}) + b"\n")
                trajectories.write(orjson.dumps(raw) + b"\n")
    manifest["config"]["seeds"] = list(range(seeds))
    into.write_manifest(manifest)


def calls(raw: dict[str, Any], run_id: str, drawn: random.Random) -> Iterator[dict[str, Any]]:
    """Give a trajectory's turns seeds, digests and tokens of their own; yield their calls."""
    key = raw["key"]
    for turn in raw["turns"]:
        turn["request_seed"] = drawn.getrandbits(31)
        shown = f"{key['env_seed']} {turn['observation']}".encode()
        turn["prompt_digest"] = blake2b(shown, digest_size=8).hexdigest()
        turn["prompt_tokens"] = drawn.randrange(80, 200)
        turn["completion_tokens"] = drawn.randrange(5, 30)
        elapsed_s = drawn.lognormvariate(-1.0, 0.5)
        yield {
            "format": "journal/1",
            "request_id": f"{run_id}-{key['arm']}-{key['env_seed']}-0-{turn['turn']}",
            "seed": turn["request_seed"],
            "prompt": turn["prompt_digest"],
            "at": 0.0,
            "completion": {
                "text": turn["completion"],
                "reasoning": turn["reasoning"],
                "finish_reason": turn["finish_reason"],
                "refusal": False,
                "prompt_tokens": turn["prompt_tokens"],
                "completion_tokens": turn["completion_tokens"],
                "cached_tokens": drawn.choice((0, 64)),
                "model": "bench",
                "policy_version": None,
                "elapsed_s": elapsed_s,
                "attempts": 1 + (drawn.random() < 0.01),
            },
        }


def measure(rundir: RunDir, tree: Path | None) -> tuple[float, float, float]:
    """Report once in a fresh process; return its wall and CPU time in s, and its peak in MB."""
    before_s = cpu_s()
    command = [sys.executable, "-m", "evalkit", "report", str(rundir.path)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tree or HERE.parent) as process:
        peak_mb = 0.0
        while process.poll() is None:
            peak_mb = max(peak_mb, sum(resident_mb(pid) for pid in family(process.pid)))
            time.sleep(0.02)
        wall_s = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return wall_s, cpu_s() - before_s, peak_mb


def cpu_s() -> float:
    """Return the CPU time of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(found for child in children for found in family(int(child)))]


def resident_mb(pid: int) -> float:
    """Return what a process holds of the memory; pages that several hold count in each."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def main() -> None:
    """Make the run, time its report, and print one line per figure."""
    parser = argparse.ArgumentParser(description="What a report of many episodes costs.")
    parser.add_argument("--seeds", type=int, default=50_000, help="per arm; there are two arms")
    parser.add_argument("--env", default="tic_tac_toe")
    parser.add_argument("--env-args", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--played", type=int, default=500, help="env seeds that are really played")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tree", type=Path, help="another checkout, to compare with")
    typed = parser.parse_args()
    rundir = made(typed.env, typed.env_args, typed.seeds, typed.played)
    with rundir.journal_path.open("rb") as journal:
        turns = sum(1 for _ in journal)
    print(f"{2 * typed.seeds:,} episodes of {typed.env}, {turns:,} turns and journal entries")
    for file in ("trajectories_path", "journal_path"):
        path: Path = getattr(rundir, file)
        print(f"read     {path.name:24} {path.stat().st_size / 1e6:9.1f} MB")
    for _ in range(typed.repeats):
        wall_s, used_s, peak_mb = measure(rundir, typed.tree)
        took = f"{wall_s:6.2f} s   CPU {used_s:6.2f} s   peak {peak_mb:6.1f} MB"
        print(f"report   {took}   (load {os.getloadavg()[0]:.1f})")
    for path in sorted([*rundir.path.glob("*.csv"), *rundir.path.glob("report.*")]):
        print(f"written  {path.name:24} {path.stat().st_size / 1e6:9.3f} MB")


if __name__ == "__main__":
    main()
