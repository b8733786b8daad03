"""Plays groups in a thread of its own while the trainer learns: TRL's RolloutWorkerProtocol."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from evalkit.errors import EvalkitError, ServerLost, Unreachable, first_error
from train.errors import GatewayLost, RolloutFailed, TrainError
from train.rollouts.player import Player
from train.rollouts.rows import Group
from train.rollouts.schedule import Schedule

_POLL_S = 0.5


class Interrupted(Exception):
    """The run was asked to stop."""


class RolloutWorker:
    """One thread with an event loop, from `start` to `stop`.

    `rollout_buffer` and `metrics_queue` belong to TRL's protocol and stay empty: whole steps are
    taken with `take`.
    """

    def __init__(self, schedule: Schedule, connect: Callable[[], Awaitable[Player]]) -> None:
        """`connect` is awaited in the worker's own loop."""
        self.rollout_buffer: queue.Queue[Any] = queue.Queue()
        self.metrics_queue: queue.Queue[dict[str, float]] = queue.Queue()
        self.schedule = schedule
        self.replayed = 0
        self._connect = connect
        self._version = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._stopping = False
        self._interrupted = False

    def start(self) -> None:
        """Begin to play."""
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Cut what is being played short, and return when nothing is any more."""
        self._stopping = True
        self._nudge()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def update_model_version(self, model_version: int) -> None:
        """Take TRL's own count of syncs: `published` says more."""

    def interrupt(self) -> None:
        """Let whoever takes a step, now or later, raise Interrupted. Safe in a signal handler."""
        self._interrupted = True

    def published(self, step: int, version: int) -> None:
        """Note that the weights of `step` are live as `version`."""
        self._version = version
        self.schedule.published(step)

    def check_health(self, stale_after_s: float) -> None:
        """Raise what ended the worker, if it ended."""
        del stale_after_s  # a worker that waits for admission is not sick
        if self._thread is not None and not self._thread.is_alive() and not self._stopping:
            raise RolloutFailed("the rollout worker ended without a word")

    def take(self, step: int) -> tuple[Group, ...]:
        """Return the groups of a step, as soon as all are played; raise what ended the worker."""
        while not self._interrupted:
            groups = self.schedule.take(step, _POLL_S)
            if groups is not None:
                return groups
            self.check_health(_POLL_S)
        raise Interrupted

    def _run(self) -> None:
        try:
            asyncio.run(self._play())
        except BaseExceptionGroup as several:
            self.schedule.fail(_translated(first_error(several, TrainError, EvalkitError)))
        except BaseException as error:  # noqa: BLE001  # the trainer's thread raises it again
            self.schedule.fail(_translated(error))

    async def _play(self) -> None:
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        self.schedule.on_admission = self._nudge
        player = await self._connect()
        try:
            async with asyncio.TaskGroup() as groups:
                groups.create_task(self._until_stopped(groups, player))
        except BaseExceptionGroup as several:
            if first_error(several, TrainError, EvalkitError) is not _STOP:
                raise
        finally:
            await player.aclose()

    async def _until_stopped(self, groups: asyncio.TaskGroup, player: Player) -> None:
        """Start whatever may start; end by an exception, so that what is being played ends too."""
        while not self._stopping:
            self._wake.clear()
            while (index := self.schedule.admit()) is not None:
                groups.create_task(self._play_group(player, index))
            await self._wake.wait()
        raise _STOP

    async def _play_group(self, player: Player, index: int) -> None:
        self.schedule.finish(await player.play_group(index, self._version))
        self.replayed = player.replayed

    def _nudge(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)


class _Stop(Exception):
    """The worker was told to stop."""


_STOP = _Stop()


def _translated(error: BaseException) -> BaseException:
    """Return the error as training raises it."""
    if isinstance(error, TrainError) or not isinstance(error, EvalkitError):
        return error
    kind = GatewayLost if isinstance(error, ServerLost | Unreachable) else RolloutFailed
    translated = kind(str(error))
    translated.__cause__ = error
    return translated
