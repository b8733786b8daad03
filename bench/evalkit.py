"""What the harness itself costs: 10-turn FULL_HISTORY episodes against an instant server.

    python bench/evalkit.py [--episodes 2000] [-c 256] [--turns 10] [--delay-ms 0]

The full log is on (journal and trajectories, every call), in one process; the server is another
process. Prints turns/s, CPU per turn of the client alone, and how much memory the concurrent
episodes take: the peak while they play, less what the process held with one episode at a time.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from collections.abc import Iterator
from pathlib import Path

# This file has the package's name: its own folder must not be searched before the installed one.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

from evalkit.config import RunConfig
from evalkit.manifest import describe
from evalkit.play.runner import ArmTally, Tally, episode_keys, play_all
from evalkit.record.rundir import RunDir
from evalkit.run import env_factory, open_arms, run_async


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


async def play_once(url: str, out: Path, *, episodes: int, turns: int, concurrency: int) -> int:
    """Play all episodes, with the full log; return the number of turns."""
    config = RunConfig.read(
        {
            "model": url,
            "env": "key_door",
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


def peak_mb() -> float:
    """Return the most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_s() -> float:
    """Return the CPU time of this process, user and system, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Time it and print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("-c", "--concurrency", type=int, default=256)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    typed = parser.parse_args()
    with mock_server(typed.delay_ms) as url, tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run_async(play_once(url, out, episodes=20, turns=typed.turns, concurrency=1))
        memory_before, cpu_before, start = peak_mb(), cpu_s(), time.perf_counter()
        turns = run_async(
            play_once(
                url,
                out,
                episodes=typed.episodes,
                turns=typed.turns,
                concurrency=typed.concurrency,
            )
        )
        wall, cpu, memory = time.perf_counter() - start, cpu_s() - cpu_before, peak_mb()
    print(f"turns                         {turns}")
    print(f"turns/s                       {turns / wall:,.0f}")
    print(f"CPU per turn                  {1000 * cpu / turns:.4f} ms")
    print(f"peak memory                   {memory:.0f} MB")
    growth = (memory - memory_before) * 1000 / typed.concurrency
    print(f"memory per 1,000 concurrent   {growth:.1f} MB")


if __name__ == "__main__":
    main()
