from serve.accounts.backoff import Backoff


def test_a_source_may_fail_some_times_and_then_slowly() -> None:
    backoff = Backoff(burst=3, every_s=2.0)
    for _ in range(3):
        assert backoff.wait_s("a", 10.0) == 0
        backoff.failed("a", 10.0)
    assert backoff.wait_s("a", 10.0) == 2.0
    assert backoff.wait_s("a", 11.5) == 0.5
    assert backoff.wait_s("b", 10.0) == 0
    assert backoff.wait_s("a", 12.0) == 0
    backoff.failed("a", 12.0)
    assert backoff.wait_s("a", 12.0) == 2.0
    assert backoff.wait_s("a", 100.0) == 0


def test_nobody_waits_longer_than_the_longest() -> None:
    backoff = Backoff(burst=3, every_s=2.0, max_wait_s=30.0)
    for _ in range(1_000):
        backoff.failed("a", 10.0)
    assert backoff.wait_s("a", 10.0) == 30.0


def test_the_table_is_bounded_and_keeps_who_failed_last() -> None:
    backoff = Backoff(burst=1, every_s=2.0, max_sources=10)
    for number in range(1_000):
        backoff.failed("again", 0.0)
        backoff.failed(str(number), 0.0)
    assert backoff.count == 10
    assert backoff.wait_s("again", 0.0) > 0
    assert backoff.wait_s("999", 0.0) > 0
    assert backoff.wait_s("0", 0.0) == 0
