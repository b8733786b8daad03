"""What routing is worth: multi-turn episodes over two real vLLM replicas, by three policies.

    python bench/routing.py [--episodes 32] [--turns 8] [--concurrency 16] [--size 4]

Two engines are started once, each with its own cores. For each policy the prefix caches are
emptied, a gateway is started in front of the two, and the same FULL_HISTORY episodes of key_door
are played through it. Prints, for each policy, turns/s and how much of the prompts came from the
prefix caches, as the engines count it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# bench/evalkit.py has the package's name: search the installed one first.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import evalkit  # noqa: E402
from serve.config import EngineConfig  # noqa: E402
from serve.engine.command import Command, detect, vllm_command  # noqa: E402
from serve.engine.launch import LaunchedEngine, free_port  # noqa: E402
from serve.engine.vllm import VllmAdmin  # noqa: E402
from serve.models import resolve  # noqa: E402

MODEL = "smollm2-135m-instruct"
POLICIES = ("round_robin", "random", "sticky")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One policy's numbers."""

    routing: str
    turns: int
    wall_s: float
    hits: float
    queries: float
    shares: tuple[float, ...]
    """How the queried prompt tokens were spread over the replicas."""


def main() -> int:
    """Measure every policy and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    results = asyncio.run(_measure(options))
    print("| routing | turns/s | prompt tokens from the prefix cache | spread |")
    print("|---|---|---|---|")
    for result in results:
        spread = " : ".join(f"{share:.0%}" for share in result.shares)
        print(
            f"| {result.routing} | {result.turns / result.wall_s:.2f} | "
            f"{result.hits / result.queries:.1%} | {spread} |"
        )
    return 0


async def _measure(options: argparse.Namespace) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        engines = [_engine(core, Path(folder)) for core in range(2)]
        async with contextlib.AsyncExitStack() as stack:
            for engine in engines:
                await stack.enter_async_context(engine)
            await asyncio.gather(*(engine.wait_ready() for engine in engines))
            results = []
            for _ in range(options.repeats):
                for routing in POLICIES:
                    results.append(await _play(engines, routing, Path(folder), options))
                    print(results[-1], file=sys.stderr, flush=True)
            return results


async def _play(
    engines: list[LaunchedEngine], routing: str, folder: Path, options: argparse.Namespace
) -> Result:
    before = []
    for engine in engines:
        async with VllmAdmin(engine.root_url) as admin:
            await admin.reset_prefix_cache()
            before.append(await admin.metrics())
    with _gateway(engines, routing, folder) as url:
        started = time.perf_counter()
        run = await asyncio.to_thread(_episodes, url, folder / f"{routing}-{time.time()}", options)
        wall_s = time.perf_counter() - started
    after = []
    for engine in engines:
        async with VllmAdmin(engine.root_url) as admin:
            after.append(await admin.metrics())
    queries = [_grown(a, b, "prefix_cache_queries") for a, b in zip(before, after, strict=True)]
    hits = [_grown(a, b, "prefix_cache_hits") for a, b in zip(before, after, strict=True)]
    return Result(
        routing=routing,
        turns=len(run.turns()),
        wall_s=wall_s,
        hits=sum(hits),
        queries=sum(queries),
        shares=tuple(query / sum(queries) for query in queries),
    )


def _episodes(url: str, out: Path, options: argparse.Namespace) -> evalkit.Run:
    return evalkit.evaluate(
        url,
        "key_door",
        env_args={"size": options.size, "max_turns": options.turns},
        strategy="FULL_HISTORY",
        guided=True,
        seeds=f"0:{options.episodes}",
        max_tokens=24,
        temperature=0.7,
        concurrency=options.concurrency,
        out=str(out),
    )


def _engine(core: int, folder: Path) -> LaunchedEngine:
    checkpoint, name = resolve(MODEL)
    config = EngineConfig(
        checkpoint=checkpoint, model=name, port=free_port("127.0.0.1"), max_model_len=4096
    )
    command = vllm_command(config, detect())
    pinned = {
        **command.env,
        "VLLM_CPU_OMP_THREADS_BIND": str(core % (os.cpu_count() or 1)),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_SERVER_DEV_MODE": "1",
    }
    return LaunchedEngine(
        Command(argv=command.argv, env=pinned, env_defaults=command.env_defaults),
        model=name,
        port=config.port,
        log=folder / f"engine-{core}.log",
    )


@contextlib.contextmanager
def _gateway(engines: list[LaunchedEngine], routing: str, folder: Path) -> Iterator[str]:
    upstreams = [word for engine in engines for word in ("--upstream", engine.root_url)]
    command = [sys.executable, "-m", "serve", "up", *upstreams, "--routing", routing]
    command += ["--port", "0", "--state", str(folder / "state")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = ""
            for line in process.stdout:
                if line.startswith("base URL"):
                    url = line.split()[-1]
                if line.startswith("ready"):
                    break
            yield url
        finally:
            process.terminate()
            process.communicate()  # it says goodbye


def _grown(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after[name] - before[name]


if __name__ == "__main__":
    raise SystemExit(main())
