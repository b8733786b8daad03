"""Patience: how often a call is tried again, and how long a server is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from evalkit.errors import CallFailed, ContextOverflow, Failure, ServerLost
from evalkit.play.limits import Patience, RetryLimits
from evalkit.testing import FakeClock

LIMITS = RetryLimits(attempts=4, wait_s=100.0, timeout_s=5.0, backoff_s=1.0, backoff_max_s=16.0)


def patience(clock: FakeClock, limits: RetryLimits = LIMITS) -> Patience:
    return Patience(limits, clock=clock, sleep=clock.sleep)


def failing(
    kind: Failure, times: int = 1_000_000, retry_after_s: float | None = None
) -> Callable[[int], Awaitable[int]]:
    """Return an attempt that fails so often, and then answers with its number."""

    async def attempt(number: int) -> int:
        if number <= times:
            raise CallFailed(kind, f"failure {number}", retry_after_s=retry_after_s)
        return number

    return attempt


RETRIED = [Failure.CONNECT, Failure.TIMEOUT, Failure.SERVER_ERROR, Failure.BAD_REPLY]
FINAL = [Failure.REFUSED, Failure.CONTEXT_OVERFLOW, Failure.ENV_BUG]


@pytest.mark.parametrize("kind", RETRIED)
def test_a_failing_call_is_tried_a_bounded_number_of_times(kind: Failure) -> None:
    clock = FakeClock()
    patient = patience(clock)
    with pytest.raises(CallFailed, match="failure 4") as failed:
        asyncio.run(patient.call(failing(kind)))
    assert failed.value.failure is kind
    assert len(clock.slept_s) == patient.retries == 3


@pytest.mark.parametrize("kind", RETRIED)
def test_the_last_try_may_succeed(kind: Failure) -> None:
    clock = FakeClock()
    assert asyncio.run(patience(clock).call(failing(kind, times=3))) == 4


@pytest.mark.parametrize("kind", FINAL)
def test_what_cannot_get_better_is_not_tried_again(kind: Failure) -> None:
    clock = FakeClock()
    with pytest.raises(CallFailed, match="failure 1"):
        asyncio.run(patience(clock).call(failing(kind)))
    assert clock.slept_s == []


def test_an_overflow_keeps_its_type() -> None:
    async def attempt(_: int) -> int:
        raise ContextOverflow("too long")

    with pytest.raises(ContextOverflow):
        asyncio.run(patience(FakeClock()).call(attempt))


def test_pauses_double_up_to_their_maximum_and_are_jittered_downwards() -> None:
    clock = FakeClock()
    limits = RetryLimits(attempts=8, backoff_s=1.0, backoff_max_s=16.0)
    with pytest.raises(CallFailed):
        asyncio.run(patience(clock, limits).call(failing(Failure.CONNECT)))
    full = [1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0]
    assert len(clock.slept_s) == len(full)
    assert all(p / 2 <= slept <= p for p, slept in zip(full, clock.slept_s, strict=True))
    assert len(set(clock.slept_s)) == len(full)


def test_retry_after_is_honoured_and_never_longer_than_the_wait() -> None:
    clock = FakeClock()
    asyncio.run(patience(clock).call(failing(Failure.RATE_LIMITED, 1, retry_after_s=30.0)))
    asyncio.run(patience(clock).call(failing(Failure.SERVER_ERROR, 1, retry_after_s=9_999.0)))
    assert clock.slept_s == [30.0, 100.0]


def test_a_short_retry_after_does_not_shorten_the_backoff() -> None:
    clock = FakeClock()
    asyncio.run(patience(clock).call(failing(Failure.RATE_LIMITED, 1, retry_after_s=0.0)))
    assert 0.5 <= clock.slept_s[0] <= 1.0


@pytest.mark.parametrize("kind", [Failure.RATE_LIMITED, Failure.CONFLICT])
def test_a_busy_server_is_waited_for_but_not_for_ever(kind: Failure) -> None:
    clock = FakeClock()
    assert asyncio.run(patience(clock).call(failing(kind, times=9))) == 10
    with pytest.raises(CallFailed) as failed:
        asyncio.run(patience(FakeClock()).call(failing(kind)))
    assert failed.value.failure is kind


def test_waiting_for_an_absent_server_uses_up_no_attempts() -> None:
    clock = FakeClock()
    assert asyncio.run(patience(clock).call(failing(Failure.UNAVAILABLE, times=9))) == 10
    assert 0 < clock.now_s <= LIMITS.wait_s


def test_a_lost_server_ends_the_run() -> None:
    clock = FakeClock()
    with pytest.raises(ServerLost, match="no answer for 1"):
        asyncio.run(patience(clock).call(failing(Failure.UNAVAILABLE)))
    assert LIMITS.wait_s < clock.now_s <= LIMITS.wait_s + LIMITS.backoff_max_s


def test_without_waiting_a_server_that_stays_away_is_lost_at_the_second_try() -> None:
    clock = FakeClock()
    limits = RetryLimits(wait_s=0.0, backoff_s=1.0)
    with pytest.raises(ServerLost):
        asyncio.run(patience(clock, limits).call(failing(Failure.UNAVAILABLE)))
    assert len(clock.slept_s) == 1


def test_absence_is_noticed_by_all_calls_together() -> None:
    clock = FakeClock()
    patient = patience(clock)

    async def both() -> list[BaseException | int]:
        calls = [patient.call(failing(Failure.UNAVAILABLE)) for _ in range(2)]
        return await asyncio.gather(*calls, return_exceptions=True)

    lost = asyncio.run(both())
    assert [type(error) for error in lost] == [ServerLost, ServerLost]
    assert clock.now_s <= LIMITS.wait_s + 2 * LIMITS.backoff_max_s


def test_any_answer_ends_the_absence() -> None:
    clock = FakeClock()
    patient = patience(clock)

    async def away_twice() -> int:
        await patient.call(failing(Failure.UNAVAILABLE, times=8))
        assert patient.away_since is None
        clock.now_s += 10 * LIMITS.wait_s
        return await patient.call(failing(Failure.UNAVAILABLE, times=8))

    assert asyncio.run(away_twice()) == 9


@pytest.mark.parametrize("kind", [Failure.RATE_LIMITED, Failure.SERVER_ERROR, Failure.REFUSED])
def test_an_error_from_the_server_ends_its_absence_too(kind: Failure) -> None:
    clock = FakeClock()
    patient = patience(clock)

    async def attempt(number: int) -> int:
        raise CallFailed(Failure.UNAVAILABLE if number == 1 else kind, "failed", status=500)

    with pytest.raises(CallFailed):
        asyncio.run(patient.call(attempt))
    assert patient.away_since is None


def test_what_is_no_failed_call_is_not_tried_again() -> None:
    async def attempt(_: int) -> int:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        asyncio.run(patience(FakeClock()).call(attempt))
