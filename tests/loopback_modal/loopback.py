"""LoopbackModal: the public surface. A control plane in a thread, seen through frozen records."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from grpclib import Status

from tests.loopback_modal import views
from tests.loopback_modal.control import ControlPlane, Options
from tests.loopback_modal.plane import Container
from tests.loopback_modal.rpc import Call, Fault

Result = TypeVar("Result")

_PROJECT = Path(__file__).resolve().parents[2]
_CLOSE_GRACE_S = 8.0


class LoopbackModal:
    """A Modal without an account, on 127.0.0.1, for the time of a `with` block.

    `root` is an empty folder for volumes, containers and logs; volumes are mounted below it only.
    `secrets` exist beforehand. A server's container is told its port in `port_variable`.
    `container_env` is added to every container; `rates` is what `Workspace.billing.rates()` gives,
    which is refused without it; `isolated=False` lets containers see this checkout.
    """

    proxy_key = "wk-loopback.ws-loopback"

    def __init__(
        self,
        root: Path,
        *,
        secrets: Mapping[str, Mapping[str, str]] | None = None,
        container_env: Mapping[str, str] | None = None,
        rates: Mapping[str, str] | None = None,
        port_variable: str = "PALAESTRA_PORT",
        isolated: bool = True,
    ) -> None:
        self.root = root.resolve()
        key, _, secret = self.proxy_key.partition(".")
        self._options = Options(
            root=self.root,
            secrets=secrets or {},
            proxy_tokens={key: secret},
            container_env=container_env or {},
            rates=rates,
            port_variable=port_variable,
            isolated=isolated,
            python=Path(sys.executable),
        )

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True, exist_ok=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="loopback-modal", daemon=True
        )
        self._thread.start()
        try:
            self._control = self._run(self._open())
        except BaseException:
            self._end_thread()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._run(self._control.close(_CLOSE_GRACE_S))
        finally:
            self._end_thread()

    @property
    def url(self) -> str:
        """MODAL_SERVER_URL."""
        return self._control.listener.url

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment for the CLI and for programs that use the SDK."""
        return {
            **os.environ,
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": "ak-loopback",
            "MODAL_TOKEN_SECRET": "as-loopback",
            "MODAL_CONFIG_PATH": str(self.root / "no-config"),
            "MODAL_ENVIRONMENT": "main",
            "PYTHONPATH": str(_PROJECT),
            "NO_COLOR": "1",
            "COLUMNS": "200",
            **(extra or {}),
        }

    def cli(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = 180.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run the real `modal` with these arguments, in the project's folder by default."""
        return self.python("-m", "modal", *args, env=env, cwd=cwd, timeout_s=timeout_s)

    def python(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = 180.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run this venv's python as a client of the control plane."""
        return subprocess.run(
            [sys.executable, *args],
            env=self.env(env),
            cwd=cwd or _PROJECT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    @property
    def calls(self) -> list[Call]:
        """Every call that arrived so far."""
        return list(self._control.plane.log.calls)

    def called(self, name: str, *, container: str = "") -> list[Any]:
        """The messages of all calls of a name, of one container's if told."""
        return [
            call.request
            for call in self.calls
            if call.name == name and container in {"", call.container}
        ]

    def fail(
        self,
        name: str,
        *,
        status: Status = Status.FAILED_PRECONDITION,
        message: str = "there are open files preventing the operation",
        times: int = 1,
        container: str = "",
    ) -> None:
        """Let the next calls of that name fail, by default as a reload with open files does."""
        fault = Fault(name=name, status=status, message=message, times=times, container=container)
        self._control.plane.log.faults.append(fault)

    def heal(self) -> None:
        """Let no further call fail."""
        self._control.plane.log.faults.clear()

    def app(self, name: str) -> views.AppView:
        """The deployed app of that name, else the last one of it."""
        return self._ask(lambda: self._app(name))

    @property
    def apps(self) -> list[views.AppView]:
        """All apps, stopped ones too, oldest first."""
        plane = self._control.plane
        return self._ask(lambda: [views.app_view(plane, app) for app in plane.apps.values()])

    def containers(
        self, app: str = "", function: str = "", *, alive: bool = True
    ) -> list[views.ContainerView]:
        """Containers, oldest first: those that run, or with `alive=False` all there ever were."""
        found = self._ask(
            lambda: [
                views.container_view(self._control.plane, container)
                for container in self._control.plane.containers.values()
                if container.alive or not alive
            ]
        )
        return [
            one
            for one in found
            if app in {"", one.app}
            and function in {"", one.function, one.function.removesuffix(".*")}
        ]

    def function_calls(self, app: str = "", function: str = "") -> list[views.CallView]:
        """Every call of a function, oldest first, with the hardware it asked for."""
        work, plane = self._control.work, self._control.plane
        found = self._ask(lambda: [views.call_view(plane, call) for call in work.calls.values()])
        return [one for one in found if app in {"", one.app} and function in {"", one.function}]

    def kill(self, container: views.ContainerView | str) -> None:
        """End every process of a container as by kill -9; its inputs are run again elsewhere."""
        found = self._container(container)
        self._ask(lambda: self._control.containers.kill(found))

    def drain(self, container: views.ContainerView | str) -> None:
        """Let a server's container finish what it has and leave, as when Modal scales down."""
        found = self._container(container)
        self._ask(lambda: self._control.servers.drain(found))

    def preempt(self, container: views.ContainerView | str) -> None:
        """Take a container's machine away as Modal does: SIGINT, 30 s to leave, then the rerun.

        A server gets SIGTERM at once, without the grace period for its requests.
        """
        found = self._container(container)
        self._ask(lambda: self._control.preempt(found))

    def log(self, *, app: str = "", container: views.ContainerView | str = "") -> str:
        """What an app or a container wrote so far, standard output and error together."""
        name = container.id if isinstance(container, views.ContainerView) else container
        app_id = self.app(app).id if app else ""
        return self._ask(lambda: self._control.logs.text(app_id=app_id, container=name))

    def server_failures(self, app: str, server: str) -> list[str]:
        """Why containers of a server ended that were not meant to, oldest first."""
        function_id = self.app(app).servers[server].id
        return self._ask(lambda: list(self._control.servers.known[function_id].failures))

    def volume(self, name: str) -> Path:
        """The folder that backs a volume, which is made if there is none."""
        return self._ask(lambda: self._control.volumes.put(name).folder)

    def wait_for(
        self, true: Callable[[], Result], *, timeout_s: float = 120.0, what: str = ""
    ) -> Result:
        """Return what the function returns as soon as that is truthy; TimeoutError names `what`."""
        deadline = time.monotonic() + timeout_s
        while not (found := true()):
            if time.monotonic() > deadline:
                ended = [one for one in self.containers(alive=False) if one.failure]
                raise TimeoutError(
                    f"not within {timeout_s} s: {what or true}. Containers: {self.containers()}; "
                    f"failures: {[one.failure for one in ended]}; log: {self.log()[-3000:]}"
                )
            time.sleep(0.02)
        return found

    def wait_ready(
        self, app: str, server: str, *, count: int = 1, timeout_s: float = 180.0
    ) -> Sequence[views.ContainerView]:
        """Wait until so many containers of a server take requests."""

        def ready() -> list[views.ContainerView]:
            found = [one for one in self.containers(app, server) if one.state == "ready"]
            return found if len(found) >= count else []

        return self.wait_for(ready, timeout_s=timeout_s, what=f"{count} ready of {app}.{server}")

    async def _open(self) -> ControlPlane:
        control = ControlPlane(self._options)
        await control.open()
        return control

    def _app(self, name: str) -> views.AppView:
        plane = self._control.plane
        app = plane.app_named(name) or next(
            (one for one in reversed(plane.apps.values()) if one.name == name), None
        )
        if app is None:
            known = sorted({one.name for one in plane.apps.values()})
            raise KeyError(f"no app {name!r}; there are {known}")
        return views.app_view(plane, app)

    def _container(self, container: views.ContainerView | str) -> Container:
        name = container if isinstance(container, str) else container.id
        return self._control.plane.containers[name]

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _ask(self, question: Callable[[], Result]) -> Result:
        """Evaluate in the control plane's thread."""

        async def answer() -> Result:
            return question()

        return self._run(answer())
