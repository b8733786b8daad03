"""What is counted, within which bounds, and what the last minute looks like."""

import time
from typing import Any

import pytest

from serve.front.sight.meters import OTHER, Meters

REQUEST: dict[str, Any] = {
    "path": "/v1/chat/completions",
    "status": 200,
    "model": "m",
    "key_id": "ak_1",
    "replica_id": "r0",
    "version": 3,
    "duration_s": 0.5,
    "first_byte_s": 0.1,
    "prompt_tokens": 10,
    "completion_tokens": 4,
    "streamed": True,
}


def test_a_request_is_counted_everywhere() -> None:
    meters = Meters()
    meters.done(**REQUEST)
    meters.done(**{**REQUEST, "status": 502, "completion_tokens": 1})
    route = meters.routes["/v1/chat/completions", 200, "m"]
    assert (route.requests, route.prompt_tokens, route.completion_tokens) == (1, 10, 4)
    assert (sum(route.latency), route.latency_s) == (1, 0.5)
    assert (sum(route.first_token), route.first_token_s) == (1, 0.1)
    assert sum(meters.routes["/v1/chat/completions", 502, "m"].latency) == 0
    key, replica, side = meters.keys["ak_1"], meters.replicas["r0"], meters.versions["m", 3]
    assert (key.requests, key.prompt_tokens, key.completion_tokens) == (2, 20, 5)
    assert (replica.requests, replica.failed) == (side.requests, side.failed) == (2, 1)
    totals = meters.totals()
    assert (totals["requests"], totals["errors"], totals["completion_tokens"]) == (2, 1, 5)


@pytest.mark.parametrize(
    ("change", "latency", "first_token"),
    [
        ({}, 1, 1),
        ({"streamed": False}, 1, 0),
        ({"status": 429}, 0, 0),
        ({"status": 499}, 0, 0),
        ({"status": 503}, 0, 0),
    ],
)
def test_durations_are_of_answers_and_first_tokens_of_streams(
    change: dict[str, object], latency: int, first_token: int
) -> None:
    meters = Meters()
    meters.sample(0.0, 0)
    meters.done(**{**REQUEST, **change})
    meters.sample(1.0, 0)
    window = meters.window()
    assert (window.latency.count, window.first_token.count) == (latency, first_token)


def test_labels_are_bounded() -> None:
    meters = Meters(max_models=3, max_keys=4, max_replicas=5)
    for number in range(2000):
        meters.done(
            **{
                **REQUEST,
                "model": f"m{number}",
                "key_id": f"k{number}",
                "replica_id": f"r{number}",
                "version": number,
            }
        )
        meters.refused(f"reason {number}")
    assert {key[2] for key in meters.routes} == {"m0", "m1", "m2", OTHER}
    assert len(meters.keys) == 5
    assert meters.keys[OTHER].requests == 1996
    assert len(meters.replicas) == 6
    assert len(meters.versions) == 1001
    assert len(meters.refusals) == 101
    assert meters.totals()["requests"] == 2000


def test_a_name_that_nobody_serves_is_no_label() -> None:
    meters = Meters()
    meters.done(**{**REQUEST, "model": "invented", "status": 404, "replica_id": "", "version": 0})
    meters.done(**{**REQUEST, "model": "", "status": 401, "replica_id": "", "version": 0})
    assert {key[2] for key in meters.routes} == {OTHER, ""}
    assert not meters.replicas
    assert not meters.versions


def test_the_window_is_the_last_minute() -> None:
    meters = Meters()
    for second in range(100):
        meters.held = 7 if second == 50 else 0
        meters.sample(float(second), in_flight=second)
        meters.sample(second + 0.5, in_flight=0)  # too early: nothing is remembered
        for _ in range(second):
            meters.done(**{**REQUEST, "status": 500 if second % 10 == 0 else 200})
    rates = meters.window().rates
    assert len(rates) == 60
    assert (rates[-1].at_s, rates[-1].requests, rates[-1].in_flight) == (99.0, 98.0, 99)
    assert (rates[-1].errors, rates[-9].errors) == (0.0, 90.0)
    assert rates[-1].completion_tokens == 98 * 4
    assert meters.held_max == 7
    latency = meters.window().latency
    assert latency.p50_s == pytest.approx(0.5, rel=0.25)


def test_without_samples_there_is_no_window() -> None:
    window = Meters().window()
    assert (window.rates, window.latency.p99_s, window.latency.count) == ((), None, 0)


def test_counting_costs_little() -> None:
    """About 0.8 us; the best of several, and a wide bound, because the machine may be busy."""
    meters = Meters()
    taken = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(2000):
            meters.done(**REQUEST)
        taken.append(time.perf_counter() - start)
    assert min(taken) / 2000 < 5e-6
