"""An engine in a process of its own: started, watched and stopped. Knows no vLLM, only commands."""

import asyncio
import contextlib
import errno
import re
import socket
import sys
from pathlib import Path
from typing import Any

import httpx

from serve.config import child_environment
from serve.engine import keeper
from serve.engine.base import Engine
from serve.engine.command import Command
from serve.errors import ConfigError, EngineDied, EngineNotReady, PortInUse

_POLL_S = 0.25
_PROBE_TIMEOUT_S = 60.0
_TAIL_LINES = 25
_TAIL_WIDTH = 200


class LaunchedEngine(Engine):
    """Runs a command that serves OpenAI's API at `host:port`, its output going to a file.

    The engine runs in its own session, so a Ctrl-C in the terminal reaches only the launcher;
    a keeper (see `serve.engine.keeper`) sees to it that nothing outlives either of them.
    """

    def __init__(
        self,
        command: Command,
        *,
        model: str,
        host: str = "127.0.0.1",
        port: int,
        log: Path,
        api_key: str | None = None,
        grace_s: float = 5.0,
    ) -> None:
        self.model = model
        self.base_url = f"http://{reachable(host)}:{port}/v1"
        self.log = log
        self._command = command
        self._host, self._port = host, port
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._grace_s = grace_s
        self._keeper: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process; raise PortInUse if somebody else listens, ConfigError for the log."""
        ensure_free(self._host, self._port)
        self.died = asyncio.get_running_loop().create_future()
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            output = self.log.open("wb")
        except OSError as error:
            raise ConfigError(f"cannot write the log to {self.log}: {error.strerror}") from None
        with output:
            self._keeper = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", keeper.__file__, str(self._grace_s)),
                *self._command.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=child_environment(self._command.env_defaults, self._command.env),
                start_new_session=True,
            )
        self._watch = asyncio.create_task(self._settle(self._keeper))

    async def wait_ready(self, timeout_s: float = 600.0) -> None:
        """Return once /health is 200, the model is listed, and one token was made."""
        probing = asyncio.create_task(self._probe())
        either: set[asyncio.Future[Any]] = {probing, self.died}
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise EngineNotReady(
                f"{self.model} did not answer at {self.base_url} within {timeout_s:.0f} s; "
                f"the end of {self.log}:\n{tail(self.log, self._command.noise)}"
            ) from None
        finally:
            probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probing
        if self.died.done():
            raise self.died.result()

    async def stop(self) -> None:
        """Cut the lifeline and wait until the keeper has seen the last process off."""
        process, watch = self._keeper, self._watch
        if process is None or watch is None:
            return
        self._keeper = None
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.shield(watch)

    async def _settle(self, process: asyncio.subprocess.Process) -> None:
        """Wait for the keeper's end, and say that the engine died unless it was stopped."""
        code = await process.wait()
        if self._keeper is process and not self.died.done():
            self.died.set_result(
                EngineDied(
                    f"the engine of {self.model} ended by itself ({_describe(code)}); "
                    f"the end of {self.log}:\n{tail(self.log, self._command.noise)}"
                )
            )

    async def _probe(self) -> None:
        """Ask until every question that a client will ask is answered."""
        async with httpx.AsyncClient(
            headers=self._headers, timeout=_PROBE_TIMEOUT_S, trust_env=False
        ) as client:
            while True:
                if await self._answers(client):
                    return
                await asyncio.sleep(_POLL_S)

    async def _answers(self, client: httpx.AsyncClient) -> bool:
        try:
            if (await client.get(f"{self.root_url}/health")).status_code != 200:
                return False
            models = await client.get(f"{self.base_url}/models")
            if self.model not in [card["id"] for card in models.raise_for_status().json()["data"]]:
                return False
            one_token = {"model": self.model, "prompt": "1", "max_tokens": 1}
            completion = await client.post(f"{self.base_url}/completions", json=one_token)
            return completion.status_code == 200
        except (httpx.HTTPError, ValueError, KeyError):
            return False


def reachable(host: str) -> str:
    """Return the host as a URL on this machine names it: no wildcard, IPv6 in brackets."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"[{host}]" if ":" in host else host


def ensure_free(host: str, port: int) -> None:
    """Raise PortInUse unless `host:port` can be listened on."""
    _listen_once(host, port)


def free_port(host: str) -> int:
    """Return a port of `host` that nobody listens on."""
    return _listen_once(host, 0)


def tail(log: Path, noise: str = r"(?!)", lines: int = _TAIL_LINES) -> str:
    """Return the log's last lines that do not match `noise`, indented, each cut to a screen's."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"  (no log: {error.strerror})"
    telling = [line for line in text.splitlines() if line.strip() and not re.search(noise, line)]
    return "\n".join(f"  {line[:_TAIL_WIDTH]}" for line in telling[-lines:]) or "  (nothing)"


def _listen_once(host: str, port: int) -> int:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            return int(probe.getsockname()[1])
    except socket.gaierror as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} of {host} is taken: stop what listens there, or give --port 0"
            ) from None
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def _describe(code: int) -> str:
    """Say how a keeper ended: the engine's exit code, or 128 + a signal's number."""
    if code < 0:
        return f"its keeper was killed by signal {-code}"
    return f"killed by signal {code - 128}" if code > 128 else f"exit code {code}"
