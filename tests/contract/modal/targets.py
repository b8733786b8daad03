"""Where a policy can be served: on this machine, or on Modal. One scenario runs on both."""

import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import httpx

from serve.accounts.passwords import new_key
from serve.client import AdminClient
from tests.loopback_modal import LoopbackModal

_T = TypeVar("_T")

APP = "scenario"
POLICY = "key-door"
SHIPPED = Path("train/tiny/shipped").resolve()
FAKE = (
    "python -m serve.testing --host {host} --port {port} --model {model} --root {checkpoint} "
    "--dev-mode --versioned-reply --itl-ms 100"
).split()
VLLM = {"max_model_len": 1024, "extra_args": ["--dtype", "float32"]}
START_S = 480.0


def wait_for(true: Callable[[], _T], what: str, within_s: float = START_S) -> _T:
    """Return what is true as soon as it is."""
    deadline_s = time.monotonic() + within_s
    while not (found := true()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}")
        time.sleep(0.1)
    return found


class Target(ABC):
    """A deployment of the tiny policy before its training, under the name `key-door`."""

    name: str
    url = ""
    key = "none"
    says_its_weights = True
    """Whether the answers differ from version to version."""

    @abstractmethod
    def deploy(self) -> None:
        """Return as soon as the gateway takes requests; no engine may be there yet."""

    @abstractmethod
    def checkpoint(self, name: str) -> Path:
        """Return a shipped checkpoint where the gateway can read it."""

    @abstractmethod
    def drain(self) -> None:
        """Ask what answers requests to end, without waiting for it."""

    @abstractmethod
    def stop(self) -> None:
        """End the deployment, and see that nothing is left."""

    @abstractmethod
    def close(self) -> None:
        """End whatever is left, also after a failure."""

    @abstractmethod
    def verb(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a verb of `python -m serve` against this target."""

    def admin(self) -> AdminClient:
        """Return a client of the gateway's control plane."""
        return AdminClient(self.url, self.key)

    def listens(self) -> bool:
        """Whether the gateway answers."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False


class Here(Target):
    """`serve deploy --target local`: an engine of this machine."""

    name = "local"

    def __init__(self, root: Path, config: Path) -> None:
        self._root = root
        self._config = config
        self._log = root / "up.log"
        self._child: subprocess.Popen[bytes] | None = None

    def deploy(self) -> None:
        with self._log.open("wb") as log:
            argv = [*self._argv("deploy"), "--port", "0", "--state", str(self._root / "state")]
            self._child = subprocess.Popen(argv, stdout=log, stderr=log)
        self.url = wait_for(self._listening, "the gateway listens")

    def checkpoint(self, name: str) -> Path:
        return SHIPPED / name

    def drain(self) -> None:
        assert self._child is not None
        self._child.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)
            assert self._child.wait(60) == 0, self._log.read_text()
            self._child = None

    def close(self) -> None:
        if self._child is not None:
            self._child.terminate()
            self._child.wait(60)

    def verb(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        verb, *more = arguments
        argv = [*self._argv(verb), "--url", self.url, *more]
        return subprocess.run(argv, capture_output=True, text=True, timeout=START_S)

    def _argv(self, verb: str) -> list[str]:
        target = ["--target", "local", "--config", str(self._config)]
        return [sys.executable, "-m", "serve", verb, *target]

    def _listening(self) -> str:
        assert self._child is not None
        text = self._log.read_text()
        assert self._child.poll() is None, text
        found = [line for line in text.splitlines() if line.startswith("listening on ")]
        return found[0].split()[2].rstrip(";").removesuffix("/v1") if found else ""


class OnModal(Target):
    """`serve deploy --target modal`, with the control plane on this machine."""

    name = "modal"

    def __init__(self, root: Path, config: Path) -> None:
        self.key = new_key()
        self._config = config
        secrets = {
            "palaestra-admin": {"PALAESTRA_ADMIN_KEY": self.key},
            "palaestra-proxy": {"PALAESTRA_PROXY_TOKEN": LoopbackModal.proxy_key},
        }
        self.modal = LoopbackModal(root / "modal", secrets=secrets)
        self.modal.__enter__()
        self.modal.volume("runs")

    def deploy(self) -> None:
        for verb in ("prefetch", "deploy"):
            done = self.verb(verb)
            assert done.returncode == 0, done.stdout + done.stderr
        self.url = self.modal.app(APP).servers["Gateway"].url
        self.modal.wait_ready(APP, "Gateway", timeout_s=START_S)

    def checkpoint(self, name: str) -> Path:
        folder = self.modal.volume("runs") / name
        if not folder.exists():
            folder.mkdir()
            for path in (SHIPPED / name).iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
        return self.modal.root / "mnt" / "runs" / name

    def drain(self) -> None:
        for container in self.modal.containers(APP, "Policy"):
            self.modal.drain(container)

    def stop(self) -> None:
        if self.url:
            assert self.verb("stop").returncode == 0
            wait_for(lambda: not self.modal.containers(APP), "all containers are gone")
            self.url = ""

    def close(self) -> None:
        self.modal.__exit__(None, None, None)

    def verb(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        verb, *more = arguments
        own = f"deploy.volumes.root={self.modal.root / 'mnt'}"
        argv = ["-m", "serve", verb, "--config", str(self._config), "--set", own, *more]
        return self.modal.python(*argv, env={"PALAESTRA_API_KEY": self.key}, timeout_s=START_S)


def write_config(path: Path, program: Sequence[str] = FAKE, **engine: object) -> Path:
    """Write the config that both targets are deployed from; JSON is YAML."""
    config = {
        "model": str(SHIPPED / "key_door_before"),
        "name": POLICY,
        "engine": {"program": list(program), **engine},
        "deploy": {
            "app": APP,
            "policy": {
                "gpu": [],
                "max_containers": 1,
                "startup_timeout_s": 480,
                "scaledown_window_s": 600,
                "target_concurrency": 32,
                "max_concurrency": 64,
            },
            "gateway": {"min_containers": 1, "startup_timeout_s": 480},
            "volumes": {"runs": "runs"},
        },
    }
    path.write_text(json.dumps(config, indent=1))
    return path


def environment(**more: str) -> dict[str, str]:
    """Return the environment for a client's program."""
    return {**os.environ, **more}
