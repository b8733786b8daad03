"""evalkit beside its peers: the same episodes against the same instant server, one after another.

    python3.11 -m venv .venv-peers
    .venv-peers/bin/pip install inspect-ai==0.3.285 verifiers==0.1.14
    python bench/peers.py --peers .venv-peers/bin

Every harness plays 10-turn episodes with the whole history in every call, logs its trajectories,
and runs in one process at its fastest documented settings. The server counts calls per second,
from the first to the last, so that start-up does not count; CPU is the whole process tree's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one harness took."""

    name: str
    calls: int
    calls_per_s: float
    cpu_ms_per_call: float


def commands(url: str, peers: Path, typed: argparse.Namespace, out: str) -> dict[str, list[str]]:
    """Return the command line of every harness."""
    episodes, turns, c = str(typed.peer_episodes), str(typed.turns), str(typed.concurrency)
    inspect = [str(peers / "inspect"), "eval", "peers/inspect_task.py", "--log-dir", out]
    inspect += ["--model", "openai-api/mock/mock", "--model-base-url", url, "--no-log-realtime"]
    inspect += ["-T", f"episodes={episodes}", "-T", f"turns={turns}", "--display", "none"]
    inspect += ["--max-connections", c, "--max-samples", c]
    ours = [
        sys.executable,
        "-P",
        "-m",
        "evalkit",
        "--model",
        url,
        "--env",
        "key_door",
        "--out",
        out,
    ]
    ours += ["--env-arg", "size=6", "--env-arg", f"max_turns={turns}", "-n", str(typed.episodes)]
    ours += ["--strategy", "FULL_HISTORY", "-c", c]
    verifiers = [str(peers / "python"), "peers/verifiers_env.py", url, episodes, turns, c]
    return {"palaestra": ours, "inspect-ai": inspect, "verifiers": verifiers}


def measure(name: str, command: list[str], url: str) -> Measured:
    """Run a harness and ask the server what it saw."""
    stats = url.replace("/v1", "/stats")
    _read(stats)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"MOCK_API_KEY": "none", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=HERE, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seen = _read(stats)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    calls = int(seen["requests"])
    return Measured(
        name=name,
        calls=calls,
        calls_per_s=calls / seen["active_s"],
        cpu_ms_per_call=1000 * cpu_s / calls,
    )


def _read(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=10) as response:
        read: dict[str, float] = json.load(response)
    return read


def main() -> None:
    """Measure every harness and print the table of ratios."""
    parser = argparse.ArgumentParser(description="evalkit beside its peers")
    parser.add_argument("--peers", type=Path, required=True, help="bin folder they are in")
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--peer-episodes", type=int, default=150)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("-c", "--concurrency", type=int, default=128)
    typed = parser.parse_args()
    server = [sys.executable, str(HERE / "mock_server.py")]
    with (
        subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as mock,
        tempfile.TemporaryDirectory() as out,
    ):
        assert mock.stdout is not None
        url = mock.stdout.readline().strip()
        try:
            lines = commands(url, typed.peers.resolve(), typed, out)
            rows = [measure(name, command, url) for name, command in lines.items()]
        finally:
            mock.terminate()
    ours = rows[0]
    print("| harness | calls | calls/s | CPU ms a call, start-up included | palaestra is |")
    print("|---|---|---|---|---|")
    for row in rows:
        ratio = f"{ours.calls_per_s / row.calls_per_s:.0f} x as fast" if row is not ours else ""
        rates = f"{row.calls_per_s:,.0f} | {row.cpu_ms_per_call:.3f}"
        print(f"| {row.name} | {row.calls} | {rates} | {ratio} |")


if __name__ == "__main__":
    main()
