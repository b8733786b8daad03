"""Keeps one engine up until a signal or its death. Says nothing itself: it is told whom to tell."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

from serve.engine.base import Engine


async def stay_up(
    engine: Engine, *, waiting: Callable[[int], None], ready: Callable[[], None]
) -> None:
    """Start the engine and return after SIGINT, SIGTERM or SIGHUP, when it has been stopped.

    `waiting` is called with the seconds that have passed, each second until the engine is ready,
    then `ready` once. Raises EngineDied if the engine ends by itself.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    async with engine:
        stop = asyncio.create_task(stopped.wait())
        try:
            await _until_ready(engine, stop, waiting)
            if not stop.done():
                ready()
                await _first(stop, engine.died)
            if engine.died.done():
                raise engine.died.result()
        finally:
            stop.cancel()


async def _until_ready(
    engine: Engine, stop: asyncio.Task[Any], waiting: Callable[[int], None]
) -> None:
    """Return when the engine is ready or `stop` is done; raise what `wait_ready` raises."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    probing = asyncio.create_task(engine.wait_ready())
    try:
        while not await _first(probing, stop, timeout_s=1.0):
            waiting(round(loop.time() - started))
        if probing.done():
            probing.result()
    finally:
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)


async def _first(*futures: asyncio.Future[Any], timeout_s: float | None = None) -> bool:
    """Wait for the first of the futures; False if the time was up before."""
    done, _ = await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    return bool(done)
