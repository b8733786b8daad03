"""A replica as the gateway sees it: where it is, what it serves, how much it has to do.

The pool owns `state`, the sync of policies owns `served` and `current`, and the fast lane owns the
counts; everything runs on one event loop, so nobody locks.
"""

import ssl
from collections.abc import Container, Iterable, Sequence
from enum import StrEnum
from typing import Any, Protocol


class ReplicaState(StrEnum):
    """Where in its life a replica is. Requests go to READY ones only."""

    STARTING = "starting"
    """Its process or its first probe is under way."""
    SYNCING = "syncing"
    """Healthy, and loading the weights it shall serve; new requests go elsewhere."""
    READY = "ready"
    """Answers."""
    DRAINING = "draining"
    """Finishes what it has, then stops."""
    DOWN = "down"
    """Failed; probed until it is back, or restarted."""
    STOPPED = "stopped"
    """Gone for good."""


class Exchange(Protocol):
    """A request in flight on a replica, as much of it as a pool may touch."""

    def replica_lost(self, reason: str) -> None:
        """Give up on the replica: retry elsewhere if no byte was sent, else end visibly."""


class Replica:
    """One engine behind an address, and its load. Compare by identity.

    `base_url` is `http://HOST:PORT` without a path, or https with `tls`. `headers` go with each
    request to it. One that `labels` is a gateway of ours, whose answers say which weights made
    them; those of `affinity` carry the session's name, for a balancer in front of it.
    """

    __slots__ = (
        "active",
        "affinity",
        "current",
        "errors",
        "headers",
        "host",
        "host_line",
        "id",
        "idle",
        "in_flight",
        "labels",
        "leaving",
        "metrics",
        "port",
        "proof",
        "reason",
        "requests",
        "served",
        "sessions",
        "stamps",
        "state",
        "tls",
        "weight",
    )

    def __init__(
        self,
        id_: str,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        headers: Sequence[tuple[str, str]] = (),
        affinity: Sequence[str] = (),
        labels: bool = False,
    ) -> None:
        self.id, self.host, self.port = id_, host, port
        self.tls = tls
        self.headers = tuple(headers)
        self.affinity = tuple(name.lower().encode() for name in affinity)
        """Names of headers whose value is a request's session."""
        self.labels = labels
        self.host_line = self._host_line()
        """All header lines that each request to it begins with."""
        self.stamps: dict[int, bytes] = {}
        """Version -> the header lines that its answers carry; the fast lane's."""
        self.state = ReplicaState.STARTING
        self.reason = ""
        """Why it is in that state, in a few words, where that is not evident."""
        self.in_flight = 0
        """Requests sent to it and not finished: the gateway's own count, never a scraped one."""
        self.requests = 0
        """Requests ever sent to it."""
        self.errors = 0
        """Connections refused, lost before an answer, and stalls; never a 4xx, never a cancel."""
        self.sessions = 0
        """Sessions pinned to it."""
        self.weight = 1.0
        """Less than 1 for a replica that came back only moments ago: it is eased in."""
        self.active: set[Exchange] = set()
        """The requests in flight themselves."""
        self.idle: dict[Any, None] = {}
        """Idle keep-alive connections to it, the last used last; the fast lane's."""
        self.served: dict[str, dict[int, bytes]] = {}
        """Policy name -> version -> what the engine calls it, as a JSON string with quotes."""
        self.current: dict[str, int] = {}
        """Policy name -> the version that the bare name means here."""
        self.leaving: Container[int] = ()
        """Versions that take no new requests, yet finish those they have; the sync's."""
        self.proof: tuple[str, float] | None = None
        """The version, `NAME@VERSION`, whose probes its engine passed last, and by how much its
        logprobs differed at most."""
        self.metrics: dict[str, float] = {}
        """What its /metrics last said, for sight only: never for routing."""

    @property
    def base_url(self) -> str:
        """`http://HOST:PORT`, or `https://HOST:PORT`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def is_ready(self) -> bool:
        """Whether requests may be sent to it."""
        return self.state is ReplicaState.READY

    def _host_line(self) -> bytes:
        scheme, _, name = self.base_url.partition("://")
        if scheme == "https" and self.port == 443:
            name = name.removesuffix(":443")  # a front that chooses by name may know it so only
        lines = [("host", name), *self.headers]
        return "".join(f"{name}: {value}\r\n" for name, value in lines).encode()

    def serve_only(self, name: str, version: int, engine_name: str) -> None:
        """Say that it serves exactly this one version under exactly this name."""
        self.served = {name: {version: encoded(engine_name)}}
        self.current = {name: version}

    def __repr__(self) -> str:
        return f"<Replica {self.id} {self.state.value} in_flight={self.in_flight}>"


def encoded(engine_name: str) -> bytes:
    """Return a model's name as the JSON string that goes into a request's body."""
    import json  # noqa: PLC0415  # not on any hot path

    return json.dumps(engine_name).encode()


def ready(replicas: Iterable[Replica]) -> list[Replica]:
    """Return those that requests may be sent to."""
    return [replica for replica in replicas if replica.state is ReplicaState.READY]
