"""A client of a running gateway's control plane: publish, roll back, wait, look, scale.

Blocking, because those who publish are training loops and command lines; in a coroutine, call it
by `asyncio.to_thread`. Needs httpx and nothing else, so importing it costs little.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from serve.errors import AdminError
from serve.wire import PolicyKind, Probes, SwapMode

_TIMEOUT_S = 30.0
_PUBLISH_TIMEOUT_S = 900.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedVersion:
    """One version of a policy. `live_on` names the ready replicas that serve it."""

    name: str
    version: int
    kind: PolicyKind
    created_s: float
    parent: int | None
    digest: str
    size_bytes: int
    metrics: Mapping[str, float]
    path: str | None
    live_on: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedVersions:
    """Which versions have no weights any more, and why others that were named have kept them."""

    versions: tuple[int, ...]
    kept: Mapping[int, str]
    freed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyStatus:
    """One policy; `latest` is what its bare name means."""

    name: str
    latest: int | None
    versions: tuple[PublishedVersion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One replica. `served` has the versions of each policy, `current` what its name means.

    `proof` is the version, `NAME@VERSION`, whose probes it passed last, and by how much one of its
    logprobs differed at most, in nats.
    """

    id: str
    url: str
    state: str
    reason: str
    in_flight: int
    requests: int
    errors: int
    sessions: int
    served: Mapping[str, tuple[int, ...]]
    current: Mapping[str, int]
    proof: tuple[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """All replicas; `desired` is None where the set is fixed."""

    desired: int | None
    replicas: tuple[ReplicaStatus, ...]
    in_flight: int
    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """What one key used of one model in the hour from `hour_s` on (Unix seconds)."""

    hour_s: int
    key_id: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    estimated_tokens: int


class AdminClient:
    """A gateway, asked with a key of scope admin. Raises AdminError where it refuses.

    An AdminError of status 0 says that there was no answer.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        """`url` is the gateway's `http://HOST:PORT`; with `/v1` at its end it is the same."""
        self._client = httpx.Client(
            base_url=url.rstrip("/").removesuffix("/v1"),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=_TIMEOUT_S,
            transport=transport,
        )

    def publish(
        self,
        name: str,
        path: Path | str,
        *,
        version: int | None = None,
        kind: PolicyKind | None = None,
        parent: int | None = None,
        metrics: Mapping[str, float] | None = None,
        swap: SwapMode = SwapMode.WAIT,
        probes: Probes | None = None,
    ) -> PublishedVersion:
        """Make a checkpoint that the gateway can read the newest version; may be repeated.

        Returns when it is safe on disk; `wait_ready` waits for the replicas. With `probes` a
        replica serves it only after it has computed the same logprobs.
        """
        body: dict[str, object] = {
            "name": name,
            "path": str(Path(path).absolute()),
            "version": version,
            "kind": kind,
            "parent": parent,
            "metrics": dict(metrics or {}),
            "swap": swap,
        }
        if probes is not None:
            body["probes"] = probes.to_json()
        return _version(self._ask("POST", "/admin/publish", body, timeout_s=_PUBLISH_TIMEOUT_S))

    def rollback(
        self, name: str, version: int, *, swap: SwapMode = SwapMode.WAIT
    ) -> PublishedVersion:
        """Let a policy's name mean an older version again."""
        body = {"name": name, "version": version, "swap": swap}
        return _version(self._ask("POST", "/admin/rollback", body))

    def prune(self, name: str, versions: Collection[int]) -> PrunedVersions:
        """Delete the weights of versions for good, except of those that are in use."""
        body = {"name": name, "versions": sorted(versions)}
        answer = self._ask("POST", "/admin/policies/prune", body, timeout_s=_PUBLISH_TIMEOUT_S)
        return PrunedVersions(
            versions=tuple(answer["versions"]),
            kept={each["version"]: each["reason"] for each in answer["kept"]},
            freed_bytes=answer["freed_bytes"],
        )

    def wait_ready(
        self, name: str, version: int, *, timeout_s: float = 120.0
    ) -> tuple[ReplicaStatus, ...]:
        """Return the policy's ready replicas when all serve the version; else TimeoutError.

        Where a pool has shrunk to nothing, a request is sent, as a user's would be, to start one.
        """
        deadline_s = time.monotonic() + timeout_s
        refused = ""
        while True:
            replicas = self.pool().replicas
            if not replicas and time.monotonic() < deadline_s:
                refused = self._wake(name, deadline_s - time.monotonic())
            ready = [
                replica
                for replica in replicas
                if replica.state == "ready" and name in replica.served
            ]
            if ready and all(version in replica.served[name] for replica in ready):
                return tuple(ready)
            if time.monotonic() > deadline_s:
                told = "; ".join(_describe(replica, name) for replica in replicas)
                raise TimeoutError(
                    f"{name}@{version} is not live after {timeout_s:.0f} s: "
                    f"{told or refused or 'no replica'}"
                )
            time.sleep(_POLL_S)

    def _wake(self, name: str, timeout_s: float) -> str:
        """Ask for one token, which the gateway holds until a replica is there; say what failed."""
        body = {"model": name, "prompt": ".", "max_tokens": 1}
        try:
            self._ask("POST", "/v1/completions", body, timeout_s)
        except AdminError as error:
            return str(error)  # the deadline ends this, and then it is said
        return ""

    def policies(self) -> tuple[PolicyStatus, ...]:
        """Return all policies and their versions."""
        listed = self._ask("GET", "/admin/policies")["policies"]
        return tuple(
            PolicyStatus(
                name=policy["name"],
                latest=policy["latest"],
                versions=tuple(map(_version, policy["versions"])),
            )
            for policy in listed
        )

    def pool(self) -> PoolStatus:
        """Return all replicas as they are now."""
        return _pool(self._ask("GET", "/admin/pool"))

    def scale(self, replicas: int) -> PoolStatus:
        """Want so many replicas from now on."""
        return _pool(self._ask("POST", "/admin/pool/scale", {"replicas": replicas}))

    def usage(self, since_s: float = 0.0) -> tuple[UsageRow, ...]:
        """Return the ledger from the hour of `since_s` (Unix seconds) on, oldest first."""
        rows = self._ask("GET", f"/admin/usage?since_s={since_s}")["usage"]
        return tuple(UsageRow(**{key: row[key] for key in UsageRow.__slots__}) for row in rows)

    def close(self) -> None:
        """Close its connections; harmless the second time."""
        self._client.close()

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> Any:  # noqa: ANN401  # JSON
        try:
            answer = self._client.request(method, path, json=body, timeout=timeout_s)
        except httpx.HTTPError as error:
            url = f"{str(self._client.base_url).rstrip('/')}{path}"
            raise AdminError(0, f"{url}: {str(error) or type(error).__name__}") from error
        if not answer.is_success:
            raise AdminError(answer.status_code, _message(answer))
        try:
            return answer.json()
        except ValueError as error:
            raise AdminError(answer.status_code, "that is no gateway: not JSON") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _message(answer: httpx.Response) -> str:
    """Return an OpenAI error object's message, or the body's beginning."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]


def _version(values: Mapping[str, Any]) -> PublishedVersion:
    return PublishedVersion(
        name=values["name"],
        version=values["version"],
        kind=PolicyKind(values["kind"]),
        created_s=values["created"],
        parent=values["parent"],
        digest=values["digest"],
        size_bytes=values["size_bytes"],
        metrics=values["metrics"],
        path=values["path"],
        live_on=tuple(values["live_on"]),
    )


def _pool(values: Mapping[str, Any]) -> PoolStatus:
    return PoolStatus(
        desired=values["desired"],
        replicas=tuple(map(_replica, values["replicas"])),
        in_flight=values["demand"]["in_flight"],
        held=values["demand"]["held"],
    )


def _replica(values: Mapping[str, Any]) -> ReplicaStatus:
    plain = "id url state reason in_flight requests errors sessions".split()
    proof = values.get("proof")
    return ReplicaStatus(
        **{key: values[key] for key in plain},
        served={name: tuple(versions) for name, versions in values["served"].items()},
        current=values["current"],
        proof=proof and (proof["label"], proof["difference"]),
    )


def _describe(replica: ReplicaStatus, name: str) -> str:
    reason = f" ({replica.reason})" if replica.reason else ""
    return f"{replica.id} is {replica.state} at {replica.current.get(name)}{reason}"
