"""Containers as processes: the wheel's own runtime, in a folder with what the app ships alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modal_proto import api_pb2 as pb

from tests.loopback_modal.images import environment, recipe, workdir
from tests.loopback_modal.logs import Logs
from tests.loopback_modal.plane import HOME, Container, ContainerState, Function, Plane
from tests.loopback_modal.registry import layout
from tests.loopback_modal.rpc import Listener
from tests.loopback_modal.shipped import Shipped, inside

_INIT = Path(__file__).parent / "init.py"
_LINE_LIMIT = 2**24
_PASSED_ON = ("TMPDIR",)


class CannotStart(Exception):
    """A container that the loopback cannot give what its function asks for."""


@dataclass(slots=True)
class Containers:
    """Starts, signals and buries containers.

    `listen` opens the control plane's own port for a container, `draining` is told that one is to
    leave, `ended` of each that is gone.
    """

    plane: Plane
    logs: Logs
    listen: Callable[[str], Awaitable[Listener]]
    python: Path
    isolated: bool
    port_variable: str
    extra_env: Mapping[str, str]
    draining: Callable[[], None]
    ended: Callable[[Container], Awaitable[None]]
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _shipped: Shipped = field(init=False)

    def __post_init__(self) -> None:
        self._shipped = Shipped(self.plane)

    async def start(self, function: Function) -> Container:
        """Start one more container of the function."""
        task_id = self.plane.new_id("ta")
        folder = self.plane.root / "containers" / task_id
        folder.mkdir(parents=True)
        self._link_volumes(function)
        lines = recipe(self.plane, function.definition.image_id)
        home = self._shipped.write(function, folder)
        port = free_port() if function.is_server else 0
        arguments = folder / "arguments"
        arguments.write_bytes(self._arguments(function, task_id).SerializeToString())
        listener = await self.listen(task_id)
        env = self._environment(function, lines, folder, port) | {
            "MODAL_SERVER_URL": listener.url,
            "MODAL_TASK_ID": task_id,
        }
        where = inside(folder, workdir(lines))
        where.mkdir(parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_INIT)),
            *(str(self.python), "-m", "modal._container_entrypoint"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            cwd=where if self.isolated else None,
            start_new_session=True,
            limit=_LINE_LIMIT,
        )
        container = Container(
            id=task_id,
            function=function,
            generation=self.plane.base_of(function).generation,
            folder=home.parent,
            process=process,
            port=port,
        )
        self.plane.containers[task_id] = container
        self._keep(self._watch(container, listener))
        return container

    async def stop(self, container: Container, grace_s: float = 10.0) -> None:
        """Ask it to leave, kill it when the grace is over; return when it is gone.

        A server gets SIGTERM. A function's container is interrupted, as Modal does it, but an idle
        one leaves by itself: its next question for inputs is answered with the kill switch.
        """
        if not container.alive:
            return
        idle = container.state is ContainerState.READY and not container.inputs
        container.state, container.stopping = ContainerState.DRAINING, True
        container.heard.set()
        self.draining()
        if container.function.is_server:
            self.signal(container, signal.SIGTERM)
        elif not idle:
            self.signal(container, signal.SIGINT)
        try:
            async with asyncio.timeout(grace_s):
                await container.process.wait()
        except TimeoutError:
            self.kill(container)
            await container.process.wait()

    def signal(self, container: Container, number: signal.Signals) -> None:
        """Send one signal to the container's runtime."""
        with contextlib.suppress(ProcessLookupError):
            container.process.send_signal(number)

    def kill(self, container: Container) -> None:
        """Every process of the container ends at once, as by kill -9."""
        assert container.process.stdin is not None
        container.process.stdin.close()

    async def close(self, grace_s: float) -> None:
        """Stop all; return when the last is gone."""
        alive = [container for container in self.plane.containers.values() if container.alive]
        await asyncio.gather(*(self.stop(container, grace_s) for container in alive))
        await asyncio.gather(*self._tasks)

    def _keep(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, container: Container, listener: Listener) -> None:
        """Read what the container writes until it is gone; then tell."""
        process = container.process
        assert process.stdout is not None
        assert process.stderr is not None
        await asyncio.gather(
            self._read(container, process.stdout, pb.FILE_DESCRIPTOR_STDOUT),
            self._read(container, process.stderr, pb.FILE_DESCRIPTOR_STDERR),
        )
        container.exit_code = await process.wait()
        container.state = ContainerState.ENDED
        container.heard.set()
        await listener.close()
        await self.ended(container)

    async def _read(
        self,
        container: Container,
        stream: asyncio.StreamReader,
        descriptor: pb.FileDescriptor.ValueType,
    ) -> None:
        with (container.folder / "log").open("ab", buffering=0) as file:
            while line := await stream.readline():
                file.write(line)
                self.logs.add(container, line.decode(errors="replace"), descriptor)

    def _arguments(self, function: Function, task_id: str) -> pb.ContainerArguments:
        app = self.plane.apps[function.app_id]
        definition = pb.Function()
        definition.CopyFrom(function.definition)
        definition.resources.ClearField("gpu_config")  # or the runtime would look for a GPU
        arguments = pb.ContainerArguments(
            task_id=task_id,
            function_id=function.id,
            app_id=app.id,
            function_def=definition,
            app_layout=layout(self.plane, app),
            serialized_params=function.serialized_params,
            environment_name="main",
        )
        if definition.checkpointing_enabled:
            arguments.function_def.is_checkpointing_function = True
            arguments.checkpoint_id = f"ch-{task_id}"
        return arguments

    def _environment(
        self, function: Function, lines: list[str], folder: Path, port: int
    ) -> dict[str, str]:
        """What the process sees: nothing of this process's own environment but a few words."""
        home = inside(folder, HOME)
        env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        env |= {"PATH": f"{self.python.parent}:{os.defpath}", "LANG": "C.UTF-8", "HOME": str(home)}
        if self.isolated:
            env["PYTHONPATH"] = str(home)
        shipped = environment(lines)
        for name, value in (shipped | self._secret_values(function)).items():
            env[name] = _relocated(value, folder)
        env |= self.extra_env
        if function.definition.checkpointing_enabled:
            env["MODAL_ENABLE_SNAP_RESTORE"] = "1"
            env["MODAL_RESTORE_STATE_PATH"] = str(folder / "restored.json")
        if port:
            env[self.port_variable] = str(port)
        return env | {
            "MODAL_IS_REMOTE": "1",
            "MODAL_ENVIRONMENT": "main",
            "MODAL_IMAGE_ID": function.definition.image_id,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(folder / "arguments"),
            "MODAL_CONFIG_PATH": str(folder / "no-config"),
        }

    def _secret_values(self, function: Function) -> dict[str, str]:
        values: dict[str, str] = {}
        for secret_id in function.definition.secret_ids:
            values |= self.plane.secrets[secret_id].values
        return values

    def _link_volumes(self, function: Function) -> None:
        """Make each mount path a link to the folder that backs its volume."""
        for mount in function.definition.volume_mounts:
            volume, path = self.plane.volumes[mount.volume_id], Path(mount.mount_path)
            if not path.is_relative_to(self.plane.root):
                raise CannotStart(
                    f"volume '{volume.name}' is mounted at {path}: the loopback mounts below "
                    f"{self.plane.root} only. Configure the mount points, for example below "
                    f"{self.plane.root / 'mnt'}"
                )
            folder = volume.folder / mount.sub_path
            folder.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink() and path.resolve() == folder.resolve():
                continue
            if path.is_symlink() or path.exists():
                raise CannotStart(
                    f"{path} is already {path.resolve()} and cannot be volume '{volume.name}' too: "
                    "all containers share this machine's paths. Mount each volume at its own path"
                )
            path.symlink_to(folder)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _relocated(value: str, folder: Path) -> str:
    """A value of the image's environment with the container's home where it is here."""
    parts = value.split(":")
    home = str(HOME)
    moved = [
        str(folder) + part if part == home or part.startswith(f"{home}/") else part
        for part in parts
    ]
    return ":".join(moved)
