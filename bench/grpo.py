"""What a step of GRPO takes: TRL's stock trainer, our sync mode and our async mode, side by side.

    python bench/grpo.py [--steps 12] [--groups 8] [--group-size 8] [--model DIR] [--only NAMES]

All play FULL_HISTORY episodes of key_door with the same tiny policy, the same env seeds and the
same number of episodes per step, one mode after the other:

stock   TRL's GRPOTrainer with transformers' generate in lockstep (grpo_stock.py). It has no server,
        so that the trainer has all cores.
sync    `python -m train grpo --mode sync`: the same trainer, with a gateway and vLLM of its own. On
        a CPU the engine has the first half of the cores and the trainer the rest, in turns.
async   `python -m train grpo`: both at once.

The rate is so small that the policy stays what it is: at one that learns, its replies soon grow
longer in one mode than in another, and what is compared is no longer the same work. The table has
the tokens that a step reads; async leaves flat groups out. The first steps are dropped as warm-up.
Without --model the policy is made first, by `python -m train tiny key_door`.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

# bench/evalkit.py has the package's name: search the installed one first.
HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(e for e in sys.path if Path(e or ".").resolve() != HERE)]

from bench.gateway_parts.machine import busy_s  # noqa: E402
from train.config import TrainConfig, dumps, load  # noqa: E402
from train.track.metrics import read_metrics  # noqa: E402

MODES = ("stock", "sync", "async")
WARM_UP = 2
LAST = 4
"""Steps whose success is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One mode's numbers, over the steps that count."""

    mode: str
    steps: int
    step_s: float
    """The median."""
    shortest_s: float
    longest_s: float
    idle: float
    """Share of the time that the trainer waited for rollouts (stock: that it generated)."""
    wait_s: float
    """The median of the seconds waited for rollouts; of those below likewise."""
    learn_s: float
    sync_s: float | None
    forwarded: float
    """Tokens that the trainer read per step, prompts included; the mean."""
    tokens_per_s: float
    """Sampled tokens that were trained on, over all the time."""
    success: float
    """Of the last steps."""
    foreign: float
    """Cores that anything else took meanwhile; with 0.2 or more the times mean little."""


def summarize(mode: str, rows: Sequence[Mapping[str, str]], foreign: float) -> Result:
    """Return a mode's numbers from its metrics.csv; the first steps do not count."""
    kept = rows[WARM_UP:]
    if not kept:
        raise ValueError(f"{mode}: {len(rows)} steps, of which the first {WARM_UP} do not count")

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in kept if row[name] != ""]

    step_s, wait_s, sync_s = column("step_s"), column("wait_s"), column("sync_s")
    success = column("success")[-LAST:]
    return Result(
        mode=mode,
        steps=len(kept),
        step_s=median(step_s),
        shortest_s=min(step_s),
        longest_s=max(step_s),
        idle=sum(wait_s) / sum(step_s),
        wait_s=median(wait_s),
        learn_s=median(column("learn_s")),
        sync_s=median(sync_s) if sync_s else None,
        forwarded=sum(column("tokens_forwarded")) / len(kept),
        tokens_per_s=sum(column("tokens_trained")) / sum(step_s),
        success=sum(success) / len(success),
        foreign=foreign,
    )


def table(results: Sequence[Result]) -> list[str]:
    """Return the table; speeds are compared with stock where it was measured."""
    stock = next((result for result in results if result.mode == "stock"), None)
    names = ["", "s/step: median (min..max)", "waits for rollouts", "wait s", "learn s", "sync s"]
    names += ["tokens read a step", "tokens/s", f"success, last {LAST}", "others' cores"]
    names += ["steps/s against stock"]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for result in results:
        ratio = "" if stock is None else f"{stock.step_s / result.step_s:.2f} x"
        sync = "" if result.sync_s is None else f"{result.sync_s:.2f}"
        lines.append(
            f"| {result.mode} "
            f"| {result.step_s:.2f} ({result.shortest_s:.2f}..{result.longest_s:.2f}) "
            f"| {result.idle:.0%} | {result.wait_s:.2f} | {result.learn_s:.2f} | {sync} "
            f"| {result.forwarded:,.0f} | {result.tokens_per_s:,.0f} | {result.success:.0%} "
            f"| {result.foreign:.2f} | {ratio} |"
        )
    return lines


def config_of(options: argparse.Namespace, model: Path) -> TrainConfig:
    """Return what all modes are told."""
    return load(
        None,
        {
            "env.name": "key_door",
            "env.args": {"size": 3, "max_turns": 14},
            "model.path": str(model),
            "rollouts.groups_per_step": options.groups,
            "rollouts.group_size": options.group_size,
            "rollouts.max_tokens": 12,
            "learn.steps": options.steps,
            "learn.learning_rate": options.lr,
            "learn.seed": options.seed,
            "checkpoints.every": options.steps,
        },
    )


def main() -> int:
    """Measure every mode and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help=f"the first {WARM_UP} do not count")
    parser.add_argument("--groups", type=int, default=8, help="env seeds per step")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="a folder (default: one is made)")
    parser.add_argument(
        "--stock-threads", type=int, default=_cores(), help="torch's, in stock (default: all cores)"
    )
    parser.add_argument("--only", default=",".join(MODES), help="stock,sync,async")
    options = parser.parse_args()
    modes = [mode for mode in MODES if mode in options.only.split(",")]
    if options.steps <= WARM_UP or not modes:
        parser.error(f"expected more than {WARM_UP} --steps, and --only from {', '.join(MODES)}")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or _made(Path(folder) / "key_door")
        config = config_of(options, model)
        for mode in modes:
            print(f"{mode}: load average {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
            before_s, began_s = _others_s(), time.monotonic()
            rows = _measured(mode, config, Path(folder) / mode, options.stock_threads)
            foreign = (_others_s() - before_s) / (time.monotonic() - began_s)
            results.append(summarize(mode, rows, foreign))
    print(
        f"{_cores()} cores, stock with {options.stock_threads} threads, "
        f"{options.groups} x {options.group_size} episodes a step, "
        f"{options.steps - WARM_UP} steps after {WARM_UP} of warm-up, one run each\n"
    )
    print("\n".join(table(results)))
    return 0


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _made(folder: Path) -> Path:
    command = [sys.executable, "-m", "train", "tiny", "key_door", "--out", str(folder)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def _others_s() -> float:
    """Return CPU seconds that all cores worked for anybody but us and what we started."""
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy_s() - sum(each.ru_utime + each.ru_stime for each in ours)


def _measured(
    mode: str, config: TrainConfig, folder: Path, stock_threads: int
) -> list[dict[str, str]]:
    """Let a mode train, and return the rows of its metrics.csv."""
    folder.mkdir()
    told = folder / "config.yaml"
    told.write_text(dumps(config), "utf-8")
    if mode == "stock":
        metrics = folder / "metrics.csv"
        words = [str(HERE / "grpo_stock.py"), str(told), str(metrics)]
        environment = os.environ | {"OMP_NUM_THREADS": str(stock_threads)}
        subprocess.run([sys.executable, *words], check=True, stdout=sys.stderr, env=environment)
        return read_metrics(metrics)
    words = ["grpo", "--config", str(told), "--mode", mode, "--out", str(folder)]
    without = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "train", *words]
    subprocess.run(command, check=True, stdout=sys.stderr, env=without)
    (run,) = folder.glob("grpo_*")
    return read_metrics(run / "metrics.csv")


if __name__ == "__main__":
    raise SystemExit(main())
