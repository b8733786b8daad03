"""Who is logged in to the dashboard: random tokens for people, in memory, bounded. No I/O.

A restart logs everybody out. Tokens are kept as digests only.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from serve.accounts.limits import grants_of
from serve.wire import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody who proved who they are."""

    actor: str
    """`key:ID` or `user:NAME`, as the audit log has it."""
    grants: frozenset[Scope]
    since_s: float
    """When the secret that proved it was made, in Unix time."""
    expires_s: float

    def may(self, scope: Scope) -> bool:
        """Whether what needs `scope` is allowed."""
        return scope in self.grants


class Sessions:
    """The sessions of this process. The oldest goes when there are too many."""

    def __init__(
        self,
        *,
        lifetime_s: float = 12 * 3600.0,
        max_sessions: int = 1_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._lifetime_s = lifetime_s
        self._max_sessions = max_sessions
        self._clock = clock
        self._sessions: dict[bytes, Session] = {}

    def begin(self, actor: str, scopes: frozenset[Scope], since_s: float) -> tuple[str, Session]:
        """Start a session on a secret made at `since_s`; return its token, for a cookie."""
        token = secrets.token_urlsafe(32)
        session = Session(
            actor=actor,
            grants=grants_of(scopes),
            since_s=since_s,
            expires_s=self._clock() + self._lifetime_s,
        )
        if len(self._sessions) >= self._max_sessions:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[_digest(token)] = session
        return token, session

    def find(self, token: str) -> Session | None:
        """Return the session of a token, unless it ended or expired."""
        digest = _digest(token)
        session = self._sessions.get(digest)
        if session is None or session.expires_s > self._clock():
            return session
        del self._sessions[digest]
        return None

    def end(self, token: str) -> None:
        """End a session, if there is one."""
        self._sessions.pop(_digest(token), None)

    def keep(self, changed_s: Mapping[str, float]) -> None:
        """End all sessions but those of these actors, begun on the secret that they still have."""
        self._sessions = {
            digest: session
            for digest, session in self._sessions.items()
            if changed_s.get(session.actor) == session.since_s
        }

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._sessions)


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
