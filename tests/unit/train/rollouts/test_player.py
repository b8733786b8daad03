"""Groups: one env seed, scored together; what cuts an episode short is tried again or said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest

from envs import TextEnv, make
from evalkit.play.limits import Patience, RetryLimits
from evalkit.play.strategies import Message, Messages, parse_strategy
from evalkit.play.tokens import TokenModel, TokenSampling
from evalkit.play.transport import Response
from evalkit.record.trajectory import Trajectory
from evalkit.testing import FakeTransport, response
from train.errors import RolloutFailed
from train.rewards.base import Reward, Scored, Unscored
from train.rewards.env import EnvReturn
from train.rollouts.player import Plan, Player
from train.rollouts.rows import Group
from train.rollouts.seeds import FIRST, group_seed

END = 3


class Letters:
    """One id per character; a reply ends with 3."""

    def render(self, messages: Messages) -> list[int]:
        return [id_ for m in messages for id_ in (1, *map(ord, m.content), 2)] + [1]

    def goes_on(self, reply: Sequence[int], said: Message) -> list[int] | None:
        return [1, *map(ord, said.content), 2, 1]

    def text(self, ids: Sequence[int]) -> str:
        return "".join(chr(id_) for id_ in ids if id_ > 3)


def generation(text: str, version: int = 7) -> Response:
    ids = [*map(ord, text), END]
    content = [{"logprob": -0.5}] * len(ids)
    choice = {"token_ids": ids, "logprobs": {"content": content}, "finish_reason": "stop"}
    body = orjson.dumps({"choices": [choice]})
    return response(body, headers={"x-policy-version": str(version)})


def up(_: bytes) -> Response:
    return generation("<action>up</action>")


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


def key_door() -> TextEnv:
    return make("key_door", size=3, max_turns=4)


def player(
    answer: Callable[[bytes], Response | Exception] = up,
    reward: Reward | None = None,
    **how: Any,
) -> Player:
    transport = how.pop("transport", None) or FakeTransport(answer)
    plan: dict[str, Any] = {
        "run_id": "r",
        "run_seed": 5,
        "make_env": key_door,
        "strategy": parse_strategy("FULL_HISTORY"),
        "group_size": 3,
        "concurrency": 2,
        "attempts": 2,
        "reward_attempts": 1,
    }
    model = TokenModel(
        transport,
        model="tiny",
        renderer=Letters(),
        sampling=TokenSampling(max_tokens=8),
        patience=Patience(RetryLimits(attempts=1), sleep=no_sleep),
        max_len=how.pop("max_len", 100_000),
    )
    return Player(Plan(**(plan | how)), model, reward or EnvReturn(), sleep=no_sleep)


def played(one: Player, index: int = 4, version: int = 7) -> Group:
    return asyncio.run(one.play_group(index, version))


def test_a_group_is_one_seed_that_no_evaluation_uses() -> None:
    group = played(player())
    assert group.env_seed == group_seed(5, 4) >= FIRST
    assert [e.repetition for e in group.episodes] == [0, 1, 2]
    assert {e.env_seed for e in group.episodes} == {group.env_seed}
    assert (group.index, group.started_version, group.dropped) == (4, 7, 0)
    for episode in group.episodes:
        (row,) = episode.rows
        assert row.trained.sum() == 4 * len("<action>up</action>.")
        assert set(row.versions[row.trained == 1]) == {7}
        assert episode.reward == episode.env_return == -0.5


def test_seeds_differ_between_groups_and_runs_and_stay_the_same() -> None:
    seeds = {group_seed(run, group) for run in range(20) for group in range(200)}
    assert len(seeds) == 4000
    assert min(seeds) >= 2**32
    assert group_seed(0, 0) == group_seed(0, 0)


def test_sampling_seeds_differ_within_a_group() -> None:
    transport = FakeTransport(up)
    played(player(transport=transport))
    seeds = [orjson.loads(body)["sampling_params"]["seed"] for body, _ in transport.posted]
    assert len(set(seeds)) == len(seeds) == 12


def test_an_episode_that_infrastructure_cuts_short_is_played_again() -> None:
    left = [response(b"no", 500), response(b"no", 500)]
    one = player(lambda body: left.pop() if left else up(body))
    assert len(played(one).episodes) == 3
    assert one.replayed == 2


def test_one_that_keeps_being_cut_short_ends_the_run() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        played(player(lambda _: response(b"no", 500)))
    assert caught.group_contains(RolloutFailed, match="cut short 2 times.*HTTP 500")


def test_an_env_that_raises_ends_the_run_and_is_named() -> None:
    class Broken(type(key_door())):  # type: ignore[misc]
        def step(self, action: str) -> Any:
            raise ZeroDivisionError("by me")

    with pytest.raises(ExceptionGroup) as caught:
        played(player(make_env=lambda: Broken(size=3, max_turns=4)))
    assert caught.group_contains(RolloutFailed, match="the env raised in seed.*by me")


def test_a_first_prompt_that_does_not_fit_ends_the_run() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        played(player(max_len=20))
    assert caught.group_contains(RolloutFailed, match="first prompt does not fit")


class Picky(Reward):
    """Cannot score the second one."""

    async def score(self, episodes: Sequence[Trajectory]) -> Sequence[Scored | Unscored]:
        return [
            Unscored(reason="no idea") if e.key.repetition == 1 else Scored(reward=1.0)
            for e in episodes
        ]


def test_what_cannot_be_scored_is_left_out_and_never_worth_0() -> None:
    group = played(player(reward=Picky()))
    assert [e.repetition for e in group.episodes] == [0, 2]
    assert [e.reward for e in group.episodes] == [1.0, 1.0]
    assert group.dropped == 1


def test_no_more_episodes_at_once_than_allowed() -> None:
    at_once, most = 0, 0

    class Slow(FakeTransport):
        async def post(self, *args: Any, **how: Any) -> Response:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0.001)
            at_once -= 1
            return up(b"")

    played(player(transport=Slow(up), group_size=6, concurrency=2))
    assert most == 2
