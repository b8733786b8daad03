import asyncio
import itertools

import pytest

from serve.errors import EngineNotReady
from serve.pool.health import Health
from serve.pool.replicas import Replica, ReplicaState
from tests.unit.serve.pool.fakes import Request, Table, until
from tests.unit.serve.pool.watching import Patient, now_s, up, watched

State = ReplicaState


def test_one_that_answers_at_last_becomes_ready() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = pool.replicas[0]
        probe.verdict = "refused"
        health.watch(replica)
        await asyncio.sleep(5)
        assert (replica.state, replica.reason, pool.told) == (State.DOWN, "refused", ["down"])
        probe.verdict = None
        await asyncio.sleep(0.3)
        assert (replica.state, replica.reason) == (State.READY, "")
        assert pool.told == ["down", "syncing", "ready"]

    watched(test)


def test_one_that_is_well_from_the_beginning_is_never_called_down() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        health.watch(replica := pool.replicas[0])
        assert replica.state is State.STARTING
        await asyncio.sleep(0.1)
        assert (pool.told, replica.weight) == (["syncing", "ready"], 1.0)

    watched(test)


def test_ready_only_once_it_has_its_weights() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        loaded = asyncio.Event()

        async def prepare(replica: Replica) -> None:
            await loaded.wait()
            replica.serve_only("m", 3, "m")

        pool.prepare = prepare
        health.watch(replica := pool.replicas[0])
        await asyncio.sleep(100)
        assert (replica.state, pool.told) == (State.SYNCING, ["syncing"])
        loaded.set()
        await asyncio.sleep(0.1)
        assert (replica.state, replica.current) == (State.READY, {"m": 3})

    watched(test)


@pytest.mark.parametrize(
    "error", [EngineNotReady("no"), OSError("no no"), RuntimeError("no no no")], ids=str
)
def test_preparing_is_tried_again_later_and_later(error: Exception) -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        tried_s: list[float] = []

        async def prepare(replica: Replica) -> None:
            tried_s.append(now_s())
            if len(tried_s) < 10:
                raise error

        pool.prepare = prepare
        health.watch(replica := pool.replicas[0])
        await asyncio.sleep(2)
        assert (replica.state, "no" in replica.reason) == (State.DOWN, True)
        assert set(pool.told) == {"syncing", "down"}
        await asyncio.sleep(60)
        assert replica.state is State.READY
        waits = [b - a for a, b in itertools.pairwise(tried_s)]
        assert waits[:5] == pytest.approx([0.25, 0.5, 1, 2, 4], abs=0.26)
        assert waits[5:] == pytest.approx([8, 10, 10, 10], abs=0.26)

    watched(test)


def test_a_new_engine_is_not_kept_waiting_for_the_old_ones_failures() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        error: Exception | None = EngineNotReady("no")

        async def prepare(replica: Replica) -> None:
            if error is not None:
                raise error

        pool.prepare = prepare
        health.watch(replica := pool.replicas[0])
        await asyncio.sleep(30)
        probe.verdict = "refused"  # it is restarted
        await asyncio.sleep(11)
        error, probe.verdict = None, None
        await asyncio.sleep(0.3)
        assert replica.is_ready

    watched(test)


def test_a_failed_connection_takes_out_at_once_and_a_good_probe_brings_back() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        request = Request(replica)
        await asyncio.sleep(10)
        health.failed(replica, "refused")
        assert (replica.state, replica.reason, replica.errors) == (State.DOWN, "refused", 1)
        assert pool.told == ["down"]
        health.failed(replica, "refused")
        assert (replica.errors, pool.told) == (2, ["down"])
        failed_s = now_s()
        await asyncio.sleep(0.9)
        assert pool.told == ["down", "syncing", "ready"]
        assert probe.at_s[-1] - failed_s < 1
        assert request.lost == [], "its own connection may be alive"
        assert replica.weight == 0.5
        await asyncio.sleep(3)
        assert replica.weight == 1.0

    watched(test)


def test_back_within_a_second_of_being_well() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        probe.verdict = "refused"
        health.failed(replica, "reset")
        await asyncio.sleep(100)
        assert (replica.state, replica.reason) == (State.DOWN, "refused")
        probe.verdict = None
        await asyncio.sleep(0.3)
        assert replica.is_ready

    watched(test)


def test_a_replica_that_hangs_is_lost_to_all_who_wait() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        requests = [Request(replica) for _ in range(3)]
        probe.verdict, probe.others_are_well = "hangs", True
        began_s = now_s()
        await until(lambda: not replica.is_ready)
        assert now_s() - began_s < 6
        assert [request.lost for request in requests] == [["hangs"]] * 3
        assert (replica.in_flight, replica.active) == (0, set())

    watched(test, count=2)


