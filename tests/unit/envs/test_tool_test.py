import json
import random
from typing import Any

import pytest

from envs import NO_ACTION, EpisodeOver, TextEnv
from envs.playing import oracle_policy, play, random_policy
from envs.tasks.tool_test import TOOLS, ToolTest
from envs.testing import check_env

OTHER_SECRETS = {"shift": 1000, "label": "#", "scale": 0.25, "flip": True}


def start(seed: int = 0, **params: Any) -> ToolTest:
    env = ToolTest(**params)
    env.reset(seed=seed)
    return env


def twins(env: TextEnv) -> list[dict[str, Any]]:
    """Before anything was called, any secrets are possible."""
    state = env.state()
    return [{**state, "secrets": OTHER_SECRETS}] if state["turn"] == 0 else []


@pytest.mark.parametrize("rounds", [1, 3, 10])
def test_tool_test_passes_every_rule(rounds: int) -> None:
    seeds = 1000 if rounds == 3 else 100
    assert check_env(lambda: ToolTest(rounds=rounds), seeds=seeds, twins=twins).failed == ()


def test_golden_episode() -> None:
    env = ToolTest()
    first = (
        "Round 1 of 3. Call shift with number = 740; and flip with state = false; and scale with "
        "amount = 7.75."
    )
    assert env.reset(seed=3) == (first, {})
    right = env.oracle()
    assert json.loads(right) == [
        {"name": "shift", "arguments": {"number": 740}},
        {"name": "flip", "arguments": {"state": False}},
        {"name": "scale", "arguments": {"amount": 7.75}},
    ]
    second = (
        "shift gave 827; flip gave false; scale gave 27.125\nRound 2 of 3. Call flip with state = "
        'what flip gave in round 1; and label with text = "winter"; and shift with number = 165.'
    )
    assert env.step(right) == (second, 1 / 3, False, False, {"event": "right"})
    third = "Round 3 of 3. Call shift with number = what shift gave in round 1."
    wrong = '[{"name": "shift", "arguments": {"number": 1}}]'
    assert env.step(wrong) == (f"shift gave 88\n{third}", 0.0, False, False, {"event": "wrong"})
    last = "shift gave 914\nThat was the last round."
    assert env.step('[{"name": "shift", "arguments": {"number": 827}}]') == (
        last,
        1 / 3,
        True,
        False,
        {"event": "right"},
    )
    assert not env.success
    with pytest.raises(EpisodeOver):
        env.step(right)


def test_the_last_round_needs_what_the_first_gave() -> None:
    for rounds in (2, 3, 6):
        for seed in range(200):
            env = start(seed, rounds=rounds)
            for _ in range(rounds - 1):
                observation = env.step(env.oracle())[0]
            assert any(f"what {tool} gave in round 1" in observation for tool in ("shift", "label"))


def test_order_does_not_matter_and_everything_else_does() -> None:
    env = start(3)
    asked = json.loads(env.oracle())
    assert env.clone().step(json.dumps(asked[::-1]))[4] == {"event": "right"}
    for calls in (asked[:2], [*asked, asked[0]], []):
        assert env.clone().step(json.dumps(calls))[1] == 0.0
    asked[0]["arguments"]["number"] = "740"
    observation, reward, *_ = env.step(json.dumps(asked))
    assert observation.startswith("shift failed: it takes number, of type integer; flip gave false")
    assert reward == 0.0


@pytest.mark.parametrize("value", ["1e999", "1e300", '"\\ud800"', "[1]", "null"])
def test_odd_arguments_never_raise(value: str) -> None:
    for name, tool in TOOLS.items():
        env = start(3)
        action = f'[{{"name": "{name}", "arguments": {{"{tool.parameter}": {value}}}}}]'
        observation, reward, *_ = env.step(action)
        assert reward == 0.0
        observation.encode()


def test_a_reply_without_calls_loses_its_round_only() -> None:
    env = start(3)
    observation, reward, terminated, truncated, info = env.step(NO_ACTION)
    assert observation.startswith("That was not valid: the reply names no calls, not even [].\n")
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info["event"] == "no_calls"
    assert env.step('[{"name": "drop"}]')[4]["error"] == "there is no function 'drop'"
    assert env.step(env.oracle())[1:4] == (1 / 3, True, False)
    assert not env.success


def test_notes_keep_what_every_round_gave() -> None:
    env = start(3)
    assert env.optimal_scratchpad() == "Nothing was called yet."
    env.step(env.oracle())
    env.step("[]")
    assert env.optimal_scratchpad() == (
        "Round 1: shift gave 827; flip gave false; scale gave 27.125\nRound 2: No tool was called."
    )


def test_the_four_tools_are_tools() -> None:
    names = [tool["function"]["name"] for tool in start().tools()]
    assert names == list(TOOLS) == ["shift", "label", "scale", "flip"]
    assert all(f'"name": "{name}"' in start().system_prompt for name in names)


@pytest.mark.parametrize("rounds", [0, 11])
def test_impossible_parameters_are_refused(rounds: int) -> None:
    with pytest.raises(ValueError, match="rounds must be between 1 and 10"):
        ToolTest(rounds=rounds)


def test_options_are_refused() -> None:
    with pytest.raises(ValueError, match="tool_test takes no options"):
        ToolTest().reset(seed=0, options={"tools": 2})


def test_anchors() -> None:
    chance = random_policy(random.Random(0))
    assert sum(play(ToolTest(), seed, chance).success for seed in range(1000)) < 10
    played = [play(ToolTest(), seed, oracle_policy) for seed in range(1000)]
    assert all(one.success and one.return_ == 1.0 and one.turns == 3 for one in played)
