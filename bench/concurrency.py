"""Whether `-c auto` finds what a hand-tuned `-c` finds, on four kinds of server.

    python bench/concurrency.py [--episodes 400,2000] [--turns 10]
    python bench/concurrency.py --url http://127.0.0.1:8000 [--episodes 150] [--rounds 3]

Without a URL the servers are simulated, in simulated time, so that neither the machine nor what
else runs on it matters; the runs are real ones, with journal and trajectories. With one, auto and
the levels are played in turns against a real server, so that drift meets all of them. Prints
turns/s of whole runs, the search and the last stragglers included, of equal episodes each.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

# A file here has the package's name: this folder must not be searched before the installed one.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

from envs.games.key_door import KeyDoor  # noqa: E402
from evalkit.play.adaptive import AdaptiveLimit  # noqa: E402
from evalkit.play.chat import ChatPolicy, Sampling  # noqa: E402
from evalkit.play.gate import Gate  # noqa: E402
from evalkit.play.limits import Patience, RetryLimits  # noqa: E402
from evalkit.play.rollout import Arm  # noqa: E402
from evalkit.play.runner import episode_keys, play_all  # noqa: E402
from evalkit.play.strategies import NoHistory  # noqa: E402
from evalkit.record.rundir import RunDir  # noqa: E402
from evalkit.record.tally import ArmTally, Tally  # noqa: E402
from evalkit.run import evaluate  # noqa: E402
from evalkit.simulated import (  # noqa: E402
    Distant,
    Fitful,
    Queueing,
    Refusing,
    SimulatedServer,
    now_s,
    run_simulated,
)

LEVELS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
REAL_LEVELS = (8, 16, 32, 64, 128)
SERVERS: dict[str, Callable[[], SimulatedServer]] = {
    "queueing": Queueing,
    "fitful": Fitful,
    "429-ing": Refusing,
    "latency-bound": Distant,
}
HIGHEST = LEVELS[-1]
"""Auto may not go beyond what is tried by hand."""


async def simulated(
    server: SimulatedServer, episodes: int, turns: int, level: int | None
) -> tuple[float, int]:
    """Play all episodes; return (turns/s, where auto settled). No level: auto."""
    clock = asyncio.get_running_loop().time
    gate = None if level is not None else Gate(AdaptiveLimit(highest=HIGHEST), clock=clock)
    patience = Patience(RetryLimits(), clock=clock)
    policy = ChatPolicy(
        server, model="simulated", sampling=Sampling(), patience=patience, gate=gate
    )
    make_env = partial(KeyDoor, size=6, max_turns=turns)
    arm = Arm(name="A", policy=policy, strategy=NoHistory(), make_env=make_env, run_id="bench")
    tally = Tally(total_episodes=episodes, arms={"A": ArmTally()})
    with tempfile.TemporaryDirectory() as folder:
        rundir = RunDir.create(Path(folder), "bench", {})
        began_s = now_s()
        keys = episode_keys(range(episodes), 1, ["A"])
        await play_all([arm], keys, rundir, tally, concurrency=level or episodes)
        rate = tally.turns / (now_s() - began_s)
    return rate, gate.settled if gate is not None else 0


def simulate(episodes: int, turns: int) -> None:
    """Print a table: a row for every server, turns/s at every level and of auto."""
    print(f"\n{episodes} episodes of {turns} turns; turns/s")
    print(f"{'':>14}" + "".join(f"{level:>7}" for level in LEVELS) + "    auto  settled  auto/best")
    for name, server in SERVERS.items():
        by_hand = [
            run_simulated(simulated(server(), episodes, turns, level))[0] for level in LEVELS
        ]
        auto, settled = run_simulated(simulated(server(), episodes, turns, None))
        row = "".join(f"{rate:>7.0f}" for rate in by_hand)
        print(f"{name:>14}{row}{auto:>8.0f}{settled:>9}{auto / max(by_hand):>11.3f}", flush=True)


def real(url: str, episodes: int, rounds: int, levels: Sequence[int]) -> None:
    """Print turns/s of auto and of the levels on a real server, each `rounds` times, in turns."""
    arms: list[int | str] = ["auto", *levels]
    rates: dict[int | str, list[float]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for arm in arms[number % len(arms) :] + arms[: number % len(arms)]:
                began_s = time.monotonic()
                run = evaluate(url, "key_door", seeds=f"0:{episodes}", concurrency=arm, out=folder)
                rate = len(run.turns()) / (time.monotonic() - began_s)
                rates[arm].append(rate)
                print(f"round {number + 1}  -c {arm!s:>5}  {rate:8.1f} turns/s", flush=True)
    medians = {arm: statistics.median(each) for arm, each in rates.items()}
    for arm in arms:
        low, high = min(rates[arm]), max(rates[arm])
        print(f"-c {arm!s:>5}  {medians[arm]:8.1f} turns/s ({low:.1f} .. {high:.1f})")
    best = max(medians[level] for level in levels)
    print(f"auto is {medians['auto'] / best:.3f} of the best by hand")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What -c auto finds, beside a -c tuned by hand.")
    parser.add_argument("--episodes", help="runs of so many, a comma list (default 400,2000; 150)")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--url", help="a real server")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every level, with --url")
    parser.add_argument("--levels", default=",".join(map(str, REAL_LEVELS)), help="with --url")
    typed = parser.parse_args()
    lengths = [
        int(part) for part in (typed.episodes or ("150" if typed.url else "400,2000")).split(",")
    ]
    for episodes in lengths:
        if typed.url:
            real(typed.url, episodes, typed.rounds, [int(part) for part in typed.levels.split(",")])
        else:
            simulate(episodes, typed.turns)


if __name__ == "__main__":
    main()
