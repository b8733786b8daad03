"""How many episodes are played at once: as many as the servers' limits allow, while they move.

Knows no episodes: it is given what plays the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from evalkit.play.gate import Gate
from evalkit.play.policy import Policy


def gates_of(policies: Iterable[Policy]) -> list[Gate]:
    """Return the gates that calls of these policies go through, each once."""
    return list(dict.fromkeys(policy.gate for policy in policies if policy.gate is not None))


class Crew:
    """Workers that play one episode after the other; they join and leave as limits move."""

    def __init__(
        self,
        play_next: Callable[[], Awaitable[bool]],
        *,
        most: int,
        gates: Sequence[Gate] = (),
        resized: Callable[[int], object] = lambda _: None,
    ) -> None:
        """`play_next` says whether there was one; `resized` is told how many workers there may be.

        Without gates there are `most` workers throughout.
        """
        self._play_next = play_next
        self._most = most
        self._gates = gates
        self._resized = resized
        self._size = 0
        self._over = False
        self._moved = asyncio.Event()

    @property
    def wanted(self) -> int:
        """Workers that there may be now."""
        if not self._gates:
            return self._most
        return min(self._most, sum(gate.limit for gate in self._gates))

    async def work(self) -> None:
        """Play until there are no more episodes; what a worker raises ends all of them."""
        for gate in self._gates:
            gate.moved = self._note
        if self._gates:
            self._resized(self.wanted)
        async with asyncio.TaskGroup() as group:
            while not self._over:
                for _ in range(self.wanted - self._size):
                    self._size += 1
                    group.create_task(self._worker())
                self._moved.clear()
                await self._moved.wait()

    def _note(self) -> None:
        self._resized(self.wanted)
        self._moved.set()

    async def _worker(self) -> None:
        while self._size <= self.wanted:
            if not await self._play_next():
                self._over = True
                self._moved.set()
                break
        self._size -= 1
