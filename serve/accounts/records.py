"""What the store remembers, as plain records. No I/O; times are Unix seconds in UTC."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve.accounts.limits import Limits
from serve.wire import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """An API key without its secret."""

    id: str
    """`ak_` and 8 hexadecimal digits: how the key begins, and no secret."""
    name: str
    scopes: frozenset[Scope]
    limits: Limits
    created_s: float
    changed_s: float
    """When its secret was made: at its creation or its last rotation."""
    revoked_s: float | None = None
    last_used_s: float | None = None
    """Coarse: written at most once a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserInfo:
    """A person who may log in, without the password."""

    name: str
    scopes: frozenset[Scope]
    created_s: float
    changed_s: float
    """When the password or the scopes were last set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that admits a request, as of one moment."""

    epoch: int
    keys: tuple[KeyInfo, ...]
    hashes: Mapping[str, str] = field(repr=False)
    """Of each key, Argon2id of its text. Apart, so that nobody shows it with the key."""
    users: tuple[UserInfo, ...]
    used_tokens: Mapping[str, int]
    """Of each key that was ever used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one key used of one model in one hour."""

    hour_s: int
    """The hour's beginning."""
    key_id: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    estimated_tokens: int
    """How many of those tokens were estimated, because no engine said a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One administrative action: who did what to what, and when."""

    time_s: float
    actor: str
    """`key:ID`, `user:NAME` or `cli:NAME`."""
    action: str
    """Such as `key.create`."""
    target: str
    detail: str
