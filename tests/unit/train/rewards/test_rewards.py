"""The shipped rewards, and how a config's reward is found."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from evalkit.record.trajectory import Key, Outcome, StopReason, Trajectory, Turn
from train.config import RewardSection
from train.errors import BadConfig
from train.rewards.base import Reward, Scored, Unscored
from train.rewards.env import EnvReturn
from train.rewards.registry import make_reward
from train.rewards.shaped import Shaped


def turn(number: int, *, valid: bool) -> Turn:
    return Turn(
        turn=number,
        observation="",
        completion="",
        reasoning=None,
        action="go",
        outcome=Outcome.OK if valid else Outcome.ILLEGAL,
        valid=valid,
        reward=0.0,
        event=None,
        error=None,
        memory=None,
        finish_reason="stop",
        prompt_tokens=None,
        completion_tokens=None,
        request_seed=0,
        prompt_digest="",
        policy_version=None,
    )


def played(
    return_: float = 0.0,
    *,
    valid: Sequence[bool] = (True,),
    success: bool = False,
    stop_reason: StopReason = StopReason.TERMINATED,
) -> Trajectory:
    return Trajectory(
        key=Key(env_seed=2**32, repetition=0, arm="train"),
        turns=tuple(turn(number, valid=each) for number, each in enumerate(valid)),
        final_observation="",
        success=success,
        return_=return_,
        optimal_turns=None,
        stop_reason=stop_reason,
    )


def score(reward: Reward, *episodes: Trajectory) -> list[Scored | Unscored]:
    return list(asyncio.run(_score(reward, episodes)))


async def _score(reward: Reward, episodes: Sequence[Trajectory]) -> Sequence[Scored | Unscored]:
    return await reward.score(episodes)


def worth(verdict: Scored | Unscored) -> float:
    assert isinstance(verdict, Scored)
    return verdict.reward


def test_the_envs_return_is_the_reward() -> None:
    verdicts = score(EnvReturn(), played(0.75), played(-1.0, success=True))
    assert [worth(verdict) for verdict in verdicts] == [0.75, -1.0]


@pytest.mark.parametrize("reward", [EnvReturn(), Shaped(success_bonus=1)])
@pytest.mark.parametrize("stop", [StopReason.INFRA_ERROR, StopReason.ENV_ERROR])
def test_an_episode_that_broke_off_is_not_scored(reward: Reward, stop: StopReason) -> None:
    (verdict,) = score(reward, played(1.0, stop_reason=stop))
    assert isinstance(verdict, Unscored)
    assert not verdict.retry
    assert stop.value in verdict.reason


@pytest.mark.parametrize("reward", [EnvReturn(), Shaped()])
def test_an_overlong_history_is_scored_as_it_is(reward: Reward) -> None:
    (verdict,) = score(reward, played(0.25, stop_reason=StopReason.CONTEXT_OVERFLOW))
    assert worth(verdict) == 0.25


def test_shaped_adds_its_terms_and_names_them() -> None:
    reward = Shaped(valid_bonus=0.4, turn_cost=-0.01, success_bonus=2)
    (verdict,) = score(reward, played(1.0, valid=(True, True, False, True), success=True))
    assert isinstance(verdict, Scored)
    assert verdict.reward == pytest.approx(1.0 + 0.4 * 0.75 - 0.01 * 4 + 2)
    assert verdict.parts == pytest.approx(
        {"return": 1.0, "valid": 0.3, "turns": -0.04, "success": 2.0}
    )


def test_shaped_without_terms_or_turns_is_the_return() -> None:
    assert worth(score(Shaped(), played(0.5))[0]) == 0.5
    assert worth(score(Shaped(valid_bonus=1), played(0.5, valid=()))[0]) == 0.5


@pytest.mark.parametrize(
    "args",
    [
        {"valid_bonus": float("nan")},
        {"success_bonus": float("inf")},
        {"turn_cost": "-0.1"},
        {"valid_bonus": True},
        {"valid_bonus": -0.1},
        {"success_bonus": -1},
        {"turn_cost": 0.1},
    ],
)
def test_shaped_refuses_bad_terms(args: dict[str, Any]) -> None:
    (name,) = args
    with pytest.raises(BadConfig, match=rf"reward\.args\.{name} .*must be"):
        Shaped(**args)


@pytest.fixture
def rewards_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    package = tmp_path / "judges_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "good.py").write_text(
        "from train.rewards.base import Reward, Scored\n"
        "class Constant(Reward):\n"
        "    def __init__(self, worth=1.0):\n"
        "        if worth < 0:\n"
        "            raise ValueError('worth is below 0')\n"
        "        self.worth = worth\n"
        "    async def score(self, episodes):\n"
        "        return [Scored(reward=self.worth) for _ in episodes]\n"
        "class Half(Reward):\n"
        "    pass\n"
        "class Liar(Constant):\n"
        "    @classmethod\n"
        "    def make(cls, **args):\n"
        "        return 7\n"
        "NUMBER = 7\n"
    )
    (package / "broken.py").write_text("1 / 0\n")
    (package / "needy.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package.name
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]


def test_shipped_rewards_have_short_names() -> None:
    assert isinstance(make_reward(RewardSection()), EnvReturn)
    shaped = make_reward(RewardSection(name="shaped", args={"valid_bonus": 0.5}))
    assert isinstance(shaped, Shaped)
    assert shaped.valid_bonus == 0.5


def test_a_reward_of_ones_own(rewards_module: str) -> None:
    name = f"{rewards_module}.good:Constant"
    reward = make_reward(RewardSection(name=name, args={"worth": 3.0}))
    assert worth(score(reward, played())[0]) == 3.0


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("env", {"bonus": 1}, r"'env' does not take reward.args bonus=1"),
        ("shaped", {"bonus": 1}, r"'shaped' does not take reward.args bonus=1"),
        ("shapd", {}, r"no reward is named 'shapd': there are env, shaped.*mean 'shaped'"),
        ("judge", {}, r"no reward is named 'judge'.*pkg\.mod:Class$"),
        (":Constant", {}, r"does not read as pkg\.mod:Class"),
        ("MODULE.good:", {}, r"does not read as pkg\.mod:Class"),
        ("file.py/x:Constant", {}, r"does not read as pkg\.mod:Class"),
        ("not_a_package.mod:Judge", {}, r"cannot import not_a_package.mod: ModuleNotFound"),
        ("MODULE.broken:Judge", {}, r"cannot import .*broken: ZeroDivisionError"),
        ("MODULE.needy:Judge", {}, r"a_library_that_is_not_there"),
        ("MODULE.good:Absent", {}, r"has no Absent"),
        ("MODULE.good:NUMBER", {}, r"is 7: expected a subclass"),
        ("evalkit.record.trajectory:Key", {}, r"expected a subclass"),
        ("MODULE.good:Half", {}, r"does not take reward.args nothing: .*abstract"),
        ("MODULE.good:Constant", {"depth": 2}, r"does not take reward.args depth=2: .*depth"),
        ("MODULE.good:Constant", {"worth": -1}, r"worth is below 0"),
        ("MODULE.good:Liar", {}, r"make\(\) returned 7"),
    ],
)
def test_what_cannot_be_made_is_a_bad_config(
    rewards_module: str, name: str, args: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadConfig, match=says):
        make_reward(RewardSection(name=name.replace("MODULE", rewards_module), args=args))