def test_the_only_replica_may_just_be_busy() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        request = Request(replica)
        probe.verdict = "hangs"
        await asyncio.sleep(20)
        assert (replica.state, request.lost) == (State.DOWN, [])
        probe.verdict = None
        await asyncio.sleep(3)
        assert replica.is_ready
        probe.verdict = "hangs"
        await asyncio.sleep(40)
        assert request.lost == ["hangs"]

    watched(test)


def test_a_replica_that_hangs_after_a_failed_connection_is_lost_too() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        request = Request(replica)
        probe.verdict = "hangs"
        health.failed(replica, "cannot connect")
        await asyncio.sleep(40)
        assert request.lost == ["hangs"]

    watched(test)


def test_one_bad_probe_is_forgiven() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        for _ in range(5):
            asked = len(probe.at_s)
            probe.verdict = "busy"
            await until(lambda: len(probe.at_s) > asked)  # noqa: B023  # before the next turn
            probe.verdict = None
            await asyncio.sleep(0.5)
        assert (replica.is_ready, pool.told) == (True, [])

    watched(test)


def test_who_keeps_failing_with_good_probes_stays_out_longer_while_others_serve() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        outs_s = []
        for _ in range(7):
            health.failed(replica, "reset")
            began_s = now_s()
            await until(lambda: replica.is_ready)
            outs_s.append(now_s() - began_s)
        assert outs_s[0] <= 0.3
        assert outs_s[-1] >= 7
        assert outs_s == sorted(outs_s)
        await asyncio.sleep(10)
        health.failed(replica, "reset")
        await asyncio.sleep(0.3)
        assert replica.is_ready, "it had come back for good"

    watched(test, count=2)


def test_the_only_replica_is_brought_back_however_often_it_fails() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        for _ in range(10):
            health.failed(replica, "reset")
            await asyncio.sleep(0.3)
            assert replica.is_ready

    watched(test)


def test_a_watch_outlives_whatever_a_probe_or_a_listener_raises(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        probe.verdict = KeyError("a bug")
        await asyncio.sleep(10)
        assert (replica.state, replica.reason) == (State.DOWN, "KeyError: 'a bug'")

        def stumble(changed: Replica) -> None:
            if changed.is_ready:
                pool.listeners.remove(stumble)
                raise ValueError("another bug")

        pool.listeners.append(stumble)
        probe.verdict = None
        await asyncio.sleep(1)
        assert replica.is_ready
        probe.verdict = "refused"
        await asyncio.sleep(5)
        assert replica.state is State.DOWN
        assert {"looking after r0 failed"} < {record.message for record in caplog.records}

    watched(test)


@pytest.mark.parametrize("state", [State.DRAINING, State.STOPPED])
@pytest.mark.parametrize("fails", [True, False])
def test_who_leaves_while_being_prepared_does_not_come_back(state: State, fails: bool) -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        async def prepare(replica: Replica) -> None:
            await asyncio.sleep(5)
            if fails:
                raise EngineNotReady("no")

        pool.prepare = prepare
        health.watch(replica := pool.replicas[0])
        await asyncio.sleep(1)
        replica.state = state
        await asyncio.sleep(100)
        assert (replica.state, pool.told) == (state, ["syncing"])

    watched(test)


def test_who_fails_while_being_prepared_is_prepared_again() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        prepared = 0

        async def prepare(replica: Replica) -> None:
            nonlocal prepared
            await asyncio.sleep(1)
            prepared += 1

        pool.prepare = prepare
        health.watch(replica := pool.replicas[0])
        await asyncio.sleep(0.5)
        health.failed(replica, "reset")
        assert pool.told == ["syncing", "down"]
        await asyncio.sleep(3)
        assert (prepared, replica.is_ready) == (2, True)

    watched(test)


def test_probes_leave_a_swap_and_a_leaving_replica_alone() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        replica.state = State.SYNCING
        probe.verdict = "busy"
        await asyncio.sleep(10)
        assert replica.state is State.SYNCING
        replica.state = State.DRAINING
        request = Request(replica)
        await asyncio.sleep(40)
        assert (replica.state, request.lost) == (State.DRAINING, ["busy"])

    watched(test)


def test_a_listener_may_report_a_failure() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = pool.replicas[0]
        reports = 0

        def send(changed: Replica) -> None:
            nonlocal reports
            if changed.is_ready and not reports:
                reports += 1
                health.failed(changed, "reset")

        pool.listeners.insert(0, send)
        health.watch(replica)
        await asyncio.sleep(1)
        assert replica.is_ready
        assert pool.told == ["syncing", "down", "down", "syncing", "ready"]

    watched(test)


def test_leaving_in_any_state_leaves_nothing_behind() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        health.failed(replica, "reset")  # the kick and the end in the same moment
        await health.forget(replica)
        await health.forget(replica)
        asked = len(probe.at_s)
        await asyncio.sleep(10)
        assert len(probe.at_s) == asked
        health.failed(replica, "nobody watches")
        assert replica.errors == 2

    watched(test)
