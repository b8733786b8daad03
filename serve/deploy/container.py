"""What runs in a container: `serve up`, as on a laptop, between the container's enter and exit.

The life of one: `start` until it is ready, `wake` after a snapshot or instead of one, `stop`. Modal
is not known here: volumes come as functions that reload and commit.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from serve.config import child_environment
from serve.deploy import plan
from serve.deploy.config import ServingConfig, environment, port
from serve.deploy.kept import KeptState, adopt_admin_key
from serve.deploy.process import LogFiles, Process, Rounds
from serve.deploy.sections import GatewayAuth, Snapshot
from serve.errors import ContainerFailed, StateError, UnknownModel

_MARGIN_S = 5.0
"""Left of the start-up time, so that our reason arrives before Modal gives up without one."""
_STOP_S = 25.0
"""After SIGTERM a container has 30 s."""
_ASK_S = 10.0
_WAKE_S = 60.0
_WARMUPS = 3


class Container(ABC):
    """One container of a server. `reload` and `commit` are what its volumes can do, by name."""

    def __init__(
        self,
        config: ServingConfig,
        *,
        startup_timeout_s: float,
        reload: Mapping[str, Callable[[], None]] | None = None,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.port = port()
        self.startup_timeout_s = startup_timeout_s
        self.scratch = Path(tempfile.mkdtemp(prefix="palaestra-"))
        self.state = self.scratch / "state"
        self.rounds = Rounds(say)
        self._reload = dict(reload or {})
        self._give_up = give_up
        self._has_given_up = False
        self._process = Process(self._argv(), self._env(), say)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what `serve up` is told here."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers what it is there for."""

    def prepare(self) -> None:  # noqa: B027  # not every container has something to prepare
        """Do what comes before `serve up`."""

    def start(self) -> None:
        """Start, and return once it is ready; raise ContainerFailed with the telling lines."""
        phase(f"starting, config {self.config.digest[:12]}")
        self.prepare()
        path = self.scratch / "serve.json"
        path.write_text(json.dumps(self.settings(), indent=1), encoding="utf-8")
        self._launch()

    def wake(self) -> None:
        """Begin what goes on beside the requests: reloading, following logs, watching."""
        for name, reload in self._reload.items():
            self.rounds.add(f"reloading {name}", reload)
        self.rounds.add("watching", self._watch)
        self.rounds.start()

    def stop(self) -> None:
        """End it within the time that Modal leaves; requests in flight go first."""
        phase("draining")
        self.rounds.stop()
        was_enough = self._process.stop(_STOP_S)
        phase("stopped" if was_enough else f"killed: it did not stop within {_STOP_S:.0f} s")

    def restart(self) -> None:
        """Start the process anew, when what came out of a snapshot does not answer."""
        self._process.stop(_STOP_S)
        self._process = Process(self._argv(), self._env(), say)
        self._launch()

    @property
    def url(self) -> str:
        """Where it listens, as seen from here."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: object = None, timeout_s: float = _ASK_S) -> Any:  # noqa: ANN401
        """Return the JSON of an answer, None where there was none or a bad one."""
        return _ask(method, self.url + path, body, timeout_s)

    def _launch(self) -> None:
        self._process.start()
        phase("loading")
        limit_s = self.startup_timeout_s
        try:
            took_s = self._process.wait_ready(self.is_ready, max(limit_s - _MARGIN_S, limit_s / 2))
        except ContainerFailed:
            self._process.stop(_STOP_S)
            raise
        phase(f"ready after {took_s:.1f} s on port {self.port}")

    def _watch(self) -> None:
        """Give the container up when its process is gone: another one is started for it."""
        if self._has_given_up:
            return
        try:
            self._process.ensure_alive()
        except ContainerFailed as error:
            self._has_given_up = True
            phase(f"failed: {error}")
            self._give_up()

    def _argv(self) -> tuple[str, ...]:
        return (sys.executable, "-m", "serve", "up", "--config", str(self.scratch / "serve.json"))

    def _env(self) -> dict[str, str]:
        """Return the environment, in which our sources are found from anywhere."""
        sources = str(Path(__file__).parents[2])
        before = environment("PYTHONPATH").split(os.pathsep)
        path = os.pathsep.join([sources, *(each for each in before if each not in ("", sources))])
        return child_environment({}, {"PYTHONPATH": path})


class PolicyContainer(Container):
    """A replica: a gateway for one engine, which follows the versions on a volume."""

    def __init__(
        self,
        config: ServingConfig,
        *,
        reload: Mapping[str, Callable[[], None]] | None = None,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        limit_s = config.deploy.policy.startup_timeout_s
        super().__init__(config, startup_timeout_s=limit_s, reload=reload, give_up=give_up)

    def settings(self) -> dict[str, Any]:
        """Return what `serve up` is told here."""
        return plan.policy_settings(self.config, self.port, self.state)

    def prepare(self) -> None:
        """See to it that the model is there, and that the engine's log is read."""
        folder = Path(str(plan.volume_path(self.config)))
        if not (folder / "config.json").is_file():
            raise UnknownModel(
                f"{self.config.model} is not in the volume {self.config.deploy.volumes.cache}: no "
                f"{folder}/config.json. Run: python -m serve prefetch --target modal"
            )
        self.rounds.add("reading logs", LogFiles(self.state / "logs", say).look)

    def is_ready(self) -> bool:
        """Whether its engine answers; and meanwhile let the engine's log be seen."""
        self.rounds.once()
        found = self.ask("GET", "/ready")
        return bool(found and found.get("replicas_ready"))

    def sleep(self) -> None:
        """Warm the engine up and put it to sleep, so that a snapshot of it is small."""
        for number in range(_WARMUPS):
            self._complete(f"Warm-up {number}")
        if self.config.deploy.snapshot is Snapshot.GPU:
            for url in self._engines():
                if _post(f"{url}/sleep?level=1") != 200:
                    raise ContainerFailed(f"the engine at {url} did not go to sleep")
            phase("asleep")

    def wake(self) -> None:
        """Go on from the snapshot; start anew if what came out of it does not answer."""
        if self.config.deploy.snapshot is not Snapshot.OFF and not self._wakes():
            phase("the snapshot does not answer: starting anew")
            self.restart()
        super().wake()

    def _wakes(self) -> bool:
        deadline_s = time.monotonic() + _WAKE_S
        if self.config.deploy.snapshot is Snapshot.GPU and not all(
            _post(f"{url}/wake_up") == 200 for url in self._engines()
        ):
            return False
        while time.monotonic() < deadline_s and self._process.code is None:
            if self.is_ready() and self._complete("Awake?"):
                phase("awake")
                return True
        return False

    def _complete(self, prompt: str) -> bool:
        body = {"model": self.config.policy_name, "prompt": prompt, "max_tokens": 1}
        return self.ask("POST", "/v1/completions", body, timeout_s=_WAKE_S) is not None

    def _engines(self) -> list[str]:
        pool = self.ask("GET", "/admin/pool") or {}
        return [str(replica["url"]).removesuffix("/v1") for replica in pool.get("replicas", ())]


