"""The control plane as one event loop's worth of objects: built, listening, swept, closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.loopback_modal.billing import Billing
from tests.loopback_modal.block_store import BlockStore
from tests.loopback_modal.calls import Calls, Lifecycle
from tests.loopback_modal.containers import Containers
from tests.loopback_modal.definitions import Definitions
from tests.loopback_modal.handshake import Handshake
from tests.loopback_modal.images import Images
from tests.loopback_modal.ingress import Ingress
from tests.loopback_modal.inputs import Input, Work
from tests.loopback_modal.logs import Logs
from tests.loopback_modal.plane import App, Container, Function, Plane
from tests.loopback_modal.python_view import make_view
from tests.loopback_modal.queues import Dicts, Queues
from tests.loopback_modal.registry import Apps
from tests.loopback_modal.resources import Secrets, Volumes
from tests.loopback_modal.rpc import Listener, Router
from tests.loopback_modal.server_calls import ServerCalls
from tests.loopback_modal.servers import Servers
from tests.loopback_modal.volume_files import VolumeFiles
from tests.loopback_modal.workers import Workers

logger = logging.getLogger(__name__)

PREEMPTION_GRACE_S = 30.0
_SWEEP_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a loopback is made with; see LoopbackModal."""

    root: Path
    secrets: Mapping[str, Mapping[str, str]]
    proxy_tokens: Mapping[str, str]
    container_env: Mapping[str, str]
    rates: Mapping[str, str] | None
    port_variable: str
    isolated: bool
    python: Path


class ControlPlane:
    """All services around one Plane."""

    def __init__(self, options: Options) -> None:
        self.plane = Plane(root=options.root)
        self.logs = Logs(self.plane, calls_of=self._calls_of)
        self.containers = Containers(
            plane=self.plane,
            logs=self.logs,
            listen=self._listen,
            python=make_view(options.root / "python") if options.isolated else options.python,
            isolated=options.isolated,
            port_variable=options.port_variable,
            extra_env=options.container_env,
            draining=self._draining,
            ended=self._ended,
        )
        self.work = Work(self.plane, timed_out=self._timed_out)
        self.workers = Workers(self.plane, self.work, self.containers)
        self.servers = Servers(self.plane, self.containers)
        self.ingress = Ingress(self.servers, options.proxy_tokens)
        self.store = BlockStore(self.plane)
        self.volumes = Volumes(self.plane)
        self.secrets = Secrets(self.plane)
        for name, values in options.secrets.items():
            self.secrets.put(name, values)
        self._rates = options.rates
        self.services = self._services()
        self.listener = Listener(Router(self.services, self.plane.log))
        self._sweeper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen, and begin to sweep."""
        await self.store.open()
        await self.listener.open()
        self._sweeper = asyncio.ensure_future(self._sweep())

    async def close(self, grace_s: float) -> None:
        """End every container, then stop listening."""
        assert self._sweeper is not None
        self._sweeper.cancel()
        for app in self.plane.apps.values():
            app.logs_done = True
        await self.servers.close()
        await self.containers.close(grace_s)
        await self.workers.close()
        await self.ingress.close()
        await self.store.close()
        await self.listener.close()

    def preempt(self, container: Container) -> None:
        """The container's machine goes away."""
        self._later(self.containers.stop(container, PREEMPTION_GRACE_S))

    def _services(self) -> list[object]:
        return [
            Handshake(),
            Apps(self.plane, on_publish=self._published, on_stop=self._stopped),
            Definitions(self.plane, expose=self.ingress.expose, resettled=self._resettled),
            Images(self.plane),
            self.secrets,
            self.volumes,
            VolumeFiles(self.plane, self.store),
            self.store,
            Billing(self._rates),
            Dicts(self.plane),
            Queues(self.plane),
            self.logs,
            Calls(self.plane, self.work, wanted=self.workers.wanted, kill=self.containers.kill),
            ServerCalls(self.plane, self.servers),
            Lifecycle(self.plane, ready=self.servers.ready, stop=self._stop_container),
        ]

    async def _listen(self, container: str) -> Listener:
        listener = Listener(Router(self.services, self.plane.log, container))
        await listener.open()
        return listener

    async def _published(self, app: App) -> None:
        """A deployment stands: its functions are a new generation, whose containers replace."""
        for function_id in app.function_ids.values():
            self.plane.functions[function_id].generation += 1
        self.workers.published(app)

    def _calls_of(self, container: Container) -> frozenset[str]:
        return frozenset(self.work.inputs[name].call.id for name in container.inputs)

    def _draining(self) -> None:
        self.work.notify()

    def _timed_out(self, item: Input) -> None:
        self.workers.timed_out(item)

    async def _stopped(self, app: App) -> None:
        await self.servers.stop(app)
        await self.workers.stop(app)

    async def _resettled(self, function: Function) -> None:
        if not function.is_server:
            self.workers.wanted(function.id)

    def _stop_container(self, container: Container, graceful: bool) -> None:
        del graceful  # either way what it has is finished or run again
        if container.function.is_server:
            self.servers.drain(container)
        else:
            self._later(self.containers.stop(container))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ended(self, container: Container) -> None:
        if container.function.is_server:
            self.servers.lost(container)
        else:
            self.workers.lost(container)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            await _safely(self.workers.sweep)
            try:
                await self.servers.sweep()
            except Exception:
                # The sweep is a loop over all servers: one that fails must not end the others'.
                logger.exception("the sweep of servers failed")


async def _safely(sweep: Callable[[], None]) -> None:
    try:
        sweep()
    except Exception:
        # As above, for functions.
        logger.exception("the sweep of functions failed")
