"""Tells a webhook that a run has ended. It takes seconds at most, and never changes how a run ends.

The address is a secret: it comes from a variable of the environment, and no message, log or error
of ours has it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from train.config import TrainConfig
from train.costs import read_costs
from train.environment import secret
from train.errors import BadConfig, TrainError
from train.run import RunDir, State

FORMAT = "train-notice/1"
_ATTEMPTS = 3
_TIMEOUT_S = 5.0
_PAUSE_S = 1.0
_OK = range(200, 300)
_MESSAGE_CHARS = 2000

Say = Callable[[str], None]


def check(config: TrainConfig) -> None:
    """Raise BadConfig where somebody is to be told and the address is not there or is none."""
    variable = config.notify.url_env
    if variable is None:
        return
    address = secret(variable)
    if not address:
        raise BadConfig(f"notify.url_env is {variable}, and that variable is not set")
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        raise BadConfig(f"notify.url_env: ${variable} holds no http:// or https:// address")


@contextlib.contextmanager
def telling(
    config: TrainConfig, run: RunDir, say: Say, sleep: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Tell of the run when the block has ended, by whatever; errors of the block go on."""
    try:
        yield
    except TrainError as error:
        tell(config, notice(run, State.FAILED, str(error)), say, sleep)
        raise
    status = run.status()
    tell(config, notice(run, status.state, status.message), say, sleep)


def notice(
    run: RunDir,
    state: State,
    message: str,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> dict[str, Any]:
    """Return what is told of a run; `text` is a sentence for a chat."""
    status, config, costs = run.status(), run.config(), read_costs(run.costs_path)
    said = f": {message[:_MESSAGE_CHARS]}" if message else ""
    return {
        "format": FORMAT,
        "text": f"{run.name} {state.value} at step {status.step} of {config.learn.steps}{said}",
        "event": f"run.{state.value}",
        "at": now().isoformat(timespec="seconds"),
        "run": run.name,
        "env": config.env.name,
        "model": config.model.name,
        "step": status.step,
        "steps": config.learn.steps,
        "version": status.version,
        "message": message[:_MESSAGE_CHARS],
        "gpu_hours": costs and costs["gpu_hours"],
        "usd": costs and costs["usd"],
    }


def tell(
    config: TrainConfig,
    told: dict[str, Any],
    say: Say,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """POST it, a few times if need be; return whether it was taken. Raises nothing."""
    variable = config.notify.url_env
    address = secret(variable) if variable else None
    if address is None:
        return False
    body = json.dumps(told).encode()
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            sleep(_PAUSE_S * attempt)
        try:
            status = _post(address, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = type(error).__name__  # its text may hold the address
            continue
        if status in _OK:
            return True
        reason = f"status {status}"
        if status < 500 and status != 429:
            break
    say(f"nobody was told of the end: the webhook in ${variable} did not take it ({reason})")
    return False


def _post(address: str, body: bytes) -> int:
    """Return the status of one try; no redirect is followed."""
    parts = urlsplit(address)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    with contextlib.closing(kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)) as wire:
        wire.request("POST", path, body, {"Content-Type": "application/json"})
        return wire.getresponse().status