class GatewayContainer(Container):
    """The front door: keys, limits and publishing; its replicas are other containers."""

    def __init__(
        self,
        config: ServingConfig,
        *,
        commit_state: Callable[[], None],
        reload: Mapping[str, Callable[[], None]] | None = None,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        limit_s = config.deploy.gateway.startup_timeout_s
        super().__init__(config, startup_timeout_s=limit_s, reload=reload, give_up=give_up)
        kept = Path(str(config.deploy.volumes.root / "state"))
        self._kept = KeptState(self.state, kept, commit_state)

    def settings(self) -> dict[str, Any]:
        """Return what `serve up` is told here."""
        return plan.gateway_settings(self.config, self.port, self.state)

    def prepare(self) -> None:
        """Bring keys and usage back, and the first key where there is none."""
        phase("state restored" if self._kept.restore() else "state is new")
        if self.config.deploy.gateway.auth is GatewayAuth.KEYS:
            key = environment(plan.ADMIN_KEY)
            if not key:
                raise StateError(f"{plan.ADMIN_KEY} is not set: is the secret attached?")
            adopt_admin_key(self.state, key)

    def is_ready(self) -> bool:
        """Whether it takes requests: it holds them while replicas start."""
        return self.ask("GET", "/health") is not None

    def wake(self) -> None:
        """Keep what changes, besides."""
        self.rounds.add("keeping the state", self._kept.look)
        super().wake()

    def stop(self) -> None:
        """Keep the last changes, too."""
        super().stop()
        self._kept.save()


def say(line: str) -> None:
    """Write a line to the container's log."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def phase(words: str) -> None:
    """Mark in the log where the container is in its life."""
    say(f"[palaestra] {words}")


def _ask(method: str, url: str, body: object, timeout_s: float) -> Any:  # noqa: ANN401
    with contextlib.suppress(httpx.HTTPError, ValueError):
        answer = httpx.request(method, url, json=body, timeout=timeout_s, trust_env=False)
        if answer.is_success:
            return answer.json()
    return None


def _post(url: str) -> int:
    try:
        return httpx.post(url, timeout=_WAKE_S, trust_env=False).status_code
    except httpx.HTTPError:
        return 0
