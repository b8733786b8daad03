"""Prometheus' text of what the gateway counts and what the engines said. Only reads.

Written here rather than by prometheus_client, whose 5 us a sample would hold the event loop for
50 ms with a thousand replicas; its parser is the oracle in the tests. A family at a time, so that
requests can go on in between.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.registry import CollectorRegistry

from serve.front.sight.histogram import BOUNDS_S, BUCKETS, cumulative
from serve.front.sight.meters import Meters, Route
from serve.pool.base import Demand
from serve.pool.replicas import Replica, ReplicaState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_MAX_ENGINE_METRICS = 64
_BOUNDS = (*(f"{bound:g}" for bound in BOUNDS_S), "+Inf")
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_]")

_Samples = Iterable[tuple[str, float]]
"""Labels as text without braces, and the value."""


def exposition(meters: Meters, replicas: Sequence[Replica], demand: Demand) -> Iterator[str]:
    """Return the text in pieces, each a few whole families."""
    yield from _requests(meters)
    yield from _gateway(meters, demand)
    yield from _traffic(meters)
    yield from _replicas(replicas)
    yield from _engines(replicas)
    yield generate_latest(_PROCESS).decode()


def _process() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


_PROCESS = _process()
"""What the library knows about our own process: memory, CPU, open files."""


def _requests(meters: Meters) -> Iterator[str]:
    routes = list(meters.routes.items())
    yield _family(
        "palaestra_requests_total",
        "counter",
        "Requests that ended; 499 is a client that left.",
        (
            (_labels(path=path, status=str(status), model=model), route.requests)
            for (path, status, model), route in routes
        ),
    )
    tokens: Counter[tuple[str, str]] = Counter()
    groups: dict[tuple[str, str], list[Route]] = {}
    for (path, _, model), route in routes:
        tokens[model, "prompt"] += route.prompt_tokens
        tokens[model, "completion"] += route.completion_tokens
        groups.setdefault((path, model), []).append(route)
    yield _family(
        "palaestra_tokens_total",
        "counter",
        "Tokens of prompts and completions.",
        ((_labels(kind=kind, model=model), count) for (model, kind), count in tokens.items()),
    )
    yield _histogram(
        "palaestra_request_duration_seconds",
        "From a request's last byte to its answer's, of answers below 400.",
        (
            (
                _labels(path=path, model=model),
                _sum(r.latency for r in group),
                sum(r.latency_s for r in group),
            )
            for (path, model), group in groups.items()
        ),
    )
    yield _histogram(
        "palaestra_time_to_first_token_seconds",
        "From a request's last byte to the first of its answer, of streams below 400.",
        (
            (
                _labels(path=path, model=model),
                _sum(r.first_token for r in group),
                sum(r.first_token_s for r in group),
            )
            for (path, model), group in groups.items()
        ),
    )


def _gateway(meters: Meters, demand: Demand) -> Iterator[str]:
    for name, kind, words, value in (
        ("in_flight", "gauge", "Requests on replicas.", demand.in_flight),
        ("held_requests", "gauge", "Requests that wait for a replica.", demand.held),
        ("held_requests_max", "gauge", "The most that were seen waiting.", meters.held_max),
        ("oldest_held_seconds", "gauge", "How long the first of them waits.", demand.oldest_held_s),
        ("connections", "gauge", "Open client connections.", meters.connections),
        ("event_loop_lag_seconds", "gauge", "How late the loop last was.", meters.loop_lag_s),
        ("retries_total", "counter", "Requests sent a second time.", meters.retries),
        ("aborts_total", "counter", "Requests whose client left.", meters.aborts),
        (
            "upstream_failures_total",
            "counter",
            "Replicas lost with a request on them.",
            meters.upstream_failures,
        ),
        ("migrations_total", "counter", "Streams that went on elsewhere.", meters.migrations),
        ("spills_total", "counter", "Sessions moved off a saturated replica.", meters.spills),
        ("swaps_total", "counter", "Weights changed on a replica.", meters.swaps),
    ):
        yield _family(f"palaestra_{name}", kind, words, [("", value)])
    yield _family(
        "palaestra_refused_total",
        "counter",
        "Requests turned away before they were routed.",
        ((_labels(reason=reason), count) for reason, count in list(meters.refusals.items())),
    )


def _traffic(meters: Meters) -> Iterator[str]:
    keys = [(_labels(key=key), traffic) for key, traffic in list(meters.keys.items())]
    yield _family(
        "palaestra_key_requests_total",
        "counter",
        "Requests by the key's id.",
        ((labels, traffic.requests) for labels, traffic in keys),
    )
    yield _family(
        "palaestra_key_tokens_total",
        "counter",
        "Tokens of prompts and completions by the key's id.",
        ((labels, traffic.prompt_tokens + traffic.completion_tokens) for labels, traffic in keys),
    )
    versions = [
        (_labels(model=model, version=str(version)), traffic)
        for (model, version), traffic in list(meters.versions.items())
    ]
    yield _family(
        "palaestra_version_requests_total",
        "counter",
        "Requests by the policy version that answered.",
        ((labels, traffic.requests) for labels, traffic in versions),
    )
    yield _family(
        "palaestra_version_failed_total",
        "counter",
        "Of those, the ones with a status from 500 on.",
        ((labels, traffic.failed) for labels, traffic in versions),
    )


def _replicas(replicas: Sequence[Replica]) -> Iterator[str]:
    counts = Counter(replica.state for replica in replicas)
    yield _family(
        "palaestra_replicas",
        "gauge",
        "Replicas by state.",
        ((_labels(state=state.value), counts[state]) for state in ReplicaState),
    )
    labelled = [(_labels(replica=replica.id), replica) for replica in replicas]
    yield _family(
        "palaestra_replica_state",
        "gauge",
        "1 for the state that a replica is in.",
        ((f'{labels},state="{replica.state.value}"', 1) for labels, replica in labelled),
    )
    for name, kind, words in (
        ("in_flight", "gauge", "Requests on a replica."),
        ("requests", "counter", "Requests ever sent to a replica."),
        ("errors", "counter", "Connections refused or lost, and stalls."),
        ("sessions", "gauge", "Sessions pinned to a replica."),
    ):
        yield _family(
            f"palaestra_replica_{name}" + ("_total" if kind == "counter" else ""),
            kind,
            words,
            ((labels, getattr(replica, name)) for labels, replica in labelled),
        )
    yield _family(
        "palaestra_policy_version",
        "gauge",
        "The version that a policy's bare name means on a replica.",
        (
            (f"{labels},{_labels(policy=policy)}", version)
            for labels, replica in labelled
            for policy, version in list(replica.current.items())
        ),
    )


def _engines(replicas: Sequence[Replica]) -> Iterator[str]:
    """Give what the engines' own /metrics last said."""
    said = [(_labels(replica=replica.id), engine_metrics(replica)) for replica in replicas]
    names = sorted({name for _, metrics in said for name in metrics})
    for name in names[:_MAX_ENGINE_METRICS]:
        yield _family(
            f"palaestra_engine_{_NOT_IN_NAMES.sub('_', name)}",
            "gauge",
            "As the engine last said it.",
            ((labels, metrics[name]) for labels, metrics in said if name in metrics),
        )


