"""Sends each new version to the gateway, and returns when it is live as the trainer means it."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from evalkit.record.rundir import write_whole
from serve.client import AdminClient, ReplicaStatus
from serve.errors import AdminError
from serve.wire import PolicyKind, Probes, SwapMode
from train.errors import GatewayLost, PublishFailed, SaveFailed

logger = logging.getLogger(__name__)

T = TypeVar("T")

MEMORY_FORMAT = "train-sent/1"

_AWAY = frozenset({0, 502, 503, 504})
"""Statuses of a gateway that is not there, or not yet."""
_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One version that went live."""

    version: int
    seconds: float
    """From handing it over until every replica served it."""
    probe_gap: float | None = None
    """The largest difference of a replica's logprob on the probes; None where none says it."""


class Publisher:
    """Publishes the versions of one policy, and lets go of those that nobody needs."""

    def __init__(
        self,
        admin: AdminClient,
        name: str,
        *,
        swap: SwapMode,
        keep_versions: int,
        wait_s: float,
        memory: Path | None = None,
        commit: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`memory` is a file in which it finds what it has sent before it was started again.

        `commit` makes a folder visible to a gateway in another container; it returns when it is.
        """
        self.kept: set[int] = set()
        """Versions that stay: those of checkpoints."""
        self._admin = admin
        self._name = name
        self._swap = swap
        self._keep_versions = keep_versions
        self._wait_s = wait_s
        self._clock = clock
        self._sleep = sleep
        self._memory = memory
        self._commit = commit
        self._sent: dict[int, str] = {}
        """Digests of versions that may still be there, in the order in which they were sent."""
        self._remembered = _read(memory)
        self._parent: int | None = None

    def publish(
        self,
        folder: Path,
        kind: PolicyKind,
        *,
        step: int,
        metrics: Mapping[str, float],
        probes: Probes | None,
    ) -> Sent:
        """Publish a folder of weights and delete it; return when every ready replica serves it.

        Raises:
            PublishFailed: the gateway refuses it, or a replica does not compute what the trainer
                computes (says which one), or the volume that it lies on was not committed.
            GatewayLost: the gateway was away for `wait_s`.

        """
        started_s = self._clock()
        self._commit()
        self._recall()
        published = self._insist(
            lambda: self._admin.publish(
                self._name,
                folder,
                kind=kind,
                parent=self._parent,
                metrics={"step": float(step), **metrics},
                swap=self._swap,
                probes=probes,
            )
        )
        version = published.version
        # Weights that did not change since are a version that was sent already; and what was there
        # before anything was sent is not ours.
        is_ours = self._sent.pop(version, None) is not None
        if is_ours or published.metrics.get("step") == float(step):
            self._sent[version] = published.digest
        self._remember()
        replicas = self._insist(lambda: self._wait_ready(version))
        seconds, label = self._clock() - started_s, f"{self._name}@{version}"
        # A full version is what later ones are trained from; an adapter's base stays what it was.
        self._parent = version if kind is PolicyKind.FULL else self._parent
        shutil.rmtree(folder, ignore_errors=True)
        self.prune()
        gaps = [each.proof[1] for each in replicas if each.proof and each.proof[0] == label]
        return Sent(version=version, seconds=seconds, probe_gap=max(gaps, default=None))

    def close(self) -> None:
        """Close its connections."""
        self._admin.close()

    def _wait_ready(self, version: int) -> tuple[ReplicaStatus, ...]:
        try:
            return self._admin.wait_ready(self._name, version, timeout_s=self._wait_s)
        except TimeoutError as error:
            raise PublishFailed(str(error)) from error

    def prune(self) -> None:
        """Let the gateway delete versions that are neither recent nor a checkpoint's."""
        old = list(self._sent)[: -self._keep_versions]
        unneeded = [version for version in old if version not in self.kept]
        if unneeded:
            pruned = self._insist(lambda: self._admin.prune(self._name, unneeded))
            for version in pruned.versions:
                self._sent.pop(version, None)
            self._remember()

    def _recall(self) -> None:
        """Take up what was sent before, as far as it is this gateway that has it."""
        remembered, self._remembered = self._remembered, {}
        if remembered:
            policies = self._insist(self._admin.policies)
            there = {
                each.version: each.digest
                for policy in policies
                if policy.name == self._name
                for each in policy.versions
            }
            self._sent = {
                version: digest
                for version, digest in remembered.items()
                if there.get(version) == digest
            }

    def _remember(self) -> None:
        if self._memory is None:
            return
        told = json.dumps({"format": MEMORY_FORMAT, "versions": list(self._sent.items())})
        try:
            write_whole(self._memory, f"{told}\n".encode())
        except OSError as error:
            raise SaveFailed(f"cannot write {self._memory}: {error}") from error

    def _insist(self, ask: Callable[[], T]) -> T:
        """Ask until the gateway answers; it may be starting again."""
        deadline_s = self._clock() + self._wait_s
        while True:
            try:
                return ask()
            except AdminError as error:
                if error.status not in _AWAY:
                    raise PublishFailed(f"{self._name}: {error}") from error
                if self._clock() > deadline_s:
                    raise GatewayLost(f"no gateway for {self._wait_s:.0f} s: {error}") from error
            self._sleep(_PAUSE_S)


def _read(memory: Path | None) -> dict[int, str]:
    """Return what an earlier process has sent; a file that is damaged costs only disk space."""
    if memory is None or not memory.exists():
        return {}
    try:
        told = json.loads(memory.read_bytes())
        if told["format"] != MEMORY_FORMAT:
            raise ValueError(f"expected format {MEMORY_FORMAT}")
        return {int(version): str(digest) for version, digest in told["versions"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is left out, so old versions may stay: %r", memory, error)
        return {}
