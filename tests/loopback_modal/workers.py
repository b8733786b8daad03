"""Containers of functions: as many as the queue wants, none longer than needed."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass, field

from modal_proto import api_pb2 as pb

from tests.loopback_modal.containers import CannotStart, Containers
from tests.loopback_modal.inputs import MOST_LOSSES, Input, Work, failure
from tests.loopback_modal.plane import App, Container, ContainerState, Function, Plane

logger = logging.getLogger(__name__)

DEFAULT_MOST_CONTAINERS = 4  # Modal's own default is its quota; this is one small machine
DEFAULT_IDLE_S = 60.0
MOST_CRASHES = 3  # Modal retries a crash loop of a deployed app for ever; a test wants an answer

_STATUS = pb.GenericResult


@dataclass(slots=True)
class Workers:
    """Starts containers for queued inputs, reruns what a lost container had, stops the idle."""

    plane: Plane
    work: Work
    containers: Containers
    _crashes: dict[str, int] = field(default_factory=dict)
    _scaling: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def wanted(self, function_id: str) -> None:
        """See to it soon that the function has the containers that it needs."""
        task = asyncio.ensure_future(self._scale(self.plane.functions[function_id]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def published(self, app: App) -> None:
        """Start the containers that are to be there always."""
        for function_id in app.function_ids.values():
            if not self.plane.functions[function_id].is_server:
                self.wanted(function_id)

    def timed_out(self, item: Input) -> None:
        """An input ran for longer than its function may: its container is ended."""
        container = self.plane.containers.get(item.container)
        limit_s = item.call.function.definition.timeout_secs
        message = f"Task's current input in {item.id} hit its timeout of {limit_s}s"
        self.work.settle(item, failure(_STATUS.GENERIC_STATUS_TIMEOUT, message))
        if container is not None:
            self.containers.kill(container)

    def lost(self, container: Container) -> None:
        """A container is gone: what it ran is run again, unless there is a reason not to."""
        function_id = container.function.id
        for input_id in list(container.inputs):
            item = self.work.inputs[input_id]
            item.losses += 1
            if item.losses > MOST_LOSSES:
                message = f"Input lost {item.losses} containers, the last exited with "
                self.work.settle(item, _broken(f"{message}{container.exit_code}"))
            else:
                self.work.requeue(item)
        if container.entered:
            self._crashes[function_id] = 0
        elif not container.stopping:
            self._crashed(container)
        self.wanted(function_id)

    def sweep(self) -> None:
        """Stop containers that have been idle for too long, or have not come up in time."""
        now = time.monotonic()
        for container in list(self.plane.containers.values()):
            function = container.function
            if not container.alive or function.is_server:
                continue
            idle_s = function.settings.scaledown_window or DEFAULT_IDLE_S
            if container.state is ContainerState.READY and not container.inputs:
                spare = len(self.plane.live(function.id)) > self._least(function)
                if spare and now - container.idle_since > idle_s:
                    self._drain(container)
            limit_s = function.definition.startup_timeout_secs or 300
            if not container.entered and now - container.started > limit_s:
                message = f"Runner has been initializing for too long: {limit_s}s"
                container.failure = failure(_STATUS.GENERIC_STATUS_INIT_FAILURE, message)
                self.containers.kill(container)

    async def stop(self, app: App) -> None:
        """End all that runs for an app, and what is queued."""
        mine = [item for item in self.work.inputs.values() if item.call.function.app_id == app.id]
        for item in [item for item in mine if not item.done]:
            message = "The App was stopped"
            self.work.finish(item, failure(_STATUS.GENERIC_STATUS_TERMINATED, message))
        for container in list(self.plane.containers.values()):
            if container.alive and container.function.app_id == app.id:
                self._drain(container)

    async def close(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _drain(self, container: Container) -> None:
        """Let an idle container leave by itself; ask a busy one to."""
        task = asyncio.ensure_future(self.containers.stop(container))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _crashed(self, container: Container) -> None:
        """A container ended before it could take an input."""
        function_id = container.function.id
        self._crashes[function_id] = self._crashes.get(function_id, 0) + 1
        reason = container.failure
        if reason is None and self._crashes[function_id] >= MOST_CRASHES:
            log = self.containers.logs.text(container=container.id)
            reason = _broken(
                f"{MOST_CRASHES} containers in a row exited before they were ready, the last with "
                f"{container.exit_code}; it wrote: {log[-2000:]}"
            )
        if reason is not None:
            for item in list(self.work.queue(function_id)):
                self.work.finish(item, reason, pb.DATA_FORMAT_PICKLE)

    async def _scale(self, function: Function) -> None:
        app = self.plane.apps[function.app_id]
        async with self._scaling:
            missing = self._desired(function) - len(self._usable(function))
            for _ in range(0 if app.stopped else missing):
                try:
                    await self.containers.start(function)
                except CannotStart as error:
                    for item in list(self.work.queue(function.id)):
                        self.work.finish(item, _broken(str(error)))
                    return

    def _usable(self, function: Function) -> list[Container]:
        return [
            container
            for container in self.plane.live(function.id)
            if container.state is not ContainerState.DRAINING
        ]

    def _desired(self, function: Function) -> int:
        definition = function.definition
        each = max(1, definition.target_concurrent_inputs, definition.max_concurrent_inputs)
        each = max(each, definition.batch_max_size)
        running = sum(len(container.inputs) for container in self._usable(function))
        busy = math.ceil((len(self.work.queue(function.id)) + running) / each)
        most = function.settings.max_containers or DEFAULT_MOST_CONTAINERS
        return max(min(busy, most), self._least(function))

    def _least(self, function: Function) -> int:
        app = self.plane.apps[function.app_id]
        if not app.deployed or function.base_id or function.id not in app.function_ids.values():
            return 0
        return function.settings.min_containers


def _broken(message: str) -> pb.GenericResult:
    return failure(_STATUS.GENERIC_STATUS_INTERNAL_FAILURE, message)
