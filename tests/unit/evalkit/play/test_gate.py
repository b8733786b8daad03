"""Gates and crews: whose turn it is, what is learned from how a call ends, who plays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from evalkit.errors import CallFailed, ContextOverflow, Failure
from evalkit.play.adaptive import AdaptiveLimit, Gauges
from evalkit.play.crew import Crew, gates_of
from evalkit.play.gate import Gate
from evalkit.play.policy import Completion
from evalkit.testing import FakeClock, FakePolicy


class Noted(AdaptiveLimit):
    """Does nothing with what it is told but remember; `limit` is set by hand."""

    def __init__(self, limit: int) -> None:
        super().__init__(start=limit)
        self.told_of: list[str] = []

    def answered(self, began_s: float, now_s: float, tokens: int | None) -> None:
        self.told_of.append(f"answered {began_s:g} {now_s:g} {tokens}")
        self.in_flight -= 1

    def refused(self, now_s: float, retry_after_s: float | None) -> None:
        self.told_of.append(f"refused {now_s:g} {retry_after_s}")
        self.in_flight -= 1

    def timed_out(self, now_s: float) -> None:
        self.told_of.append(f"timed out {now_s:g}")
        self.in_flight -= 1

    def left(self, now_s: float) -> None:
        self.told_of.append(f"left {now_s:g}")
        self.in_flight -= 1

    def told(self, gauges: Gauges, now_s: float) -> None:
        self.limit = round(gauges.running)


class Calls:
    """Calls that end when they are told to, by name."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.out: list[str] = []
        self.tasks: dict[str, asyncio.Task[Completion]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def begin(self, name: str, turn: int) -> None:
        self._ends[name] = asyncio.Event()

        async def attempt() -> Completion:
            self.out.append(name)
            await self._ends[name].wait()
            return Completion(text=name)

        self.tasks[name] = asyncio.create_task(self.gate.call(turn, attempt))
        await settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def gauges(running: int) -> Gauges:
    return Gauges(running=float(running), waiting=0.0, kv_usage=0.0, preemptions=0.0)


def test_the_episode_that_is_furthest_on_goes_first_and_then_who_came_first() -> None:
    async def scene() -> None:
        calls = Calls(Gate(Noted(1)))
        for name, turn in (("first", 0), ("new", 0), ("late", 7), ("later", 7), ("begun", 2)):
            await calls.begin(name, turn)
        assert calls.out == ["first"]
        for name in ("first", "late", "later", "begun", "new"):
            await calls.end(name)
        assert calls.out == ["first", "late", "later", "begun", "new"]
        assert [task.result().text for task in calls.tasks.values()] == list(calls.tasks)

    asyncio.run(scene())


def test_a_lower_limit_ends_no_call_and_a_higher_one_lets_the_waiting_in() -> None:
    async def scene() -> None:
        limit, moves = Noted(2), []
        gate = Gate(limit)
        gate.moved = lambda: moves.append(gate.limit)
        calls = Calls(gate)
        for name in "abcd":
            await calls.begin(name, 0)
        gate.told(gauges(1))
        await calls.end("a")
        assert calls.out == ["a", "b"]
        gate.told(gauges(2))
        await settle()
        assert calls.out == ["a", "b", "c"]
        gate.told(gauges(9))
        await settle()
        assert calls.out == ["a", "b", "c", "d"]
        assert moves == [1, 2, 9]
        for name in "bcd":
            await calls.end(name)
        assert limit.in_flight == 0

    asyncio.run(scene())


@pytest.mark.parametrize("free", [False, True])
def test_a_cancelled_call_leaves_its_place_to_the_next(free: bool) -> None:
    async def scene() -> None:
        limit = Noted(1)
        calls = Calls(Gate(limit))
        for name in ("out", "gone", "next"):
            await calls.begin(name, 0)
        if free:  # the place is given to it, and in the same moment it is cancelled
            calls.gate.told(gauges(2))
        calls.tasks["gone"].cancel()
        await calls.end("out")
        assert calls.out == ["out", "next"]
        await calls.end("next")
        assert limit.in_flight == 0
        assert calls.tasks["gone"].cancelled()

    asyncio.run(scene())


def test_a_call_that_is_cancelled_under_way_teaches_nothing() -> None:
    async def scene() -> list[str]:
        limit = Noted(1)
        calls = Calls(Gate(limit, clock=FakeClock()))
        await calls.begin("a", 0)
        calls.tasks["a"].cancel()
        await settle()
        return limit.told_of

    assert asyncio.run(scene()) == ["left 0"]


@pytest.mark.parametrize(
    ("ending", "lesson"),
    [
        (Completion(text="", completion_tokens=7), "answered 0 3 7"),
        (CallFailed(Failure.RATE_LIMITED, "", status=429, retry_after_s=2.0), "refused 3 2.0"),
        (CallFailed(Failure.UNAVAILABLE, "", status=503), "refused 3 None"),
        (CallFailed(Failure.SERVER_ERROR, "", status=529), "refused 3 None"),
        (CallFailed(Failure.TIMEOUT, ""), "timed out 3"),
        (CallFailed(Failure.SERVER_ERROR, "", status=504), "timed out 3"),
        (CallFailed(Failure.UNAVAILABLE, "nothing listens"), "left 3"),
        (CallFailed(Failure.SERVER_ERROR, "", status=500), "left 3"),
        (ContextOverflow("long"), "left 3"),
        (ValueError("a bug"), "left 3"),
    ],
)
def test_what_is_learned_from_the_end_of_a_call(
    ending: Completion | Exception, lesson: str
) -> None:
    clock, limit = FakeClock(), Noted(4)

    async def attempt() -> Completion:
        await clock.sleep(3.0)
        if isinstance(ending, Exception):
            raise ending
        return ending

    async def scene() -> Completion | Exception:
        try:
            return await Gate(limit, clock=clock).call(0, attempt)
        except (CallFailed, ValueError) as error:
            return error

    assert asyncio.run(scene()) is ending
    assert (limit.told_of, limit.in_flight) == ([lesson], 0)


class Episodes:
    """Plays `count` episodes, each until it is let go; notes how many there are at once."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.now = 0
        self.most = 0
        self.ends = asyncio.Event()

    async def next(self) -> bool:
        if not self.left:
            return False
        self.left -= 1
        self.now += 1
        self.most = max(self.most, self.now)
        await self.ends.wait()
        await asyncio.sleep(0)
        self.now -= 1
        return True


async def played(crew: Crew, then: Callable[[], Awaitable[object]]) -> None:
    working = asyncio.create_task(crew.work())
    await settle()
    await then()
    await working


def test_without_gates_there_are_as_many_workers_as_asked_for() -> None:
    async def scene() -> tuple[int, int]:
        episodes = Episodes(20)
        episodes.ends.set()
        await Crew(episodes.next, most=3).work()
        return episodes.most, episodes.left

    assert asyncio.run(scene()) == (3, 0)


def test_workers_join_and_leave_as_the_limits_of_all_servers_move() -> None:
    async def scene() -> None:
        episodes, gates = Episodes(50), [Gate(Noted(2)), Gate(Noted(1))]
        sizes: list[int] = []
        crew = Crew(episodes.next, most=8, gates=gates, resized=sizes.append)

        async def moves() -> None:
            assert episodes.now == 3
            gates[0].told(gauges(4))
            await settle()
            assert episodes.now == 5
            gates[1].told(gauges(30))
            await settle()
            assert episodes.now == 8
            gates[0].told(gauges(1))
            gates[1].told(gauges(1))
            await settle()
            assert episodes.now == 8
            episodes.ends.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert episodes.now == 2

        await played(crew, moves)
        assert (episodes.left, episodes.now, sizes) == (0, 0, [3, 5, 8, 8, 2])

    asyncio.run(scene())


def test_a_crew_ends_at_once_where_there_is_nothing_to_play() -> None:
    asyncio.run(Crew(Episodes(0).next, most=3, gates=[Gate()]).work())


def test_what_a_worker_raises_ends_all() -> None:
    async def fail() -> bool:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(Crew(fail, most=3, gates=[Gate()]).work())
    assert {type(error) for error in raised.value.exceptions} == {ZeroDivisionError}


def test_two_models_of_one_server_share_its_gate() -> None:
    base, trained, other, random = (FakePolicy(lambda _: "up") for _ in range(4))
    base.gate = trained.gate = Gate()
    other.gate = Gate()
    assert gates_of([base, trained, other, random]) == [base.gate, other.gate]
