"""What the gateway counts: plain integers on one event loop, read when somebody looks.

A finished request costs about a microsecond. Every set of labels is bounded: what comes after the
bound is counted as `other`. Knows no prometheus, no HTTP, no clock: `sample` is told the time.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from serve.front.sight.histogram import BUCKETS, bucket, percentile_s

_Label = TypeVar("_Label", bound=Hashable)

OTHER = "other"
"""The label of everything beyond a bound."""
WINDOW_S = 60
"""How far back `window` looks, in samples of a second."""
_SAMPLE_S = 0.95
_MAX_VERSIONS = 1000
_MAX_REASONS = 100


class Route:
    """The counts of one path, status and model."""

    __slots__ = (
        "completion_tokens",
        "first_token",
        "first_token_s",
        "latency",
        "latency_s",
        "prompt_tokens",
        "requests",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.latency = [0] * BUCKETS
        self.latency_s = 0.0
        self.first_token = [0] * BUCKETS
        self.first_token_s = 0.0


class Traffic:
    """The requests and tokens of one key, replica or version."""

    __slots__ = ("completion_tokens", "failed", "prompt_tokens", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        """Those that ended with a status from 500 on."""
        self.prompt_tokens = 0
        self.completion_tokens = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Of the durations in a window, in seconds; None where there were none."""

    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    count: int

    @classmethod
    def of(cls, counts: list[int]) -> "Percentiles":
        """Read them off a histogram."""
        return cls(
            p50_s=percentile_s(counts, 0.5),
            p90_s=percentile_s(counts, 0.9),
            p99_s=percentile_s(counts, 0.99),
            count=sum(counts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What happened in the second before `at_s`, each in units per second."""

    at_s: float
    requests: float
    errors: float
    prompt_tokens: float
    completion_tokens: float
    in_flight: int
    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The last minute: a rate for each second, and percentiles over all of it."""

    rates: tuple[Rate, ...]
    latency: Percentiles
    first_token: Percentiles


@dataclass(frozen=True, slots=True)
class _Sample:
    """All counts at one moment; differences of two are what happened in between."""

    at_s: float
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    in_flight: int
    held: int
    latency: list[int]
    first_token: list[int]


class Meters:
    """All counts of one gateway."""

    def __init__(
        self, *, max_models: int = 100, max_keys: int = 1000, max_replicas: int = 1000
    ) -> None:
        self.retries = 0
        """Requests sent a second time, to the same replica or another."""
        self.aborts = 0
        """Requests whose client left before the end of the answer."""
        self.upstream_failures = 0
        """Replicas lost with a request on them."""
        self.migrations = 0
        """Streams that went on on another replica, after theirs was lost."""
        self.spills = 0
        """Sessions sent away from their replica because it was saturated."""
        self.swaps = 0
        """Weights changed on a replica."""
        self.held = 0
        """Requests that wait for a replica now."""
        self.held_max = 0
        """The most that were ever seen waiting."""
        self.connections = 0
        """Open client connections."""
        self.loop_lag_s = 0.0
        """How late the event loop last was."""
        self.refusals: dict[str, int] = {}
        """Reason -> requests refused before they were routed."""
        self.routes: dict[tuple[str, int, str], Route] = {}
        """(path, status, model) -> counts."""
        self.keys: dict[str, Traffic] = {}
        self.replicas: dict[str, Traffic] = {}
        self.versions: dict[tuple[str, int], Traffic] = {}
        """(model, version) -> counts, to compare the two sides of a canary."""
        self._models: set[str] = set()
        self._max_models = max_models
        self._max_keys = max_keys
        self._max_replicas = max_replicas
        self._latency = [0] * BUCKETS
        self._first_token = [0] * BUCKETS
        self._samples: deque[_Sample] = deque(maxlen=WINDOW_S + 1)

    def done(
        self,
        *,
        path: str,
        status: int,
        model: str,
        key_id: str,
        replica_id: str,
        version: int,
        duration_s: float,
        first_byte_s: float,
        prompt_tokens: int,
        completion_tokens: int,
        streamed: bool,
    ) -> None:
        """Count a request that has ended.

        Durations are kept of answers with a status below 400; the time to the first token of
        streams only, because other answers come in one piece.
        """
        route = self.routes.get((path, status, model))
        if route is None:
            route = self._new_route(path, status, model, routed=bool(replica_id))
        route.requests += 1
        route.prompt_tokens += prompt_tokens
        route.completion_tokens += completion_tokens
        if status < 400:
            self._answered(route, duration_s, first_byte_s if streamed else None)
        key = self.keys.get(key_id) or _enter(self.keys, key_id, self._max_keys, OTHER)
        key.requests += 1
        key.prompt_tokens += prompt_tokens
        key.completion_tokens += completion_tokens
        if not replica_id:
            return
        replica = self.replicas.get(replica_id)
        if replica is None:
            replica = _enter(self.replicas, replica_id, self._max_replicas, OTHER)
        side = self.versions.get((model, version))
        if side is None:
            side = _enter(self.versions, (model, version), _MAX_VERSIONS, (OTHER, 0))
        replica.requests += 1
        side.requests += 1
        replica.completion_tokens += completion_tokens
        side.completion_tokens += completion_tokens
        if status >= 500:
            replica.failed += 1
            side.failed += 1

    def refused(self, reason: str) -> None:
        """Count a request that was turned away before it was routed."""
        if reason not in self.refusals and len(self.refusals) >= _MAX_REASONS:
            reason = OTHER
        self.refusals[reason] = self.refusals.get(reason, 0) + 1

    def sample(self, now_s: float, in_flight: int) -> None:
        """Remember all counts, at most once a second; `now_s` is any monotonic clock's.

        To be called every second or oftener: what the window shows is what it was told.
        """
        self.held_max = max(self.held_max, self.held)
        if self._samples and now_s - self._samples[-1].at_s < _SAMPLE_S:
            return
        totals = self.totals()
        self._samples.append(
            _Sample(
                at_s=now_s,
                requests=totals["requests"],
                errors=totals["errors"],
                prompt_tokens=totals["prompt_tokens"],
                completion_tokens=totals["completion_tokens"],
                in_flight=in_flight,
                held=self.held,
                latency=self._latency.copy(),
                first_token=self._first_token.copy(),
            )
        )

    def window(self) -> Window:
        """Return the last minute, as far as it was sampled."""
        if not self._samples:
            empty = Percentiles.of([0] * BUCKETS)
            return Window(rates=(), latency=empty, first_token=empty)
        first, last = self._samples[0], self._samples[-1]
        return Window(
            rates=tuple(_rate(old, new) for old, new in pairwise(self._samples)),
            latency=Percentiles.of(_difference(first.latency, last.latency)),
            first_token=Percentiles.of(_difference(first.first_token, last.first_token)),
        )

    def totals(self) -> dict[str, int]:
        """Return the counts since the start that say how things are going."""
        routes = self.routes.items()
        return {
            "requests": sum(route.requests for _, route in routes),
            "errors": sum(route.requests for key, route in routes if key[1] >= 500),
            "prompt_tokens": sum(route.prompt_tokens for _, route in routes),
            "completion_tokens": sum(route.completion_tokens for _, route in routes),
            "retries": self.retries,
            "aborts": self.aborts,
            "upstream_failures": self.upstream_failures,
            "migrations": self.migrations,
            "spills": self.spills,
            "swaps": self.swaps,
        }

    def _answered(self, route: Route, duration_s: float, first_token_s: float | None) -> None:
        index = bucket(duration_s)
        route.latency[index] += 1
        route.latency_s += duration_s
        self._latency[index] += 1
        if first_token_s is not None:
            index = bucket(first_token_s)
            route.first_token[index] += 1
            route.first_token_s += first_token_s
            self._first_token[index] += 1

    def _new_route(self, path: str, status: int, model: str, *, routed: bool) -> Route:
        """Return where to count. A name that no replica serves never becomes a label."""
        if model and model not in self._models:
            if routed and len(self._models) < self._max_models:
                self._models.add(model)
            else:
                model = OTHER
        return self.routes.setdefault((path, status, model), Route())


def _enter(table: dict[_Label, Traffic], label: _Label, most: int, other: _Label) -> Traffic:
    """Return the counts of a label that is not in the table yet, or those of all that are over."""
    return table.setdefault(label if len(table) < most else other, Traffic())


def _difference(old: list[int], new: list[int]) -> list[int]:
    return [after - before for before, after in zip(old, new, strict=True)]


def _rate(old: _Sample, new: _Sample) -> Rate:
    seconds = new.at_s - old.at_s
    return Rate(
        at_s=new.at_s,
        requests=(new.requests - old.requests) / seconds,
        errors=(new.errors - old.errors) / seconds,
        prompt_tokens=(new.prompt_tokens - old.prompt_tokens) / seconds,
        completion_tokens=(new.completion_tokens - old.completion_tokens) / seconds,
        in_flight=new.in_flight,
        held=new.held,
    )
