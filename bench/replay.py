"""What playing a run again costs: `python -m evalkit replay RUN --check` as a whole process.

    python bench/replay.py [--turns 100000] [--repeats 3]

For each history strategy a run of key_door is played by a policy that says something else in every
turn, so that no text is ever met twice, and is kept in the temporary folder. Then the command plays
it again, and must find every prompt digest, action, reward and end as recorded. Prints turns per
second of the process from its start to its end, by the wall clock and by CPU time (which a busy
machine does not change); medians.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# evalkit.py beside this file has the package's name: this folder must not be searched before it.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

from evalkit.play.policy import Ask, Completion, Policy  # noqa: E402
from evalkit.run import evaluate  # noqa: E402

CASES = (
    ("NO_HISTORY", 35),
    ("FULL_HISTORY", 35),
    ("SCRATCHPAD", 35),
    ("WINDOW(4)", 35),
    ("SUMMARY(2)", 35),
    ("OPTIMAL_SCRATCHPAD", 35),
    ("FULL_HISTORY", 200),
    ("FULL_HISTORY", 1000),
)


class Talker(Policy):
    """Random actions, a thought and notes of its own in every turn."""

    async def complete(self, ask: Ask) -> Completion:
        """Answer by the request's seed."""
        rng = random.Random(ask.seed)
        action = ask.env.format_action(rng.choice(ask.env.legal_actions()))
        notes = f"<scratchpad>{rng.random()} is what I noted in turn {ask.turn}.</scratchpad>"
        return Completion(text=f"I think {rng.random()} of it. {notes}{action}", prompt_tokens=9)


def made(folder: Path, strategy: str, max_turns: int, turns: int) -> Path:
    """Play the run, if it was not played before."""
    name = f"{strategy}-{max_turns}-{turns}"
    found = list(folder.glob(f"{name}/*/manifest.json"))
    if found:
        return found[0].parent
    episodes = max(1, turns // max_turns)
    env_args = {"size": 12, "max_turns": max_turns}
    run = evaluate(
        Talker(),
        "key_door",
        env_args=env_args,
        strategy=strategy,
        seeds=f"0:{episodes}",
        out=folder / name,
    )
    return run.path


def replayed(path: Path) -> tuple[float, float, int]:
    """Return (wall s, CPU s, turns) of one check, which must find nothing."""
    command = [sys.executable, "-m", "evalkit", "replay", str(path), "--check"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began_s = time.perf_counter()
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
    elapsed_s = time.perf_counter() - began_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    turns = int(done.stdout.rpartition(" turns in ")[0].rsplit(maxsplit=1)[-1])
    return elapsed_s, cpu_s, turns


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=100_000, help="of each run, about")
    parser.add_argument("--repeats", type=int, default=3)
    typed = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "palaestra-bench-replay"
    print(f"{'strategy':<20} {'turns':>6} {'in all':>8} {'turns/s':>9} {'turns/CPU s':>12}")
    for strategy, max_turns in CASES:
        path = made(folder, strategy, max_turns, typed.turns)
        taken = [replayed(path) for _ in range(typed.repeats)]
        wall_s, cpu_s = (statistics.median(one[which] for one in taken) for which in (0, 1))
        turns = taken[0][2]
        print(
            f"{strategy:<20} {max_turns:>6} {turns:>8,} {turns / wall_s:>9,.0f} "
            f"{turns / cpu_s:>12,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
