"""A pool of the containers of a Modal server: they come and go as Modal decides.

Each container is a gateway of ours around one engine, reached through the server's one URL with a
header that names it. Modal starts the first one when a request finds none, and answers that request
with 503 at once: it is the gateway in front that holds requests meanwhile.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from serve.errors import ConfigError
from serve.pool.base import Pool
from serve.pool.discovery import Container, Discovery, DiscoveryFailed
from serve.pool.health import Health, http_probe
from serve.pool.replicas import Replica, ReplicaState

logger = logging.getLogger(__name__)

AFFINITY: Final = ("Modal-Session-ID", "Modal-Routing-Affinity-Key")
"""Both names that Modal has given to the header by which it keeps a session on one container."""
UPSTREAM: Final = "modal-flash-upstream"
"""Names the container that a request through the server's URL is for."""
WHOLE: Final = "server"
"""The id of the one replica that stands for all containers where they cannot be listed."""

_ASK_TIMEOUT_S = 20.0
_WAKE_EVERY_S = 5.0
_LISTS_IN_VAIN = 3
"""So many failed lists in a row, without a good one before, and Modal is left to choose."""

T = TypeVar("T")


class ModalPool(Pool):
    """One replica for each container that `discovery` lists; `health` are the options of `Health`.

    `headers` go with every request to them. A container that is not listed any more gets no new
    requests, and has `drain_s` for those it has.
    """

    def __init__(
        self,
        discovery: Discovery,
        *,
        tls: ssl.SSLContext | None = None,
        headers: Sequence[tuple[str, str]] = (),
        poll_s: float = 2.0,
        quiet_after_s: float = 20.0,
        drain_s: float = 600.0,
        **health: Any,  # noqa: ANN401  # Health's
    ) -> None:
        super().__init__()
        self._discovery = discovery
        self._tls = tls
        self._headers = tuple(headers)
        self._poll_s = poll_s
        self._quiet_after_s = quiet_after_s
        self._drain_s = drain_s
        self._health = Health(self, **{"probe": self._probe, **health})
        self._url = ""
        self._desired: int | None = None
        self._was_listed = False
        self._failures = 0
        self._leaving: dict[Replica, float] = {}
        """Those that are not listed any more -> since when."""
        self._woken_at_s = float("-inf")
        self._waking: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._farewells: set[asyncio.Task[None]] = set()

    @property
    def desired(self) -> int | None:
        """The fewest containers that were asked for; None while that is Modal's own business."""
        return self._desired

    @property
    def can_wake(self) -> bool:
        """Always: a request is all it takes."""
        return True

    @property
    def knows_all(self) -> bool:
        """Whether a name that no replica has does not exist: all containers serve the same."""
        return True

    @property
    def is_quiet(self) -> bool:
        """Whether nothing was asked for so long that Modal may stop what is there.

        Our own questions would look like use, and keep containers up that cost by the second.
        """
        return self.demand().idle_s > self._quiet_after_s

    async def start(self) -> None:
        """Begin to look for containers."""
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Look for them no more; they are Modal's."""
        tasks = [task for task in (self._task, self._waking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._farewells, return_exceptions=True)
        await self._health.stop()

    def wake(self) -> None:
        """Send the server a request that it can only refuse, so that it starts a container."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._woken_at_s >= _WAKE_EVERY_S:
            self._woken_at_s = now_s
            self._waking = asyncio.create_task(self._wake())

    def failed(self, replica: Replica, reason: str) -> None:
        """Take a replica out until a probe succeeds."""
        self._health.failed(replica, reason)

    async def scale(self, count: int) -> None:
        """Keep at least so many containers from now on, until the next deployment."""
        try:
            await _bounded(self._discovery.scale(count))
        except DiscoveryFailed as error:
            raise ConfigError(f"cannot scale the server to {count}: {error}") from error
        self._desired = count

    async def look(self) -> None:
        """Bring the replicas to what is listed now; raise DiscoveryFailed."""
        if not self._url:
            self._url = await _bounded(self._discovery.url())
        try:
            listed = await _bounded(self._discovery.containers())
        except DiscoveryFailed as error:
            self._not_listed(error)
            return
        if self._failures >= _LISTS_IN_VAIN:
            logger.info("the containers are listed again: there are %d", len(listed))
        self._failures, self._was_listed = 0, True
        for container in listed:
            self._appear(container.id, container)
        self._retain({container.id for container in listed})

    def _not_listed(self, error: DiscoveryFailed) -> None:
        """Keep the last list, or let Modal choose if there never was one."""
        self._failures += 1
        if self._was_listed:
            logger.warning("the containers cannot be listed, so they stay as they were: %s", error)
            return
        if self._failures != (1 if error.is_final else _LISTS_IN_VAIN):
            return
        logger.warning(
            "the containers cannot be listed: %s. Modal itself spreads requests over them, and all "
            "of them together count as one replica",
            error,
        )
        self._appear(WHOLE, None)

    async def _follow(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except DiscoveryFailed as error:
                logger.warning("the server is not found: %s", error)
            self._let_go()
            if self.demand().held and not any(replica.is_ready for replica in self.replicas):
                self.wake()  # the one before may have been lost
            await asyncio.sleep(self._poll_s)

    def _appear(self, id_: str, container: Container | None) -> None:
        replica = next((each for each in self.replicas if each.id == id_), None)
        if replica is not None:
            if self._leaving.pop(replica, None) is not None:
                replica.state = ReplicaState.DOWN  # until a probe says otherwise
                self.tell(replica)
            return
        parts = urlsplit(self._url)
        is_tls = parts.scheme == "https"
        named = [] if container is None else [(UPSTREAM, f"{container.host}:{container.port}")]
        replica = Replica(
            id_,
            parts.hostname or "",
            parts.port or (443 if is_tls else 80),
            tls=self._tls if is_tls else None,
            headers=[*self._headers, *named],
            affinity=AFFINITY,
            labels=True,
        )
        self.replicas.append(replica)
        self._health.watch(replica)
        logger.info("%s appeared", id_)

    def _retain(self, ids: set[str]) -> None:
        """Send those nothing more that are not listed."""
        for replica in self.replicas:
            if replica.id not in ids and replica not in self._leaving:
                self._leaving[replica] = asyncio.get_running_loop().time()
                replica.state = ReplicaState.DRAINING
                replica.reason = "Modal does not list it any more"
                logger.info("%s is gone, or about to go", replica.id)
                self.tell(replica)

    def _let_go(self) -> None:
        """Forget those that have nothing left to do, or had the time for it."""
        now_s = asyncio.get_running_loop().time()
        for replica, since_s in list(self._leaving.items()):
            is_late = now_s - since_s > self._drain_s
            if replica.in_flight and not is_late:
                continue
            del self._leaving[replica]
            self.replicas.remove(replica)
            replica.state = ReplicaState.STOPPED
            farewell = asyncio.create_task(self._health.forget(replica))
            self._farewells.add(farewell)
            farewell.add_done_callback(self._farewells.discard)
            self.tell(replica)
            for exchange in list(replica.active):
                exchange.replica_lost("its container is gone")

    async def _probe(self, replica: Replica, timeout_s: float) -> str | None:
        # One that is to stop may refuse all that is new, and yet finish what it has.
        is_spared = replica.state is ReplicaState.DRAINING or (self.is_quiet and replica.is_ready)
        return None if is_spared else await http_probe(replica, timeout_s)

    async def _wake(self) -> None:
        with contextlib.suppress(DiscoveryFailed):
            if not self._url:
                self._url = await _bounded(self._discovery.url())
            await _bounded(self._discovery.wake())
        logger.info("asked for a container")


async def _bounded(asked: Awaitable[T]) -> T:
    """Return what Modal says, in time; raise DiscoveryFailed."""
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            return await asked
    except TimeoutError:
        raise DiscoveryFailed(f"no answer within {_ASK_TIMEOUT_S:g} s") from None
