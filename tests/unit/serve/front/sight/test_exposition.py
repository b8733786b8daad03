"""The text that Prometheus gets, read by prometheus_client's own parser."""

import time

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from serve.front.sight.exposition import exposition
from serve.front.sight.meters import Meters
from serve.pool.base import Demand
from serve.pool.replicas import Replica, ReplicaState

CHAT = "/v1/chat/completions"
NASTY = 'a"b\\c\nd{}, é'


def _filled(*, replicas: int, model: str = "m", version: int = 3) -> tuple[Meters, list[Replica]]:
    meters = Meters()
    made = []
    for number in range(replicas):
        replica = Replica(f"r{number}", "127.0.0.1", 9000)
        replica.state = ReplicaState.READY
        replica.current = {model: version}
        replica.metrics = {"prefix_cache_queries": 8.0, "prefix_cache_hits": 6.0, "running": 2.0}
        made.append(replica)
        meters.done(
            path=CHAT,
            status=200,
            model=model,
            key_id=f"k{number}",
            replica_id=replica.id,
            version=version,
            duration_s=0.003,
            first_byte_s=0.001,
            prompt_tokens=10,
            completion_tokens=4,
            streamed=True,
        )
    return meters, made


def _families(meters: Meters, replicas: list[Replica]) -> dict[str, Metric]:
    text = "".join(exposition(meters, replicas, Demand(in_flight=5, held=2)))
    found = list(text_string_to_metric_families(text))
    assert len({family.name for family in found}) == len(found)
    return {family.name: family for family in found}


def _value(family: Metric, name: str, **labels: str) -> float:
    (sample,) = (s for s in family.samples if s.name == name and s.labels == labels)
    return sample.value


def test_every_family_is_there_and_right() -> None:
    meters, replicas = _filled(replicas=2)
    meters.retries, meters.aborts = 3, 4
    meters.refused("held_full")
    replicas[1].state = ReplicaState.DOWN
    families = _families(meters, replicas)
    for name, value, labels in [
        ("palaestra_requests_total", 2, {"path": CHAT, "status": "200", "model": "m"}),
        ("palaestra_tokens_total", 20, {"kind": "prompt", "model": "m"}),
        ("palaestra_tokens_total", 8, {"kind": "completion", "model": "m"}),
        ("palaestra_in_flight", 5, {}),
        ("palaestra_held_requests", 2, {}),
        ("palaestra_retries_total", 3, {}),
        ("palaestra_aborts_total", 4, {}),
        ("palaestra_refused_total", 1, {"reason": "held_full"}),
        ("palaestra_replicas", 1, {"state": "down"}),
        ("palaestra_replicas", 0, {"state": "draining"}),
        ("palaestra_replica_state", 1, {"replica": "r1", "state": "down"}),
        ("palaestra_policy_version", 3, {"policy": "m", "replica": "r0"}),
        ("palaestra_key_tokens_total", 14, {"key": "k0"}),
        ("palaestra_version_requests_total", 2, {"model": "m", "version": "3"}),
        ("palaestra_engine_prefix_cache_hit_rate", 0.75, {"replica": "r0"}),
        ("palaestra_engine_running", 2, {"replica": "r1"}),
    ]:  # fmt: skip
        assert _value(families[name.removesuffix("_total")], name, **labels) == value, name


def test_histograms_are_cumulative() -> None:
    meters, replicas = _filled(replicas=3)
    family = _families(meters, replicas)["palaestra_request_duration_seconds"]
    name = "palaestra_request_duration_seconds"
    labels = {"path": CHAT, "model": "m"}
    assert _value(family, f"{name}_bucket", le="0.002", **labels) == 0
    assert _value(family, f"{name}_bucket", le="0.004", **labels) == 3
    assert _value(family, f"{name}_bucket", le="+Inf", **labels) == 3
    assert _value(family, f"{name}_count", **labels) == 3
    assert abs(_value(family, f"{name}_sum", **labels) - 0.009) < 1e-9


def test_names_from_outside_are_escaped() -> None:
    families = _families(*_filled(replicas=1, model=NASTY))
    labels = {"kind": "prompt", "model": NASTY}
    assert _value(families["palaestra_tokens"], "palaestra_tokens_total", **labels) == 10


def test_nothing_at_all_is_fine() -> None:
    assert "palaestra_requests" in _families(Meters(), [])


def test_a_thousand_replicas_cost_little() -> None:
    """About 7 ms, in pieces of less than one; a wide bound, because the machine may be busy."""
    meters, replicas = _filled(replicas=1000)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        assert len("".join(exposition(meters, replicas, Demand()))) > 300_000
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.05
