"""What the sync remembers of one replica, and what the replica says of itself. Asks no engine."""

import asyncio
from dataclasses import dataclass, field

from serve.engine.vllm import CHANGING
from serve.policies.gate import Proof
from serve.pool.replicas import Exchange, Replica, encoded
from serve.wire import BadReference, PolicyRef

Asked = tuple[int, frozenset[int]]
"""What a policy's replicas are to be brought to: the pointer's version, and the pinned ones."""

NO_VERSION = 0
"""Said of weights whose probes were not passed yet; there is no such version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What an engine serves of its policy."""

    base: int
    adapters: tuple[int, ...]
    current: int


@dataclass(slots=True, kw_only=True)
class Link:
    """What the sync remembers of one replica. `name` is None where nothing can be changed."""

    name: str | None = None
    base: int | None = None
    """The full version that its engine holds; None if nobody knows."""
    asked: Asked | None = None
    """What it was brought to."""
    leaving: dict[int, set[Exchange]] = field(default_factory=dict)
    """Adapters served no more -> the requests that may still use them."""
    held: Held | None = None
    """During a swap, what it goes back to if the new weights fail their probes."""
    proof: Proof | None = None
    """What it last said to a version's probes."""
    refused: Asked | None = None
    """What it was last brought to in vain."""
    retry_at_s: float = 0.0
    failures: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def forget(self) -> None:
        """Know nothing of the engine, which may have been replaced."""
        self.name = self.base = self.asked = None
        # Another one: the replica's requests in flight are still labelled by the old one.
        self.leaving = {}

    def holds(self, replica: Replica) -> Held | None:
        """Return what the replica serves; None if nobody knows what its engine holds."""
        if self.name is None or self.base is None:
            return None
        served = replica.served.get(self.name, {})
        return Held(
            base=self.base,
            adapters=tuple(version for version in served if version != self.base),
            current=replica.current.get(self.name, self.base),
        )

    def versions(self, replica: Replica) -> set[int]:
        """Return the versions whose weights its engine has or may need again; from any thread."""
        held = self.held
        found = set(replica.served.get(self.name or "", ())) | set(self.leaving)
        if self.base is not None:
            found.add(self.base)
        return found | ({held.base, *held.adapters} if held else set())


def say_only(replica: Replica, name: str, version: int) -> None:
    """Say that the engine's base model, which has the policy's name, is this version."""
    replica.served[name] = {version: encoded(name)}
    replica.current[name] = version


def say_none(replica: Replica, name: str) -> None:
    """Say that the engine's weights were not proven to be any version yet."""
    replica.served[name] = {}
    replica.current[name] = NO_VERSION


def version_in(label: str | None, name: str) -> int | None:
    """Return the version that a label gives to this policy's weights, if it does."""
    if label is None or label == CHANGING:
        return None
    try:
        labelled = PolicyRef.parse(label)
    except BadReference:
        return None
    return labelled.version if labelled.name == name else None
