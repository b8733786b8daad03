"""What the control plane works on, as ports. Knows no HTTP and no instance.

`serve.up` puts the real ones in, tests put fakes in.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from serve.accounts.limits import Account, Denied, Limits
from serve.accounts.records import AuditEntry, KeyInfo, Usage
from serve.accounts.sessions import Session, Sessions
from serve.front.sight.meters import Meters
from serve.policies.manifest import PolicyInfo
from serve.policies.pruning import Pruned
from serve.pool.base import Pool
from serve.wire import PolicyKind, Probes, Scope, SwapMode


class Auth(Protocol):
    """Who asks; `serve.accounts.auth.Auth` is one."""

    sessions: Sessions

    @property
    def open(self) -> bool:
        """Whether nobody needs a key."""

    @property
    def accounts(self) -> dict[str, Account]:
        """The accounts of all keys that are not revoked, by id."""

    @property
    def known(self) -> Callable[[bytes | None], Account | None]:
        """Return the account of an Authorization header that was proven before."""

    async def verify(self, header: bytes | None, source: str) -> Account | Denied:
        """Prove a header."""

    async def login(self, user: str, password: str, source: str) -> tuple[str, Session] | Denied:
        """Begin a session for a user."""

    async def login_with_key(self, key: str, source: str) -> tuple[str, Session] | Denied:
        """Begin a session for whoever has a key."""

    async def reload(self) -> None:
        """See at once what this process itself changed."""


class Accounts(Protocol):
    """What is kept of keys; `serve.accounts.store.AccountStore` is one. Called in threads."""

    def create_key(
        self, name: str, scopes: Sequence[Scope], limits: Limits, *, actor: str
    ) -> tuple[KeyInfo, str]:
        """Make a key; return it and its text."""

    def keys(self) -> list[KeyInfo]:
        """Return all keys, revoked ones too."""

    def revoke(self, key_id: str, *, actor: str) -> KeyInfo:
        """End a key for good."""

    def rotate(self, key_id: str, *, actor: str) -> str:
        """Give a key a new secret; return its text."""

    def usage(self, since_s: float = 0.0) -> list[Usage]:
        """Return what was used, oldest first."""

    def audit(self, actor: str, action: str, target: str, detail: str = "") -> None:
        """Note an administrative action."""

    def audit_log(self, limit: int = 100) -> list[AuditEntry]:
        """Return the newest actions, the newest first."""


class Policies(Protocol):
    """What is published; `serve.policies.store.PolicyStore` is one. Called in threads."""

    def publish(
        self,
        name: str,
        checkpoint: Path,
        *,
        version: int | None = None,
        kind: PolicyKind | None = None,
        parent: int | None = None,
        metrics: Mapping[str, float] | None = None,
        probes: Probes | None = None,
        swap: SwapMode = SwapMode.WAIT,
    ) -> PolicyInfo:
        """Make a checkpoint the newest version."""

    def prune(self, name: str, versions: Collection[int]) -> Pruned:
        """Delete the weights of versions that are not in use."""

    def rollback(self, name: str, version: int, *, swap: SwapMode = SwapMode.WAIT) -> PolicyInfo:
        """Make an older version the newest again."""

    def policies(self) -> Sequence[str]:
        """Return all names."""

    def versions(self, name: str) -> Sequence[PolicyInfo]:
        """Return all versions of a name, oldest first."""

    def latest(self, name: str) -> int | None:
        """Return what the bare name means."""


class Sync(Protocol):
    """Brings replicas to the current versions; `serve.policies.sync.Sync` is one."""

    async def converge(self, name: str, swap: SwapMode) -> None:
        """Do so one replica after the other."""


def _no_aliases() -> Mapping[str, str]:
    return {}


def _fixed() -> int | None:
    return None


def _always_secure(source: str, headers: list[tuple[bytes, bytes]]) -> bool:  # noqa: ARG001
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that the control plane reads and changes."""

    pool: Pool
    policies: Policies
    sync: Sync
    store: Accounts
    auth: Auth
    meters: Meters
    aliases: Callable[[], Mapping[str, str]] = _no_aliases
    """Alias -> NAME or NAME@VERSION; asked each time, because rules are reloaded."""
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Policy name -> the engine's own model card; filled by whoever probes the engines."""
    is_secure: Callable[[str, list[tuple[bytes, bytes]]], bool] = _always_secure
    """Whether nobody on the way could read a request, from its source and headers."""
    desired: Callable[[], int | None] = _fixed
    """How many replicas there shall be; None where the set is fixed."""
    trusts_edge: bool = False
    """Whether somebody in front of the gateway proves who asks, so that no key is needed."""
    gpu_available: bool = False
    version: str = "0"
    """Of this package."""
