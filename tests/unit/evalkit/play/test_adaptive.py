"""The search for the best number of calls: on simulated servers, by hand, and what cuts it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import CallFailed
from evalkit.play.adaptive import START, AdaptiveLimit, Gauges
from evalkit.play.calls import refusal
from evalkit.play.gate import Gate
from evalkit.play.policy import Completion
from evalkit.play.throughput import Reading, Window
from evalkit.simulated import (
    Distant,
    Fitful,
    Queueing,
    Refusing,
    SimulatedServer,
    now_s,
    run_simulated,
)

CALLERS = 300


async def load(
    server: SimulatedServer,
    limit: AdaptiveLimit,
    lasting_s: float,
    then: Callable[[], Awaitable[object]] | None = None,
) -> float:
    """Ask without end through a gate, whatever `then` does; return answers/s."""
    gate = Gate(limit, clock=now_s)
    answered = 0

    async def attempt() -> Completion:
        response = await server.post("", b"", timeout_s=60.0)
        if response.status != 200:
            failure = refusal(response, "model")
            assert isinstance(failure, CallFailed)
            raise failure
        return Completion(text="")

    async def caller() -> None:
        nonlocal answered
        while True:
            try:
                await gate.call(0, attempt)
                answered += 1
            except CallFailed as failure:
                await asyncio.sleep(failure.retry_after_s or 0.0)

    callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
    if then is None:
        await asyncio.sleep(lasting_s)
    else:
        await then()
    for each in callers:
        each.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert limit.in_flight == 0
    return answered / lasting_s


class Pinned(AdaptiveLimit):
    """A level that was chosen by hand: nothing is learned."""

    def __init__(self, level: int) -> None:
        super().__init__(start=level, highest=level)

    def answered(self, began_s: float, now_s: float, tokens: int | None) -> None:
        self.left(now_s)

    def refused(self, now_s: float, retry_after_s: float | None) -> None:
        self.left(now_s)


def measure(server: SimulatedServer, limit: AdaptiveLimit, lasting_s: float) -> float:
    return run_simulated(load(server, limit, lasting_s))


@pytest.mark.parametrize(
    ("make", "lasting_s", "by_hand", "best"),
    [
        (partial(Queueing, full_s=1.0), 200.0, (16, 32, 128), 32),
        (partial(Refusing, takes=12, latency_s=1.0), 200.0, (6, 12), 12),
        (partial(Distant, latency_s=2.0), 250.0, (32, 64), 64),
    ],
)
def test_it_comes_within_5_percent_of_the_best_by_hand(
    make: Callable[[], SimulatedServer], lasting_s: float, by_hand: tuple[int, ...], best: int
) -> None:
    rates = {level: measure(make(), Pinned(level), 60.0) for level in by_hand}
    assert rates[best] == max(rates.values())
    limit = AdaptiveLimit(highest=64)
    server = make()
    assert measure(server, limit, lasting_s) > 0.95 * rates[best]
    assert server.most <= 64


def test_it_finds_what_a_server_takes_and_hardly_asks_for_more() -> None:
    server, limit = Refusing(takes=11, latency_s=1.0), AdaptiveLimit(start=16)
    answers_per_s = measure(server, limit, 200.0)
    assert limit.settled == 11
    assert server.refused < 0.01 * answers_per_s * 200


def test_it_notices_that_a_server_takes_more_or_less_than_before() -> None:
    server, limit = Refusing(takes=20, latency_s=0.5), AdaptiveLimit(highest=64)
    settled = []

    async def changes() -> None:
        for takes, lasting_s in ((20, 30.0), (6, 30.0), (48, 300.0)):
            server.takes = takes
            await asyncio.sleep(lasting_s)
            settled.append(limit.settled)

    run_simulated(load(server, limit, 1.0, changes))
    assert settled[:2] == [20, 6]
    assert 0.9 * 48 <= settled[2] <= 48


def test_it_follows_a_server_that_becomes_faster() -> None:
    server = Queueing(slots=8, full_s=1.0, knee=1000)
    limit = AdaptiveLimit(start=16, highest=128)
    before: list[int] = []

    async def grows() -> None:
        await asyncio.sleep(60.0)
        before.append(limit.settled)
        server.resize(100)
        await asyncio.sleep(200.0)

    run_simulated(load(server, limit, 1.0, grows))
    assert before[0] <= 70
    assert limit.settled >= 0.95 * 100


def test_two_doublings_that_gain_nothing_are_taken_and_no_more() -> None:
    server, limit = Queueing(slots=8, full_s=0.5, knee=1000), AdaptiveLimit(start=16)
    measure(server, limit, 60.0)
    assert server.most == limit.settled == 64


@pytest.mark.parametrize("seed", range(5))
def test_fits_of_a_server_do_not_keep_it_down(seed: int) -> None:
    server, limit = Fitful(slots=128, seed=seed), AdaptiveLimit(start=32, highest=256)
    measure(server, limit, 60.0)
    assert limit.settled >= 0.9 * 128


SLUMP = {8: 16.0, 16: 16.0, 32: 10.0}


def test_one_slump_of_twice_the_calls_is_not_believed() -> None:
    limit = AdaptiveLimit(start=16, highest=32)
    reached(32, limit, SLUMP)
    reached(16, limit, SLUMP)
    reached(32, limit, {16: 16.0, 32: 16.0})
    while limit.settled == 16:
        answer_oldest(limit, 16.0)
    assert (limit.limit, limit.settled) == (32, 32)


def test_twice_the_calls_are_given_up_after_two_slumps_and_fewer_are_tried() -> None:
    limit = AdaptiveLimit(start=16, highest=32)
    for level in (32, 16, 32, 16, 8):
        reached(level, limit, SLUMP)
        assert limit.settled == 16


def reached(level: int, limit: AdaptiveLimit, calls_per_s: dict[int, float]) -> None:
    """Answer, as fast as each limit is good for, until the limit is another, which is `level`."""
    before = limit.limit
    while limit.limit == before:
        answer_oldest(limit, calls_per_s[before])
    assert limit.limit == level


def answer_oldest(limit: AdaptiveLimit, calls_per_s: float) -> None:
    """Answer the call that is out longest, a moment later, with as many out as there may be."""
    full(limit)
    lasts_s = limit.in_flight / calls_per_s
    now_s = limit._now_s + 1 / calls_per_s
    limit.answered(now_s - lasts_s, now_s, None)


def full(limit: AdaptiveLimit) -> AdaptiveLimit:
    """Put as many calls in flight as there may be."""
    for _ in range(limit.limit - limit.in_flight):
        limit.began(limit._now_s)
    return limit


def test_a_server_that_refuses_some_is_asked_for_what_it_holds() -> None:
    limit = full(AdaptiveLimit(start=32))
    for _ in range(8):
        limit.refused(0.1, 1.0)
    assert (limit.limit, limit.settled, limit.in_flight) == (24, 24, 24)


def test_it_halves_at_most_until_a_later_call_is_answered() -> None:
    limit = full(AdaptiveLimit(start=32))
    for _ in range(20):
        limit.refused(1.0, None)
    assert limit.limit == 16
    limit.answered(0.5, 2.0, None)
    limit.refused(2.0, None)
    assert limit.limit == 16
    full(limit)
    limit.answered(1.5, 3.0, None)
    for _ in range(15):
        limit.refused(3.0, None)
    assert limit.limit == 8


def test_a_refused_level_is_left_alone_as_long_as_the_server_asks() -> None:
    limit = full(AdaptiveLimit(start=16))
    limit.refused(0.0, 1000.0)
    assert play_on(limit, 900.0) == 15
    assert play_on(limit, 2000.0) > 15


def play_on(limit: AdaptiveLimit, until_s: float) -> int:
    """Answer everything, a second a call, from when the limit was left on; return its maximum."""
    most, now_s = 0, limit._now_s
    while now_s < until_s:
        full(limit)
        now_s += 1.0
        for _ in range(limit.in_flight):
            limit.answered(now_s - 1.0, now_s, None)
            most = max(most, limit.limit)
    return most


def test_a_late_answer_takes_a_quarter() -> None:
    limit = full(AdaptiveLimit(start=16))
    limit.timed_out(1.0)
    assert limit.limit == 12


def gauges(waiting: float = 0.0, kv_usage: float = 0.1, preemptions: float = 0.0) -> Gauges:
    return Gauges(running=16.0, waiting=waiting, kv_usage=kv_usage, preemptions=preemptions)


@pytest.mark.parametrize("busy", [gauges(waiting=8.0), gauges(kv_usage=0.99)])
def test_it_does_not_grow_while_two_looks_in_a_row_find_the_server_full(busy: Gauges) -> None:
    limit = AdaptiveLimit(start=16, highest=64)
    limit.told(busy, 0.0)
    limit.told(busy, 0.0)
    assert play_on(limit, 100.0) == 16
    limit.told(gauges(), 100.0)
    assert play_on(limit, 400.0) == 64


def test_preemptions_take_a_tenth_each_time_they_have_grown() -> None:
    limit = full(AdaptiveLimit(start=20))
    limit.told(gauges(preemptions=7.0), 0.0)
    assert limit.limit == 20
    limit.told(gauges(preemptions=8.0), 1.0)
    limit.told(gauges(preemptions=8.0), 2.0)
    assert limit.limit == 18


@given(st.lists(st.tuples(st.sampled_from("abrtlg"), st.floats(0, 3)), max_size=300), st.data())
@settings(max_examples=60, deadline=None)
def test_it_never_leaves_its_bounds(events: list[tuple[str, float]], data: st.DataObject) -> None:
    highest = data.draw(st.integers(1, 40))
    limit, now_s, preemptions = AdaptiveLimit(highest=highest), 0.0, 0.0
    assert limit.limit == min(START, highest)
    for kind, pause_s in events:
        now_s += pause_s
        full(limit)
        match kind:
            case "a" | "b":
                for _ in range(limit.in_flight):
                    limit.answered(now_s - pause_s, now_s, 3 if kind == "a" else None)
            case "r":
                limit.refused(now_s, 2.0)
            case "t":
                limit.timed_out(now_s)
            case "l":
                limit.left(now_s)
            case "g":
                preemptions += 1
                limit.told(gauges(preemptions=preemptions), now_s)
        assert 1 <= limit.limit <= highest
        assert 1 <= limit.settled <= highest


def batches(window: Window, level: int, count: int, tokens: int | None) -> list[Reading | None]:
    """Answer `count` batches of `level` calls, one a second, each begun when the last ended."""
    found = []
    for second in range(1, count + 1):
        for _ in range(level):
            window.passed(float(second), level)
            found.append(window.answered(second - 1.0, float(second), tokens))
    return found


@pytest.mark.parametrize(("settle", "ends_s"), [(0, 2), (8, 3)])
def test_a_window_of_whole_batches_is_exact(settle: int, ends_s: int) -> None:
    window = Window(8, 0.0, settle=settle, fewest=16, shortest_s=0.0)
    found = batches(window, 8, ends_s, 5)
    assert found[:-1] == [None] * (8 * ends_s - 1)
    assert found[-1] == Reading(level=8, calls_per_s=8.0, tokens_per_s=40.0)


def test_a_window_with_an_answer_of_unknown_length_has_no_tokens() -> None:
    window = Window(2, 0.0, settle=0, fewest=2, shortest_s=0.0)
    window.passed(1.0, 2)
    assert window.answered(0.0, 1.0, 7) is None
    assert window.answered(0.0, 1.0, None) == Reading(level=2, calls_per_s=2.0, tokens_per_s=None)


def test_a_window_without_enough_to_do_says_nothing() -> None:
    window = Window(8, 0.0, settle=0, fewest=8, shortest_s=0.0)
    assert batches(window, 4, 20, 5) == [None] * 80


def test_a_window_lasts_a_while_however_fast_the_answers_are() -> None:
    window = Window(1, 0.0, settle=0, fewest=1, shortest_s=3.0)
    assert [bool(reading) for reading in batches(window, 1, 3, 5)] == [False, False, True]


def test_gains_are_of_tokens_where_both_have_them() -> None:
    short = Reading(level=1, calls_per_s=4.0, tokens_per_s=8.0)
    long = Reading(level=2, calls_per_s=2.0, tokens_per_s=16.0)
    unknown = Reading(level=2, calls_per_s=8.0, tokens_per_s=None)
    assert long.gain(short) == pytest.approx(0.6931, abs=1e-4)
    assert unknown.gain(short) == pytest.approx(0.6931, abs=1e-4)
