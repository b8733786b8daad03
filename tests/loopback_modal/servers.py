"""Containers of servers: scaled by concurrent requests, checked by their port, drained gently."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from modal_proto import api_pb2 as pb

from tests.loopback_modal.containers import CannotStart, Containers
from tests.loopback_modal.plane import App, Container, ContainerState, Function, Plane

logger = logging.getLogger(__name__)

DEFAULT_MOST_CONTAINERS = 8
DEFAULT_IDLE_S = 60.0
_CHECK_S = 0.05
_HEALTH_CHECK_S = 0.5
_MOST_MISSED_CHECKS = 3
_AFTER_SIGTERM_S = 30.0
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.2, 10.0


@dataclass(slots=True, kw_only=True)
class Server:
    """What is known of one server beside its containers."""

    function: Function
    woken: bool = False
    demand_since: float = 0.0
    crashes: int = 0
    not_before: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    started: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Servers:
    """The autoscaler of all servers; `sweep` is its clock."""

    plane: Plane
    containers: Containers
    known: dict[str, Server] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _scaling: asyncio.Lock = field(default_factory=asyncio.Lock)

    def add(self, function: Function) -> Server:
        """The server of a function, known from now on."""
        return self.known.setdefault(function.id, Server(function=function))

    def routable(self, server: Server) -> list[Container]:
        """Containers that take requests: those of the newest deployment, while one is ready."""
        ready = [
            container
            for container in self.plane.live(server.function.id)
            if container.state is ContainerState.READY
        ]
        newest = [one for one in ready if one.generation == server.function.generation]
        return newest or ready

    def wake(self, server: Server) -> None:
        """There is demand: have a container."""
        server.woken = True

    def ready(self, container: Container) -> None:
        """The container's enter methods have returned: mind its port from now on."""
        self._spawn(self._mind(container))

    def lost(self, container: Container) -> None:
        """A container is gone; wait a little longer each time it was not meant to be."""
        server = self.known[container.function.id]
        if container.stopping:
            return
        server.crashes += 1
        backoff_s = min(_FIRST_BACKOFF_S * 2**server.crashes, _LONGEST_BACKOFF_S)
        server.not_before = time.monotonic() + backoff_s
        reason = container.failure.exception if container.failure is not None else ""
        server.failures.append(
            reason or f"container {container.id} exited with {container.exit_code}"
        )

    async def sweep(self) -> None:
        """Bring every server nearer to the number of containers that it should have."""
        async with self._scaling:
            for server in list(self.known.values()):
                await self._scale(server)

    async def stop(self, app: App) -> None:
        """Drain all containers of an app's servers."""
        for server in self.known.values():
            if server.function.app_id == app.id:
                server.woken = False
                for container in self.plane.live(server.function.id):
                    self.drain(container)

    def drain(self, container: Container) -> None:
        """No new requests; those under way get the grace period; then SIGTERM, 30 s, SIGKILL."""
        if container.state is not ContainerState.DRAINING:
            container.state, container.stopping = ContainerState.DRAINING, True
            self._spawn(self._leave(container))

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _scale(self, server: Server) -> None:
        function, now = server.function, time.monotonic()
        app = self.plane.apps[function.app_id]
        if app.stopped or app.version == 0:
            return
        live = [one for one in self.plane.live(function.id) if not one.stopping]
        current = [one for one in live if one.generation == function.generation]
        stale = [one for one in live if one.generation != function.generation]
        self._give_up_on_late(server, current, now)
        desired = self._desired(server, live)
        if self._settled(server, len(current), desired, now):
            for _ in range(desired - len(current)):
                await self._start(server)
        if stale and (desired == 0 or any(one.state is ContainerState.READY for one in current)):
            for container in stale:
                self.drain(container)
        self._shrink(server, current, desired, now)

    def _desired(self, server: Server, live: list[Container]) -> int:
        settings = server.function.settings
        busy = sum(container.in_flight for container in live)
        target = settings.target_concurrency_float
        wanted = math.ceil(busy / target) if target else min(busy, 1)
        if server.woken:
            wanted = max(wanted, 1)
        if wanted:
            wanted += settings.buffer_containers
        most = settings.max_containers or max(DEFAULT_MOST_CONTAINERS, settings.min_containers)
        return max(min(wanted, most), settings.min_containers)

    def _settled(self, server: Server, have: int, desired: int, now: float) -> bool:
        """True when more containers are wanted, and have been for the scale-up window."""
        if desired <= have or now < server.not_before:
            server.demand_since = 0.0 if desired <= have else server.demand_since
            return False
        server.demand_since = server.demand_since or now
        window_s = server.function.settings.scaleup_window if have else 0
        return now - server.demand_since >= window_s

    def _shrink(self, server: Server, current: list[Container], desired: int, now: float) -> None:
        """Drain who has been idle for the scale-down window, and at once who exceeds the most."""
        settings = server.function.settings
        idle_s = settings.scaledown_window or DEFAULT_IDLE_S
        ready = [one for one in current if one.state is ContainerState.READY]
        most = settings.max_containers
        for container in ready[most:] if most else []:
            self.drain(container)
        least = settings.min_containers
        idle = [one for one in ready if not one.in_flight and now - one.idle_since > idle_s]
        if idle and len(idle) == len(ready) == len(current):
            server.woken = False
            desired = least
        for container in idle[: max(0, len(current) - max(desired, least))]:
            self.drain(container)

    def _give_up_on_late(self, server: Server, current: list[Container], now: float) -> None:
        limit_s = server.function.definition.http_config.startup_timeout or 30
        for container in current:
            if container.state is ContainerState.STARTING and now - container.started > limit_s:
                what = (
                    f"nothing listens on its port {container.port} (in "
                    f"{self.containers.port_variable})"
                    if container.entered
                    else "its enter methods have not returned"
                )
                message = f"Server did not start within startup_timeout={limit_s}s: {what}"
                container.failure = pb.GenericResult(
                    status=pb.GenericResult.GENERIC_STATUS_INIT_FAILURE, exception=message
                )
                logger.warning("container %s: %s", container.id, message)
                self.containers.kill(container)

    async def _start(self, server: Server) -> None:
        try:
            await self.containers.start(server.function)
            server.started += 1
        except CannotStart as error:
            server.not_before = time.monotonic() + _LONGEST_BACKOFF_S
            server.failures.append(str(error))
            logger.warning("%s", error)

    async def _mind(self, container: Container) -> None:
        """Make it ready when its port listens; replace it when that stops."""
        while container.alive and not await _listens(container.port):  # noqa: ASYNC110  # a poll
            await asyncio.sleep(_CHECK_S)
        if container.state is ContainerState.STARTING:
            container.state = ContainerState.READY
            container.idle_since = time.monotonic()
            self.known[container.function.id].crashes = 0
        missed = 0
        while container.alive and missed < _MOST_MISSED_CHECKS:
            await asyncio.sleep(_HEALTH_CHECK_S)
            missed = 0 if await _listens(container.port) else missed + 1
        if container.alive and not container.stopping:
            logger.warning("container %s: its port %s is dead", container.id, container.port)
            self.containers.kill(container)

    async def _leave(self, container: Container) -> None:
        grace_s = container.function.definition.http_config.exit_grace_period
        deadline = time.monotonic() + grace_s
        while container.alive and container.in_flight:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(_CHECK_S)
        await self.containers.stop(container, _AFTER_SIGTERM_S)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
