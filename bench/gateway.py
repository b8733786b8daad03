"""Our gateway beside its peers: the same loads, one after another, one worker each, in one run.

    apt-get install -y --no-install-recommends gcc nginx-light
    python bench/gateway.py [--peers nginx,vllm-router,smg,litellm,ours] [--rounds 3]
        [--scale 1.0] [--out FILE.json]
    python bench/gateway.py --read FILE.json

The gateway is pinned to core 0; a mock engine and a load generator, both C and compiled here, share
core 1. Peers from Python's registry are installed once, each into a venv of its own in the cache
folder; nginx is the machine's. A round takes about 80 s a peer. Prints Markdown tables of medians
with ratios to nginx and to no gateway at all, the cores that other processes took meanwhile, and
which goals held. A peer that is not there is named, never left out.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# As a script, this folder would be searched first, and its evalkit.py is not the package.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
sys.path.insert(0, str(HERE.parent))

from bench.gateway_parts import records  # noqa: E402
from bench.gateway_parts.cells import Pace, run_peer  # noqa: E402
from bench.gateway_parts.machine import PortTaken, allow_many_files  # noqa: E402
from bench.gateway_parts.peers import PEERS  # noqa: E402
from bench.gateway_parts.tables import Results, report  # noqa: E402
from bench.gateway_parts.tools import Missing, Site, find  # noqa: E402
from serve.config import cache_dir  # noqa: E402


def one(name: str, site: Site, pace: Pace, round_: int) -> records.Run:
    """Measure one peer, or say why it cannot be."""
    try:
        return run_peer(name, PEERS[name](site), site, pace, round_)
    except Missing as missing:
        return records.Run(
            peer=name,
            version="",
            round=round_,
            figures={},
            cells={},
            problems={"start": str(missing)},
        )


def measure(typed: argparse.Namespace) -> list[records.Run]:
    """Measure every peer in every round; keep what there is after each."""
    runs: list[records.Run] = []
    out = typed.out or cache_dir() / "bench" / "gateway.json"
    pace = Pace(scale=typed.scale, tries=typed.tries)
    about = {"commit": _commit(), "cores": os.cpu_count(), "scale": typed.scale}
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as scratch:
        site = Site(root=HERE.parent, cache=cache_dir() / "bench", scratch=Path(scratch))
        for round_ in range(typed.rounds):
            for name in typed.peers:
                start = time.monotonic()
                runs.append(one(name, site, pace, round_))
                records.save(out, runs, about)
                took_s = time.monotonic() - start
                found = len(runs[-1].cells)
                print(f"round {round_ + 1} {name}: {found} loads, {took_s:.0f} s", file=sys.stderr)
    print(f"figures: {out}", file=sys.stderr)
    return runs


def main() -> None:
    """Measure, or read what was measured, and print the tables."""
    typed = _parser().parse_args()
    if typed.read is not None:
        print(report(Results(records.load(typed.read))))
        return
    if (os.cpu_count() or 1) < 2:
        sys.exit("two cores are needed: one for the gateway, one for the load")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    allow_many_files()
    try:
        find("taskset")
        find("gcc")
        runs = measure(typed)
    except (Missing, PortTaken) as error:
        sys.exit(str(error))
    print(report(Results(runs)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Our gateway beside its peers.")
    every = ",".join(name for name in PEERS if name != "direct")
    parser.add_argument("--peers", type=_names, default=_names(every), help=f"default: {every}")
    parser.add_argument("--rounds", type=int, default=3, help="medians are over these")
    parser.add_argument("--scale", type=float, default=1.0, help="of every load's length")
    parser.add_argument("--tries", type=int, default=3, help="of a load while others are busy")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="default: in the cache")
    parser.add_argument("--read", type=Path, metavar="FILE.json", help="print its tables again")
    return parser


def _names(typed: str) -> list[str]:
    names = ["direct", *(name for name in typed.split(",") if name != "direct")]
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(PEERS)}, found {unknown}")
    return names


def _commit() -> str:
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip()


if __name__ == "__main__":
    main()
