"""A run that is judged while it plays: in the order of its seeds, whatever ends when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from evalkit.errors import RunFailed
from evalkit.judge.deciding import Deciding
from evalkit.judge.sequential import StoppingRule, Verdict, judge_sequence
from evalkit.play.runner import episode_keys
from evalkit.play.stopping import Stopping
from evalkit.record.trajectory import Key, StopReason, Trajectory

RULE = StoppingRule(alpha=0.05)


def stopping(seeds: Sequence[int] = range(400), **settings: Any) -> Stopping:
    whole: dict[str, Any] = {
        "k": 1,
        "arms": ["A", "B"],
        "deciding": Deciding.SUCCESS,
        "rule": RULE,
        "concurrency": 8,
        **settings,
    }
    return Stopping(seeds=seeds, **whole)


def ended(
    arm: str,
    seed: int,
    *,
    repetition: int = 0,
    success: bool = False,
    return_: float = 0.0,
    stop: StopReason = StopReason.TERMINATED,
) -> Trajectory:
    return Trajectory(
        key=Key(env_seed=seed, repetition=repetition, arm=arm),
        turns=(),
        final_observation="",
        success=success,
        return_=return_,
        optimal_turns=None,
        stop_reason=stop,
    )


def drawn(seeds: Iterable[int], k: int = 1) -> list[Trajectory]:
    """Return the episodes of A at .3 and of B at .6, in the order of `episode_keys`."""
    rng = random.Random(3)
    return [
        ended(
            key.arm,
            key.env_seed,
            repetition=key.repetition,
            success=rng.random() < {"A": 0.3, "B": 0.6}[key.arm],
        )
        for key in episode_keys(list(seeds), k, "AB")
    ]


def means(played: Sequence[Trajectory], seeds: Sequence[int], k: int) -> list[float]:
    """Return B - A of the mean success per seed."""
    won = {(each.key.arm, each.key.env_seed): 0 for each in played}
    for each in played:
        won[each.key.arm, each.key.env_seed] += each.success
    return [(won["B", seed] - won["A", seed]) / k for seed in seeds]


@pytest.mark.parametrize("k", [1, 2])
def test_it_stops_where_the_sequence_is_decided_whatever_ends_first(k: int) -> None:
    seeds = [7, *range(100, 300), 3]
    played = drawn(seeds, k)
    expected = judge_sequence(means(played, seeds, k), RULE)
    assert expected.verdict is Verdict.BETTER
    shuffled = random.Random(1).sample(played, len(played))
    for order in (played, shuffled):
        judge = stopping(seeds, k=k)
        decided = [judge.take(each) for each in order]
        assert decided == sorted(decided)
        assert judge.decided
        assert judge.judged == seeds[: expected.n_pairs]
        assert judge.looks() == {("A", "B"): expected}


def test_nothing_is_drawn_once_it_is_decided_and_what_was_begun_beyond_is_counted() -> None:
    seeds = list(range(100))
    judge = stopping(seeds, concurrency=12)
    keys = judge.drawn(episode_keys(seeds, 1, "AB"))
    ahead = [next(keys) for _ in range(30)]

    async def begin() -> None:
        for key in ahead[:24]:
            await judge.admit(key)

    asyncio.run(begin())
    for key in ahead[:18]:
        judge.take(ended(key.arm, key.env_seed, success=key.arm == "B"))
    assert (judge.decided, list(judge.judged)) == (True, list(range(9)))
    assert list(keys) == []
    assert judge.wasted == 6
    assert [judge.beyond(key) for key in ahead] == [False] * 18 + [True] * 12


def test_a_lost_episode_takes_its_seed_out_and_nothing_else() -> None:
    judge = stopping()
    for seed in range(12):
        lost = seed in {0, 4}
        judge.take(ended("A", seed))
        stop = StopReason.INFRA_ERROR if lost else StopReason.TERMINATED
        judge.take(ended("B", seed, success=not lost, stop=stop))
    (look,) = judge.looks().values()
    assert (look.n_pairs, look.verdict, list(judge.judged)) == (
        9,
        Verdict.BETTER,
        list(range(11)),
    )


def test_episodes_wait_when_they_are_too_far_ahead() -> None:
    """8 at once: 16 episodes of 2 arms are 8 seeds from the first that is not judged."""

    async def admitted() -> list[bool]:
        judge = stopping()
        late = asyncio.create_task(judge.admit(Key(env_seed=8, repetition=0, arm="A")))
        await judge.admit(Key(env_seed=7, repetition=0, arm="B"))
        states = []
        for arm in "AB":
            judge.take(ended(arm, 0))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            states.append(late.done())
        return states

    assert asyncio.run(admitted()) == [False, True]


def test_fewer_are_ahead_when_the_verdict_is_near() -> None:
    keys = [Key(env_seed=seed, repetition=0, arm="A") for seed in range(20)]

    async def ahead(judge: Stopping) -> int:
        tasks = [asyncio.create_task(judge.admit(key)) for key in keys]
        await asyncio.sleep(0)
        admitted = sum(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        return admitted

    async def found() -> list[int]:
        judge, counts = stopping(), []
        for seed in range(8):
            counts.append(await ahead(judge) - seed)
            for arm in "AB":
                judge.take(ended(arm, seed, success=arm == "B"))
        return counts

    assert asyncio.run(found()) == [8, 8, 8, 7, 7, 6, 6, 5]


def test_more_may_be_ahead_when_more_are_played_at_once() -> None:
    async def admitted() -> list[bool]:
        judge = stopping()
        late = asyncio.create_task(judge.admit(Key(env_seed=19, repetition=0, arm="A")))
        states = []
        for concurrency in (8, 19, 20):
            judge.resize(concurrency)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            states.append(late.done())
        return states

    assert asyncio.run(admitted()) == [False, False, True]


def test_one_at_a_time_begins_nothing_in_vain() -> None:
    async def ahead() -> bool:
        judge = stopping(concurrency=1)
        next_seed = asyncio.create_task(judge.admit(Key(env_seed=1, repetition=0, arm="A")))
        await judge.admit(Key(env_seed=0, repetition=0, arm="B"))
        await asyncio.sleep(0)
        waits = not next_seed.done()
        next_seed.cancel()
        return waits

    assert asyncio.run(ahead())


def test_returns_decide_within_their_span() -> None:
    judge = stopping(deciding=Deciding.RETURN, rule=StoppingRule(span=4.0))
    seed = 0
    while not judge.decided:
        judge.take(ended("A", seed, return_=1.5))
        judge.take(ended("B", seed, return_=-1.0))
        seed += 1
    (look,) = judge.looks().values()
    assert (look.diff, look.verdict) == (-2.5, Verdict.WORSE)
    assert look == judge_sequence([-2.5] * seed, StoppingRule(span=4.0))


def test_returns_beyond_their_span_end_the_run() -> None:
    judge = stopping([5], deciding=Deciding.RETURN, rule=StoppingRule(span=2.0))
    judge.take(ended("A", 5, return_=1.5))
    with pytest.raises(RunFailed, match=r"env seed 5: expected .* within \+-2.0, got -2.5 in ret"):
        judge.take(ended("B", 5, return_=-1.0))


def test_looks_may_be_stale_but_never_miss_the_end() -> None:
    judge = stopping(range(1_000), rule=StoppingRule(margin=0.1))
    seen = []
    for seed in range(1_000):
        for arm in "AB":
            judge.take(ended(arm, seed, success=True))
        (look,) = judge.looks().values()
        seen.append(look.n_pairs)
        if judge.decided:
            break
    assert look.verdict is Verdict.EQUIVALENT
    assert seen[-1] == len(seen) == len(judge.judged)
    assert all(now - shown <= max(1, now // 20) for now, shown in enumerate(seen, 1))
