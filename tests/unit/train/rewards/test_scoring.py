"""Asking a reward: batches, second tries, drops, and rewards that break their port."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from evalkit.record.trajectory import Key, StopReason, Trajectory
from train.errors import RewardFailed
from train.rewards.base import Reward, Scored, Unscored
from train.rewards.scoring import LONGEST_WAIT_S, Tally, score_group


def played(repetition: int) -> Trajectory:
    return Trajectory(
        key=Key(env_seed=2**32, repetition=repetition, arm="train"),
        turns=(),
        final_observation="",
        success=False,
        return_=float(repetition),
        optimal_turns=None,
        stop_reason=StopReason.TERMINATED,
    )


class Scripted(Reward):
    """Answers each episode from a script of its own; notes what it was asked."""

    def __init__(self, *scripts: Sequence[Any]) -> None:
        self.scripts = [list(script) for script in scripts]
        self.asked: list[list[int]] = []

    async def score(self, episodes: Sequence[Trajectory]) -> Sequence[Scored | Unscored]:
        self.asked.append([episode.key.repetition for episode in episodes])
        return [self.scripts[episode.key.repetition].pop(0) for episode in episodes]


class Says(Reward):
    """Returns or raises one thing, whatever it is asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def score(self, episodes: Sequence[Trajectory]) -> Sequence[Scored | Unscored]:
        if isinstance(self.answer, BaseException):
            raise self.answer
        answer: Sequence[Scored | Unscored] = self.answer
        return answer


BUSY, HOPELESS = Unscored(reason="judge is busy"), Unscored(reason="no answer", retry=False)


def ask(
    reward: Reward, episodes: int, attempts: int = 3, tally: Tally | None = None
) -> tuple[list[Scored | None], list[float]]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    batch = [played(repetition) for repetition in range(episodes)]
    return asyncio.run(score_group(reward, batch, attempts, sleep, tally)), waits


def test_all_are_asked_in_one_batch_and_never_waited_for() -> None:
    good = [Scored(reward=float(number), parts={"a": 1.0}) for number in range(3)]
    reward = Scripted(*([verdict] for verdict in good))
    assert ask(reward, 3) == (good, [])
    assert reward.asked == [[0, 1, 2]]


def test_only_those_that_may_succeed_are_asked_again() -> None:
    good = Scored(reward=1.0)
    reward = Scripted([good], [BUSY, BUSY, good], [HOPELESS], [BUSY, good])
    tally = Tally()
    verdicts, waits = ask(reward, 4, tally=tally)
    assert verdicts == [good, good, None, good]
    assert reward.asked == [[0, 1, 2, 3], [1, 3], [1]]
    assert waits == [0.5, 1.0]
    assert tally == Tally(scored=3, retried=3, dropped=1, reasons=Counter({"no answer": 1}))


def test_what_stays_unscored_is_left_out_and_never_worth_nothing() -> None:
    tally = Tally()
    verdicts, waits = ask(Scripted([BUSY] * 2, [Scored(reward=0.0)]), 2, attempts=2, tally=tally)
    assert verdicts == [None, Scored(reward=0.0)]
    assert len(waits) == 1
    assert (tally.dropped, tally.dropped_in_a_row) == (1, 0)
    ask(Scripted([BUSY], [HOPELESS]), 2, attempts=1, tally=tally)
    assert (tally.dropped, tally.dropped_in_a_row) == (3, 2)
    assert tally.reasons == {"judge is busy": 2, "no answer": 1}


def test_waits_grow_up_to_a_bound() -> None:
    _, waits = ask(Scripted([BUSY] * 12), 1, attempts=12)
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT_S
    assert len(waits) == 11


def test_nobody_is_asked_about_nothing() -> None:
    reward = Scripted()
    assert ask(reward, 0) == ([], [])
    assert reward.asked == []


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([], r"returned 0 verdicts for 2 episodes"),
        ([Scored(reward=1.0)] * 3, r"returned 3 verdicts for 2"),
        (None, r"raised TypeError"),
        ([Scored(reward=1.0), 1.0], r"returned 1.0 for train/4294967296/1: expected Scored"),
        ([Scored(reward=float("nan"))] * 2, r"gave nan to train/4294967296/0"),
        ([Scored(reward=float("-inf"))] * 2, r"gave -inf"),
        ([Scored(reward="much")] * 2, r"gave 'much'"),  # type: ignore[arg-type]
        ([Scored(reward=None)] * 2, r"gave None"),  # type: ignore[arg-type]
        (KeyError("score"), r"raised KeyError: 'score'"),
    ],
)
def test_a_reward_that_breaks_its_port_stops_the_run(answer: Any, says: str) -> None:
    with pytest.raises(RewardFailed, match=says) as caught:
        ask(Says(answer), 2)
    assert "test_scoring:Says" in str(caught.value)
    if isinstance(answer, Exception):
        assert caught.value.__cause__ is answer


def test_being_cancelled_is_no_fault_of_the_reward() -> None:
    with pytest.raises(asyncio.CancelledError):
        ask(Says(asyncio.CancelledError()), 1)


def test_a_second_answer_is_checked_too() -> None:
    with pytest.raises(RewardFailed, match="gave nan"):
        ask(Scripted([BUSY, Scored(reward=float("nan"))]), 1)
