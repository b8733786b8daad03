"""Where versions come from: a gateway that serves them, or a folder that a trainer writes into.

Speaks HTTP to the gateway and knows no more of it: `NAME@VERSION` in GET /v1/models is a version
that is live, POST /admin/publish makes a checkpoint one.
"""

from __future__ import annotations

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from evalkit.connect import probe
from evalkit.errors import BadConfig, RunFailed, Unauthorized, UnknownModel
from evalkit.play.calls import error_message
from evalkit.specs import ModelSpec

CHECKPOINTS = "checkpoints"
"""The folder of a training run that they lie in."""
MARKER = "COMPLETE"
"""What a trainer writes last into a checkpoint: its files with their sizes."""
MARKER_FORMAT = "train-checkpoint/1"
STEP = re.compile(r"step-[0-9]{6,30}")
PUBLISH_TIMEOUT_S = 600.0
Sleep = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version of the policy that is watched."""

    name: str
    """As the learning curve calls it: `NAME@7`, or `step-000020`."""
    label: str
    """A word: names its folder, and the arm of its run."""
    number: int
    """Grows from version to version."""


class Source(ABC):
    """Something that versions appear in."""

    counts = False
    """Whether numbers have no gaps, so that a gap is a version that was missed."""
    place: Path | None = None
    """The folder that versions appear in, where they do not appear at the gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @abstractmethod
    async def versions(self) -> list[Version]:
        """Return the versions that can be evaluated now, by number.

        Raises:
            UsageError: there is no such place, or it has no such policy.

        """

    @abstractmethod
    async def served(self, version: Version, before: str | None) -> str:
        """Return what requests call a version, having made sure that it is live.

        `before` is what they called it when its evaluation was begun, if it was.

        Raises:
            EvalkitError: it is not live.

        """


class Gateway:
    """A gateway, as far as watching needs it."""

    def __init__(self, spec: ModelSpec, key: str | None, *, sleep: Sleep = asyncio.sleep) -> None:
        self.spec = spec
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._sleep = sleep
        self._policy = spec.name

    async def live(self) -> dict[int, str]:
        """Return {version number: name} of the policy's live versions, ascending.

        Raises:
            UsageError: nothing answers, or it does not list versions, or not of one policy.

        """
        listed, _ = await probe(self.spec.target, self._headers, wait_s=0.0)
        cards = listed or {}
        policy = self._policy or self._only_policy(cards)
        if policy not in cards:
            known = ", ".join(name for name in cards if "@" not in name) or "none"
            raise UnknownModel(f"{self.spec.target} has no policy {policy!r}; it has {known}")
        self._policy = policy
        numbered = (name.rpartition("@") for name in cards)
        live = {
            int(v): f"{name}@{v}" for name, _, v in numbered if name == policy and v.isdecimal()
        }
        return dict(sorted(live.items()))

    async def publish(self, path: Path, *, wait_s: float) -> str:
        """Make a checkpoint the policy's newest version; return its name when it is live.

        Raises:
            EvalkitError: the gateway does not take it, or no replica does within `wait_s` seconds.

        """
        if self._policy is None:
            await self.live()
        root = self.spec.target.rpartition("/")[0]
        body = {"name": self._policy, "path": str(path)}
        try:
            async with httpx.AsyncClient(
                headers=self._headers, timeout=PUBLISH_TIMEOUT_S
            ) as client:
                answer = await client.post(f"{root}/admin/publish", json=body)
        except httpx.HTTPError as error:
            raise RunFailed(f"{root}: {str(error) or type(error).__name__}") from error
        number = _published(root, answer)
        waited_s = 0.0
        while number not in (live := await self.live()):
            if waited_s >= wait_s:
                raise RunFailed(f"{self._policy}@{number} is not live after {waited_s:.0f} s")
            await self._sleep(1.0)
            waited_s += 1.0
        return live[number]

    def _only_policy(self, cards: Mapping[str, Mapping[str, Any]]) -> str:
        policies = sorted(
            {name for name, card in cards.items() if "@" not in name and "policy_version" in card}
        )
        if not policies:
            raise UnknownModel(
                f"{self.spec.target} lists no versions: expected a gateway that lists NAME@VERSION"
            )
        if len(policies) > 1:
            raise UnknownModel(
                f"{self.spec.target} has several policies ({', '.join(policies)}): add #NAME"
            )
        return policies[0]


class GatewaySource(Source):
    """The versions that a gateway serves, whoever publishes them."""

    counts = True

    async def versions(self) -> list[Version]:
        """Return the live versions."""
        live = await self.gateway.live()
        return [Version(name=name, label=f"v{n}", number=n) for n, name in live.items()]

    async def served(self, version: Version, before: str | None) -> str:  # noqa: ARG002
        """Return the version's own name."""
        return version.name


class FolderSource(Source):
    """The complete checkpoints of a trainer's folder, each published when its turn comes."""

    def __init__(self, path: Path, gateway: Gateway, *, wait_s: float) -> None:
        super().__init__(gateway)
        self._path = path.absolute()
        self.place = self._path.parent if self._path.name == CHECKPOINTS else self._path
        self._wait_s = wait_s

    @property
    def path(self) -> Path:
        """Where the checkpoints lie: a trainer makes that folder when it has the first."""
        inner = self._path / CHECKPOINTS
        return inner if inner.is_dir() else self._path

    async def versions(self) -> list[Version]:
        """Return the complete checkpoints, by step."""
        if not self.path.is_dir():
            raise BadConfig(f"{self.path} is neither a URL nor a folder of checkpoints")
        found = []
        for marker in self.path.glob(f"step-*/{MARKER}"):
            step, name = _complete_step(marker), marker.parent.name
            if step is not None and STEP.fullmatch(name):
                found.append(Version(name=name, label=name, number=step))
        return sorted(found, key=lambda version: version.number)

    async def served(self, version: Version, before: str | None) -> str:
        """Publish the checkpoint, unless it still is live from before."""
        if before is not None and before in (await self.gateway.live()).values():
            return before
        return await self.gateway.publish(self.path / version.name, wait_s=self._wait_s)


def _complete_step(marker: Path) -> int | None:
    """Return the step of a checkpoint whose files are all there; None for any other."""
    try:
        said = json.loads(marker.read_bytes())
        whole = said["format"] == MARKER_FORMAT and all(
            (marker.parent / file["name"]).stat().st_size == file["size_bytes"]
            for file in said["files"]
        )
        return int(said["step"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _published(root: str, answer: httpx.Response) -> int:
    """Return the number of the version that was published."""
    said = error_message(answer.content)
    if answer.status_code in {401, 403}:
        raise Unauthorized(
            f"{root}: HTTP {answer.status_code}: {said} (publishing takes a key with the scope "
            f"admin: name the variable that holds it by --api-key-env VAR)"
        )
    if answer.status_code != 201:
        raise RunFailed(f"{root}/admin/publish: HTTP {answer.status_code}: {said}")
    try:
        return int(answer.json()["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunFailed(f"{root}/admin/publish answered no version: {said}") from error
