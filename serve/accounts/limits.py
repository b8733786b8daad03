"""How much an account may do: requests and tokens a minute, requests at once, tokens in all.

Pure: no I/O, and the clock is passed in, in seconds of any monotonic clock (never a wall clock,
which may jump). `admit` and `release` are on the way of every request, so they are integers, floats
and slots only.

What holds exactly, for one account in one process:
- Requests: a request is refused if and only if as many as the limit were admitted in the last 60 s.
  Refused ones do not count. A limit above 65,536 is kept in batches, one for each 65,536 of it:
  still never more than the limit in any 60 s, but up to two batches fewer (0.004 %).
- Requests at once: never more than the limit, and a refusal means that many are in flight.
- Tokens: a full bucket holds one minute's tokens and refills evenly. They are charged when a
  request ends, because nobody knows them before, so the bucket may go into debt; nothing is
  admitted until something is in it again. Over T seconds never more than limit * (1 + T / 60), and
  what the requests in flight at the last admission add.
- Budget: nothing is admitted once it is used up; requests in flight then may overdraw it.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, fields

from serve.errors import ConfigError
from serve.wire import Scope, error_body

_WINDOW_S = 60.0
_MAX_SLOTS = 65_536
"""Times kept for one account at most: 2 MiB."""
_MOST = (1 << 62) - 1
"""No limit: more than anything can count to, and what a database can hold."""
_AT_ONCE = (1 << 30) - 1
"""No limit on requests at once: the largest that the interpreter compares fast."""

_INCLUDES = {
    Scope.INFER: frozenset({Scope.INFER}),
    Scope.EVAL: frozenset({Scope.EVAL, Scope.INFER}),
    Scope.TRAIN: frozenset({Scope.TRAIN, Scope.INFER}),
    Scope.ADMIN: frozenset(Scope),
}


def grants_of(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """Return all that these scopes allow: train and eval may infer, admin may everything."""
    return frozenset().union(*(_INCLUDES[scope] for scope in scopes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a key may use. None is no limit."""

    rpm: int | None = None
    """Requests in any 60 seconds."""
    tpm: int | None = None
    """Tokens a minute, of prompts and completions together."""
    concurrency: int | None = None
    """Requests in flight."""
    budget_tokens: int | None = None
    """Tokens in all, of prompts and completions together, for the life of the key."""

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and not 0 < value <= _MOST:
                raise ConfigError(f"{limit.name} must be at least 1, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """Why a request is not let in, in OpenAI's words."""

    message: str
    code: str
    kind: str
    """OpenAI's `type` of the error."""
    retry_after_s: float | None = None
    status: int = 429

    @property
    def retry_after(self) -> int | None:
        """Whole seconds for a Retry-After header: never too early, and at least 1."""
        return None if self.retry_after_s is None else max(1, math.ceil(self.retry_after_s))

    def body(self) -> bytes:
        """Return OpenAI's error object as JSON."""
        return error_body(self.message, status=self.status, kind=self.kind, code=self.code)


class Account:
    """A key as the gateway sees it: what it may do, and what it is doing. Compare by identity.

    One account lives as long as its key, through rotations, so that its counts are never lost.
    Everything runs on one event loop, so nobody locks.
    """

    __slots__ = (
        "_batch",
        "_budget",
        "_max_in_flight",
        "_slots",
        "_spare",
        "_times",
        "_token_s",
        "_tokens_open_s",
        "grants",
        "id",
        "in_flight",
        "limits",
        "name",
        "requests",
        "scopes",
        "used_tokens",
    )

    def __init__(
        self,
        id_: str,
        name: str,
        scopes: Iterable[Scope],
        limits: Limits,
        *,
        used_tokens: int = 0,
    ) -> None:
        self.id = id_
        self.name = name
        self.scopes = frozenset(scopes)
        self.grants = grants_of(self.scopes)
        self.limits = limits
        self.in_flight = 0
        self.requests = 0
        """Requests ever admitted by this process."""
        self.used_tokens = used_tokens
        """Tokens ever used, those of earlier processes included."""
        self._max_in_flight = limits.concurrency or _AT_ONCE
        self._budget = limits.budget_tokens or _MOST
        rpm = limits.rpm or 0
        self._batch = max(1, math.ceil(rpm / _MAX_SLOTS))
        self._slots = (rpm + 1) // self._batch - 1  # the newest batch may outlive its first time
        self._times: deque[float] = deque(maxlen=self._slots)
        """When the newest batches began; a batch is one request but for very high limits."""
        self._spare = 0
        """Requests that the newest batch still covers."""
        self._token_s = _WINDOW_S / limits.tpm if limits.tpm else 0.0
        self._tokens_open_s = -math.inf
        """When the bucket of tokens holds half a one: whole ones are then told apart exactly."""

    def may(self, scope: Scope) -> bool:
        """Whether what needs `scope` is allowed."""
        return scope in self.grants

    def admit(self, now_s: float) -> Denied | None:
        """Count a request in and return None, or return why it is refused."""
        if self.in_flight >= self._max_in_flight:
            return self._too_many()
        if now_s < self._tokens_open_s:
            return self._too_many_tokens(self._tokens_open_s - now_s)
        if self.used_tokens >= self._budget:
            return self._used_up()
        if self._slots:
            if self._spare:
                self._spare -= 1
            else:
                times = self._times
                if len(times) == self._slots and now_s < times[0] + _WINDOW_S:
                    return self._too_fast(times[0] + _WINDOW_S - now_s)
                times.append(now_s)
                self._spare = self._batch - 1
        self.in_flight += 1
        self.requests += 1
        return None

    def release(self, now_s: float, tokens: int) -> None:
        """Count an admitted request out, exactly once, with its prompt's and completion's tokens.

        Raises RuntimeError for one release too many: a fault of the caller, never a negative count.
        """
        if not self.in_flight:
            raise RuntimeError(f"{self.id}: released more requests than were admitted")
        self.in_flight -= 1
        self.used_tokens += tokens
        if self._token_s:
            full_s = now_s - _WINDOW_S + self._token_s / 2
            open_s = self._tokens_open_s
            self._tokens_open_s = (open_s if open_s > full_s else full_s) + tokens * self._token_s

    def __repr__(self) -> str:
        return f"<Account {self.id} in_flight={self.in_flight} used_tokens={self.used_tokens}>"

    def _too_many(self) -> Denied:
        return Denied(
            message=f"This key may have {self.limits.concurrency} requests in flight, and has. "
            "Wait for one to finish.",
            code="concurrency_limit_exceeded",
            kind="requests",
            retry_after_s=1.0,
        )

    def _too_many_tokens(self, retry_after_s: float) -> Denied:
        return Denied(
            message=f"This key may use {self.limits.tpm} tokens a minute, and has. "
            f"Try again in {retry_after_s:.3g} s.",
            code="rate_limit_exceeded",
            kind="tokens",
            retry_after_s=retry_after_s,
        )

    def _too_fast(self, retry_after_s: float) -> Denied:
        return Denied(
            message=f"This key may send {self.limits.rpm} requests a minute, and has. "
            f"Try again in {retry_after_s:.3g} s.",
            code="rate_limit_exceeded",
            kind="requests",
            retry_after_s=retry_after_s,
        )

    def _used_up(self) -> Denied:
        return Denied(
            message=f"This key's budget of {self.limits.budget_tokens} tokens is used up. "
            "Ask for a larger one.",
            code="insufficient_quota",
            kind="insufficient_quota",
        )
