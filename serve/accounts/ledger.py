"""What was used, an hour, key and model a row: counted in memory, written twice a second.

`add` is on the way of every request and touches no disk. `kill -9` loses what came since the last
write, at most half a second of it and the time that a write takes. While the database cannot be
written, counts are kept and tried again; what no longer fits is counted as lost, never silently.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from serve.accounts.records import Usage
from serve.errors import StateError

logger = logging.getLogger(__name__)

OTHER_MODEL = "(other)"
"""Stands for all models beyond what a ledger counts apart."""

_MAX_MODEL = 256
_MOST = 1 << 53


class UsageSink(Protocol):
    """Where usage ends up; an AccountStore is one."""

    def add_usage(self, rows: Sequence[Usage]) -> None:
        """Add these counts, all or none; raise StateError."""


class Ledger:
    """Counts usage and writes it down. `start` and `stop` it on the event loop that adds.

    `max_rows` bounds what is counted apart between two writes; twice as many may wait for the disk.
    """

    def __init__(
        self,
        sink: UsageSink,
        *,
        flush_s: float = 0.5,
        max_rows: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sink = sink
        self._flush_s = flush_s
        self._max_rows = max_rows
        self._clock = clock
        self._counts: dict[tuple[str, str], list[int]] = {}
        self._waiting: dict[tuple[int, str, str], list[int]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._is_stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.lost_requests = 0
        """Requests whose usage could not be kept."""
        self.is_failing = False
        """Whether the last write failed."""

    def add(
        self, key_id: str, model: str, prompt_tokens: int, completion_tokens: int, estimated: bool
    ) -> None:
        """Count one request. `model` must come from a bounded set, never from a client as is."""
        counts = self._counts.get((key_id, model))
        if counts is None:
            counts = self._row(key_id, model)
        counts[0] += 1
        counts[1] += prompt_tokens
        counts[2] += completion_tokens
        if estimated:
            counts[3] += prompt_tokens + completion_tokens

    async def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="ledger")

    async def stop(self) -> None:
        """Write what is left, and end. What cannot be written then is lost, and said so."""
        self._is_stopping.set()
        if self._task is not None:
            await self._task
        await self.flush()
        self._thread.shutdown()
        self.lost_requests += sum(counts[0] for counts in self._waiting.values())
        self._waiting.clear()
        if self.lost_requests:
            logger.error("the usage of %s requests was lost", self.lost_requests)

    async def flush(self) -> None:
        """Write now what was counted; keep it if that fails."""
        batch = self._take()
        if not batch:
            return
        rows = [_usage(key, counts) for key, counts in batch.items()]
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._sink.add_usage, rows)
        except StateError as error:
            self._keep(batch)
            if not self.is_failing:
                logger.warning("usage cannot be written down, trying again: %s", error)
            self.is_failing = True
        else:
            if self.is_failing:
                logger.info("usage is written down again")
            self.is_failing = False

    async def _run(self) -> None:
        while not self._is_stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._flush_s):
                    await self._is_stopping.wait()
            await self.flush()

    def _row(self, key_id: str, model: str) -> list[int]:
        key = key_id, model[:_MAX_MODEL] if len(self._counts) < self._max_rows else OTHER_MODEL
        return self._counts.setdefault(key, [0, 0, 0, 0])

    def _take(self) -> dict[tuple[int, str, str], list[int]]:
        """Return all that is to be written, stamped with the hour, and start anew."""
        hour_s = int(self._clock()) // 3600 * 3600
        taken = {(hour_s, *key): counts for key, counts in self._counts.items()}
        self._counts = {}
        self._keep(taken)
        batch, self._waiting = self._waiting, {}
        return batch

    def _keep(self, batch: dict[tuple[int, str, str], list[int]]) -> None:
        """Put counts back among those that wait, as far as there is room."""
        for key, counts in batch.items():
            kept = self._waiting.get(key)
            if kept is not None:
                for index, count in enumerate(counts):
                    kept[index] += count
            elif len(self._waiting) < 2 * self._max_rows:
                self._waiting[key] = counts
            else:
                self.lost_requests += counts[0]


def _usage(key: tuple[int, str, str], counts: list[int]) -> Usage:
    hour_s, key_id, model = key
    # Bounded, so that an engine which says nonsense cannot make the whole batch unwritable.
    requests, prompt_tokens, completion_tokens, estimated_tokens = (
        min(max(count, 0), _MOST) for count in counts
    )
    return Usage(
        hour_s=hour_s,
        key_id=key_id,
        model=model,
        requests=requests,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        estimated_tokens=estimated_tokens,
    )
