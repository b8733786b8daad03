"""The port: an elastic set of replicas. Knows no process, no Modal, and no HTTP."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from serve.errors import EngineDied
from serve.pool.replicas import Replica

Prepare = Callable[[Replica], Awaitable[None]]
"""Brings a healthy replica to the weights it shall serve and fills in `served` and `current`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the gateway has to do, at one moment: the autoscaling signal."""

    in_flight: int = 0
    """Requests on replicas."""
    held: int = 0
    """Requests that wait for a replica."""
    oldest_held_s: float = 0.0
    idle_s: float = 0.0
    """How long there has been nothing to do."""


class Pool(ABC):
    """An elastic set of replicas. Entering starts it, leaving stops all that it started.

    `replicas` is the live table: the pool changes it in place, and routing reads it. After each
    change of a replica's state the pool calls every function in `listeners` with it.
    """

    fatal: asyncio.Future[EngineDied]
    """Done, from entering on, when no replica can ever be ready; its result says why."""

    def __init__(self) -> None:
        self.replicas: list[Replica] = []
        self.listeners: list[Callable[[Replica], None]] = []
        self.demand: Callable[[], Demand] = Demand
        """Asked for the signal; the gateway puts its own here."""
        self.prepare: Prepare | None = None
        """Awaited with a healthy replica in state SYNCING before it becomes READY."""

    @abstractmethod
    async def start(self) -> None:
        """Begin to bring replicas up; return without waiting for them."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop everything that was started; harmless the second time."""

    @abstractmethod
    def wake(self) -> None:
        """Be told that a request waits and no replica is ready; cheap, and harmless to repeat."""

    @abstractmethod
    def failed(self, replica: Replica, reason: str) -> None:
        """Be told of a refused or lost connection to a replica; takes it out until it is probed."""

    def renew(self, replica: Replica, reason: str) -> None:
        """Be told of an engine that is out, and that only a new one in its place can mend.

        Nothing happens where engines are not the pool's to start.
        """
        del replica, reason

    @abstractmethod
    async def scale(self, count: int) -> None:
        """Want so many replicas from now on; raise ConfigError where the set is fixed."""

    @property
    def desired(self) -> int | None:
        """How many replicas there shall be; None where the set is fixed."""
        return None

    @property
    def can_wake(self) -> bool:
        """Whether a ready replica may come without anybody's doing: then requests are held."""
        return bool(self.replicas)

    @property
    def knows_all(self) -> bool:
        """Whether each replica has said what it serves: what nobody has then does not exist."""
        return all(replica.served for replica in self.replicas)

    @property
    def is_quiet(self) -> bool:
        """Whether replicas that are ready had better not be asked how they are."""
        return False

    def tell(self, replica: Replica) -> None:
        """Tell the listeners that this replica changed."""
        for listener in list(self.listeners):  # one of them may leave when it hears this
            listener(replica)

    async def __aenter__(self) -> Self:
        self.fatal = asyncio.get_running_loop().create_future()
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()
