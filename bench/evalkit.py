"""What the harness itself costs: 10-turn FULL_HISTORY episodes against an instant server.

    python bench/evalkit.py [--episodes 2000] [--turns 10] [--delay-ms 0] [--repeats 3]

The full log is on (journal and trajectories, every call); the client is one process, the server
another. Each measurement is a fresh process. Prints, as medians over the repeats, turns/s and CPU
per turn of the client at 256 episodes at once, and what 1,000 episodes at once add to the peak of
memory over the same episodes played one at a time.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# This file has the package's name: its own folder must not be searched before the installed one.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

from evalkit.arms import env_factory, open_arms  # noqa: E402
from evalkit.config import RunConfig  # noqa: E402
from evalkit.manifest import describe  # noqa: E402
from evalkit.play.runner import episode_keys, play_all  # noqa: E402
from evalkit.record.rundir import RunDir  # noqa: E402
from evalkit.record.tally import ArmTally, Tally  # noqa: E402
from evalkit.run import run_async  # noqa: E402

DISTINCT = f"{HERE / 'distinct_env.py'}:Distinct"


@contextmanager
def mock_server(delay_ms: float) -> Iterator[str]:
    """Run the instant server; yield its base URL."""
    command = [sys.executable, str(HERE / "mock_server.py"), "--delay-ms", str(delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def play_once(
    url: str, out: Path, *, env: str, episodes: int, turns: int, concurrency: int
) -> int:
    """Play all episodes, with the full log; return the number of turns."""
    config = RunConfig.read(
        {
            "model": url,
            "env": env,
            "env_args": {"size": 6, "max_turns": turns},
            "strategy": "FULL_HISTORY",
            "seeds": f"0:{episodes}",
            "concurrency": concurrency,
            "out": str(out),
        }
    )
    make_env = env_factory(config)
    async with open_arms(config, make_env, "bench", None) as (arms, connected):
        manifest = describe(config, make_env(), "bench", arms, connected, None)
        rundir = RunDir.create(out, "bench", manifest)
        names = [arm.name for arm in arms]
        tally = Tally(total_episodes=episodes, arms={name: ArmTally() for name in names})
        keys = episode_keys(config.seeds, 1, names)
        await play_all(arms, keys, rundir, tally, concurrency=concurrency)
    return tally.turns


def child(url: str, env: str, episodes: int, turns: int, concurrency: int) -> None:
    """Play once in this process and print what it took as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run_async(play_once(url, out, env=env, episodes=20, turns=turns, concurrency=1))
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        played = run_async(
            play_once(url, out, env=env, episodes=episodes, turns=turns, concurrency=concurrency)
        )
        wall_s, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures = {
        "turns_per_s": played / wall_s,
        "cpu_ms_per_turn": 1000 * cpu_s / played,
        "peak_mb": after.ru_maxrss / 1024,
    }
    print(json.dumps(figures))


def measure(
    url: str, typed: argparse.Namespace, concurrency: int, env: str = "key_door"
) -> dict[str, float]:
    """Play in fresh processes; return the median of every figure."""
    task = (url, env, str(typed.episodes), str(typed.turns), str(concurrency))
    runs: list[dict[str, float]] = []
    for _ in range(typed.repeats):
        ran = subprocess.run(
            [sys.executable, str(HERE / "evalkit.py"), "--child", *task],
            check=True,
            capture_output=True,
            text=True,
        )
        runs.append(json.loads(ran.stdout))
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    """Time it and print one line per figure."""
    if sys.argv[1:2] == ["--child"]:
        url, env, *numbers = sys.argv[2:]
        child(url, env, *map(int, numbers))
        return
    parser = argparse.ArgumentParser(description="What the harness itself costs.")
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="of the server, per call")
    parser.add_argument("--repeats", type=int, default=3)
    typed = parser.parse_args()
    with mock_server(typed.delay_ms) as url:
        busy, crowd, alone = (measure(url, typed, c) for c in (256, 1000, 1))
        worst, worst_alone = (measure(url, typed, c, DISTINCT) for c in (1000, 1))
    print(f"episodes of {typed.turns} turns, FULL_HISTORY, full log: {typed.episodes}")
    print(f"turns/s, 256 at once                   {busy['turns_per_s']:10,.0f}")
    print(f"CPU per turn, 256 at once              {busy['cpu_ms_per_turn']:10.4f} ms")
    print(f"turns/s, 1,000 at once                 {crowd['turns_per_s']:10,.0f}")
    print(f"peak memory, 1,000 at once             {crowd['peak_mb']:10.1f} MB")
    print(f"memory per 1,000 concurrent episodes   {crowd['peak_mb'] - alone['peak_mb']:10.1f} MB")
    growth = worst["peak_mb"] - worst_alone["peak_mb"]
    print(f"  where no text is seen twice          {growth:10.1f} MB")


if __name__ == "__main__":
    main()
