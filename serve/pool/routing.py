"""Which replica takes a request: a pure function of the request and the replicas. No I/O, no clock.

The version comes first, then the session's own replica as long as it is not saturated, then the
least loaded; a request without a session takes the better of two replicas drawn at random.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from serve.pool.replicas import Replica, ReplicaState

_SPILL = 8
"""A session leaves its replica when that has so many more requests in flight than the idlest."""


class Routing(StrEnum):
    """How requests are spread over the replicas that can serve them."""

    STICKY = "sticky"
    """A session stays where its prefix is cached; the others go to the less loaded of two."""
    ROUND_ROBIN = "round_robin"
    """In turn. For comparison."""
    RANDOM = "random"
    """Uniformly. For comparison."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The policy that a request asks for, and the versions that it admits."""

    name: str
    minimum: int = 0
    exact: int | None = None


def serves(replica: Replica, wanted: Wanted) -> tuple[int, bytes] | None:
    """Return the version with which this replica would answer and the engine's name for it."""
    served = replica.served.get(wanted.name)
    if served is None:
        return None
    version = wanted.exact
    if version is None:
        version = replica.current.get(wanted.name, 0)
        if version < wanted.minimum:
            version = max(served, default=0)
    engine_name = served.get(version)
    if engine_name is None or version < wanted.minimum:
        return None
    return version, engine_name


def choose(
    replicas: Sequence[Replica],
    wanted: Wanted,
    session: bytes | None,
    pinned: Replica | None,
    rng: random.Random,
    avoid: Replica | None = None,
) -> Replica | None:
    """Return the replica to send to, or None when no ready one can serve what is wanted.

    `session` is the request's X-Session-ID and `pinned` where its last request went. `avoid` is
    taken only if nobody else can.
    """
    if (
        pinned is not None
        and avoid is None
        # It cannot lead anybody by more than it has: no need to look at the others.
        and pinned.in_flight <= _SPILL
        and pinned.state is ReplicaState.READY
        and serves(pinned, wanted) is not None
    ):
        return pinned
    able = [
        replica
        for replica in replicas
        if replica.state is ReplicaState.READY and serves(replica, wanted) is not None
    ]
    if avoid is not None and len(able) > 1 and avoid in able:
        able.remove(avoid)
    if len(able) < 2:
        return able[0] if able else None
    if session is None:
        return min(rng.sample(able, 2), key=_load)
    if pinned in able and not _is_saturated(pinned, able):
        return pinned
    return min(able, key=_load)


def _is_saturated(pinned: Replica, able: Sequence[Replica]) -> bool:
    lead = pinned.in_flight - min(replica.in_flight for replica in able)
    return lead > max(_SPILL, pinned.in_flight >> 1)


def _load(replica: Replica) -> tuple[float, int]:
    return (replica.in_flight + 1) / replica.weight, replica.sessions


class Router:
    """Chooses, and remembers where sessions are. The table of sessions is bounded."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        routing: Routing = Routing.STICKY,
        seed: int = 0,
        max_sessions: int = 200_000,
    ) -> None:
        self._replicas = replicas
        self._routing = routing
        self._rng = random.Random(seed)
        self._max_sessions = max_sessions
        self._pinned: dict[tuple[str, bytes], Replica] = {}
        self._turn = 0
        self.spills = 0
        """Sessions sent away from a replica that could have served them, for its load."""

    def pick(
        self, wanted: Wanted, session: bytes | None = None, avoid: Replica | None = None
    ) -> Replica | None:
        """Return the replica to send to and pin the session to it; None if none can serve."""
        if self._routing is not Routing.STICKY:
            return self._unpinned(wanted, avoid)
        if session is None:
            return choose(self._replicas, wanted, None, None, self._rng, avoid)
        key = wanted.name, session
        pinned = self._pinned.get(key)
        chosen = choose(self._replicas, wanted, session, pinned, self._rng, avoid)
        if chosen is not None and chosen is not pinned:
            if pinned is not None and avoid is None and pinned.is_ready:
                self.spills += serves(pinned, wanted) is not None
            self._move(key, pinned, chosen)
        return chosen

    def finish(self, session: bytes) -> None:
        """Forget a session that has ended."""
        for key in [key for key in self._pinned if key[1] == session]:
            self._pinned.pop(key).sessions -= 1

    def forget(self, replica: Replica) -> None:
        """Forget every session of a replica that left; the others stay where they are."""
        for key in [key for key, pinned in self._pinned.items() if pinned is replica]:
            del self._pinned[key]
        replica.sessions = 0

    @property
    def sessions(self) -> int:
        """How many sessions are pinned."""
        return len(self._pinned)

    def _move(self, key: tuple[str, bytes], old: Replica | None, new: Replica) -> None:
        if old is not None:
            old.sessions -= 1
            del self._pinned[key]
        elif len(self._pinned) >= self._max_sessions:
            oldest = next(iter(self._pinned))
            self._pinned.pop(oldest).sessions -= 1
        self._pinned[key] = new
        new.sessions += 1

    def _unpinned(self, wanted: Wanted, avoid: Replica | None) -> Replica | None:
        able = [
            replica
            for replica in self._replicas
            if replica.is_ready and serves(replica, wanted) is not None and replica is not avoid
        ]
        if not able:
            return choose(self._replicas, wanted, None, None, self._rng, avoid)
        if self._routing is Routing.RANDOM:
            return self._rng.choice(able)
        self._turn += 1
        return able[self._turn % len(able)]
