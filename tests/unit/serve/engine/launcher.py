"""A launcher to be killed: `launcher.py PIDS PORT LOG` keeps a stubborn engine up."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from serve.engine.command import Command
from serve.engine.launch import LaunchedEngine
from serve.errors import EngineDied

STUBBORN = Path(__file__).with_name("stubborn.py")


def run(pids: str, port: str, log: str) -> int:
    engine = LaunchedEngine(
        Command(argv=(sys.executable, str(STUBBORN), pids, port)),
        model="fake",
        port=int(port),
        log=Path(log),
        grace_s=5,
    )
    died = asyncio.run(keep_up(engine))
    print(died or "")
    return 1 if died else 0


async def keep_up(engine: LaunchedEngine) -> EngineDied | None:
    """Keep an engine up until a signal; return how it died, if it did."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with engine:
        await engine.wait_ready()
        print("ready", flush=True)
        stop = asyncio.create_task(stopped.wait())
        ends: set[asyncio.Future[Any]] = {stop, engine.died}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        return engine.died.result() if engine.died.done() else None


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
