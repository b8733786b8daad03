"""A launcher to be killed: `launcher.py PIDS PORT LOG` keeps a stubborn engine up."""

import asyncio
import sys
from pathlib import Path

from serve.engine.command import Command
from serve.engine.launch import LaunchedEngine
from serve.errors import EngineDied
from serve.up import stay_up

STUBBORN = Path(__file__).with_name("stubborn.py")


def run(pids: str, port: str, log: str) -> int:
    engine = LaunchedEngine(
        Command(argv=(sys.executable, str(STUBBORN), pids, port)),
        model="fake",
        port=int(port),
        log=Path(log),
        grace_s=5,
    )
    try:
        asyncio.run(
            stay_up(engine, waiting=lambda _: None, ready=lambda: print("ready", flush=True))
        )
    except EngineDied as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
