"""Pairs at which `--stop decided` ends a run of two scripted policies, through the real runner.

    python bench/stop.py [--runs 25] [--rate-a 0.5] [--rate-b 0.6] [--sd 2.5] [--margin M]

Both arms meet the same difficulty of a seed, normal in log-odds with --sd, on key_door of size 2:
an episode is played by the oracle, or not at all. Prints the stops, their median, the verdicts, the
episodes begun beyond the stop, and what fixed designs need.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import time
from collections import Counter
from io import StringIO
from pathlib import Path
from statistics import NormalDist, median

# A file beside this one has the package's name: this folder must not be searched before it.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import evalkit  # noqa: E402
from evalkit.judge.design import plan, rho_of_difficulty  # noqa: E402
from evalkit.play.policy import Ask  # noqa: E402
from evalkit.testing import FakePolicy, Reply  # noqa: E402

ARMS = ("NO_HISTORY", "WINDOW_k_1")


def chances(rate: float, sd: float) -> tuple[float, float]:
    """Return intercept and deviation of the log-odds with which a rate is had on average."""
    grid = [sd * NormalDist().inv_cdf((n + 0.5) / 2_000) for n in range(2_000)]
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        mean = sum(1.0 / (1.0 + math.exp(-(middle + z))) for z in grid) / len(grid)
        low, high = (middle, high) if mean < rate else (low, middle)
    return low, sd


def player(rates: dict[str, tuple[float, float]], run: int) -> FakePolicy:
    """Win an episode with the chance that its arm has on its seed."""

    def reply(ask: Ask) -> Reply:
        stem, seed, _ = ask.session_id.rsplit("-", 2)
        arm = stem.rpartition(".")[2]
        intercept, sd = rates[arm]
        odds = intercept + random.Random(f"{run} {seed}").gauss(0.0, sd)
        won = random.Random(f"{run} {seed} {arm}").random() < 1.0 / (1.0 + math.exp(-odds))
        return ask.env.format_action(ask.env.oracle()) if won else ""

    return FakePolicy(reply, shuffle=run)


def main() -> None:
    """Play the runs and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--rate-a", type=float, default=0.5)
    parser.add_argument("--rate-b", type=float, default=0.6)
    parser.add_argument("--sd", type=float, default=2.5)
    parser.add_argument("--margin", type=float)
    parser.add_argument("--max-seeds", type=int, default=2_000)
    parser.add_argument("--concurrency", type=int, default=64)
    typed = parser.parse_args()
    rates = {
        arm: chances(rate, typed.sd)
        for arm, rate in zip(ARMS, (typed.rate_a, typed.rate_b), strict=True)
    }
    stops: list[int] = []
    beyond: list[int] = []
    ends: Counter[str] = Counter()
    began = time.perf_counter()
    for number in range(typed.runs):
        with tempfile.TemporaryDirectory() as folder:
            said = StringIO()
            run = evalkit.evaluate(
                player(rates, number),
                "key_door",
                env_args={"size": 2, "max_turns": 9},
                strategy="NO_HISTORY,WINDOW(1)",
                stop="decided",
                margin=typed.margin,
                max_seeds=typed.max_seeds,
                concurrency=typed.concurrency,
                out=Path(folder),
                show=said,
            )
        (found,) = run.report.sequential
        ends[found.verdict.value] += 1
        stops.append(found.n_episodes // 2)
        last = said.getvalue().splitlines()[-1]
        beyond.append(int(last.split()[0]) if "beyond the stop" in last else 0)
    rho = rho_of_difficulty(typed.rate_a, typed.rate_b, typed.sd)
    print(f"stops: {sorted(stops)}")
    print(f"median {median(stops):g} pairs; {dict(ends)}; {time.perf_counter() - began:.0f} s")
    print(f"episodes begun beyond the stop: median {median(beyond):g}, most {max(beyond)}")
    if typed.rate_a != typed.rate_b:
        fixed = plan(typed.rate_a, typed.rate_b - typed.rate_a, rho=rho)
        print(f"fixed designs: {fixed.seeds} pairs, {fixed.unpaired_seeds} per arm unpaired")


if __name__ == "__main__":
    main()