def engine_metrics(replica: Replica) -> dict[str, float]:
    """Return what a replica's engine last said, and the share of its prefix cache's hits."""
    metrics = dict(replica.metrics)
    queries = metrics.get("prefix_cache_queries", 0.0)
    if queries > 0:
        metrics["prefix_cache_hit_rate"] = metrics.get("prefix_cache_hits", 0.0) / queries
    return metrics


def _family(name: str, kind: str, words: str, samples: _Samples) -> str:
    lines = [f"# HELP {name} {words}\n# TYPE {name} {kind}\n"]
    lines += [
        f"{name}{{{labels}}} {value}\n" if labels else f"{name} {value}\n"
        for labels, value in samples
    ]
    return "".join(lines)


def _histogram(
    name: str, words: str, histograms: Iterable[tuple[str, Sequence[int], float]]
) -> str:
    lines = [f"# HELP {name} {words}\n# TYPE {name} histogram\n"]
    for labels, counts, total_s in histograms:
        sums = cumulative(counts)
        lines += [
            f'{name}_bucket{{{labels},le="{bound}"}} {count}\n'
            for bound, count in zip(_BOUNDS, sums, strict=True)
        ]
        lines.append(f"{name}_sum{{{labels}}} {total_s}\n{name}_count{{{labels}}} {sums[-1]}\n")
    return "".join(lines)


def _sum(histograms: Iterable[Sequence[int]]) -> list[int]:
    total = [0] * BUCKETS
    for counts in histograms:
        total = [a + b for a, b in zip(total, counts, strict=True)]
    return total


def _labels(**labels: str) -> str:
    return ",".join([f'{name}="{_escaped(value)}"' for name, value in labels.items()])


def _escaped(text: str) -> str:
    if '"' in text or "\\" in text or "\n" in text:
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return text
