"""What the control plane remembers: apps, functions, containers, images, mounts, secrets, volumes.

State only: the services change it, the views read it. Everything here is used by the thread of the
control plane's event loop alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath

from modal_proto import api_pb2 as pb

from tests.loopback_modal.rpc import CallLog

BUILDER_VERSION = "2025.06"
HOME = PurePosixPath("/") / "root"  # where Modal puts sources, and a container's home and workdir


class ContainerState(StrEnum):
    """Where a container is in its life."""

    STARTING = "starting"
    """Its process runs, its `enter` methods may not have returned, its port may not listen."""
    READY = "ready"
    """It takes inputs or requests."""
    DRAINING = "draining"
    """It gets nothing new and finishes what it has."""
    ENDED = "ended"
    """Its process is gone."""


@dataclass(slots=True, kw_only=True)
class App:
    """One app: ephemeral (`modal run`), detached or deployed."""

    id: str
    name: str
    state: pb.AppState.ValueType
    tags: dict[str, str] = field(default_factory=dict)
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)
    version: int = 0
    created_at: float = field(default_factory=time.time)
    stopped_at: float = 0.0
    logs_done: bool = False

    @property
    def stopped(self) -> bool:
        """True when nothing of this app may run any more."""
        return self.state == pb.APP_STATE_STOPPED

    @property
    def deployed(self) -> bool:
        """True for what outlives the client that made it."""
        return self.state == pb.APP_STATE_DEPLOYED


@dataclass(slots=True, kw_only=True)
class Function:
    """One function, class service, server, or a variant of one by `with_options` or parameters."""

    id: str
    app_id: str
    name: str
    definition: pb.Function = field(default_factory=pb.Function)
    gpus: list[str] = field(default_factory=list)
    metadata: pb.FunctionHandleMetadata = field(default_factory=pb.FunctionHandleMetadata)
    settings: pb.AutoscalerSettings = field(default_factory=pb.AutoscalerSettings)
    base_id: str = ""
    serialized_params: bytes = b""
    generation: int = 0
    url: str = ""

    @property
    def is_server(self) -> bool:
        """True for a class under `@app.server`."""
        return self.definition.is_server


@dataclass(slots=True, kw_only=True)
class Container:
    """One container and what it is busy with."""

    id: str
    function: Function
    generation: int
    folder: Path
    process: asyncio.subprocess.Process
    port: int = 0
    state: ContainerState = ContainerState.STARTING
    enqueued_at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)
    idle_since: float = field(default_factory=time.monotonic)
    in_flight: int = 0
    inputs: set[str] = field(default_factory=set)
    cancelled: list[str] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    entered: bool = False
    stopping: bool = False
    failure: pb.GenericResult | None = None
    exit_code: int | None = None

    @property
    def alive(self) -> bool:
        """True until its process has ended."""
        return self.state is not ContainerState.ENDED


@dataclass(slots=True, kw_only=True)
class Secret:
    """A secret and its values."""

    id: str
    name: str
    values: dict[str, str]
    required_keys: list[str] = field(default_factory=list)
    created_at: float = field(default_factory=time.time)


@dataclass(slots=True, kw_only=True)
class Volume:
    """A volume and the folder that backs it."""

    id: str
    name: str
    version: pb.VolumeFsVersion.ValueType
    folder: Path
    created_at: float = field(default_factory=time.time)


@dataclass(slots=True)
class Plane:
    """The whole state of one control plane."""

    root: Path
    log: CallLog = field(default_factory=CallLog)
    apps: dict[str, App] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    images: dict[str, pb.Image] = field(default_factory=dict)
    mounts: dict[str, dict[str, str]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    named: dict[tuple[str, str], str] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)

    def new_id(self, prefix: str) -> str:
        """A fresh id such as `fu-3`."""
        self._counts[prefix] += 1
        return f"{prefix}-{self._counts[prefix]}"

    def id_of(self, kind: str, prefix: str, name: str) -> str:
        """The id of a named object; a fresh one at the name's first use, and without a name."""
        if not name:
            return self.new_id(prefix)
        if (kind, name) not in self.named:
            self.named[kind, name] = self.new_id(prefix)
        return self.named[kind, name]

    def app_named(self, name: str) -> App | None:
        """The deployed app of that name, or the last one that has not stopped."""
        found = [app for app in self.apps.values() if app.name == name and not app.stopped]
        deployed = [app for app in found if app.deployed]
        return next(reversed(deployed or found), None)

    def function_of(self, app: App, tag: str) -> Function | None:
        """A published function, class service (`Name.*`) or server of an app."""
        for wanted in (tag, f"{tag}.*"):
            if wanted in app.function_ids:
                return self.functions[app.function_ids[wanted]]
        return None

    def live(self, function_id: str) -> list[Container]:
        """The function's containers whose processes have not ended, oldest first."""
        return [
            container
            for container in self.containers.values()
            if container.function.id == function_id and container.alive
        ]

    def base_of(self, function: Function) -> Function:
        """The function that a variant was made from, or itself."""
        return self.functions[function.base_id] if function.base_id else function
