"""The episode loop: one whole record, every way to end, every outcome of a turn."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from envs import TextEnv
from envs.base import Info, StepResult
from envs.games.key_door import KeyDoor
from evalkit.errors import CallFailed, ContextOverflow, Failure, RunFailed
from evalkit.play.baselines import NoopPolicy, OraclePolicy, RandomPolicy, ScriptPolicy
from evalkit.play.policy import Ask, Completion, request_seed
from evalkit.play.rollout import Arm, play
from evalkit.play.strategies import FullHistory, NoHistory, Scratchpad, Strategy
from evalkit.record.trajectory import Key, Memory, Outcome, StopReason, Trajectory, Turn
from evalkit.testing import FakePolicy, Reply

KEY = Key(env_seed=7, repetition=0, arm="A")
ARM = Arm(
    name="A",
    policy=NoopPolicy(),
    strategy=NoHistory(),
    make_env=lambda: KeyDoor(size=2, max_turns=5),
    run_id="run",
)


def played(arm: Arm = ARM, key: Key = KEY, **changes: Any) -> Trajectory:
    return asyncio.run(play(replace(arm, **changes), key))


def scripted(*replies: Reply) -> FakePolicy:
    """Answer with the reply of the turn; the last one for ever."""
    return FakePolicy(lambda ask: replies[min(ask.turn, len(replies) - 1)])


def action(name: str) -> str:
    return f"<action>{name}</action>"


def shape(trajectory: Trajectory) -> tuple[StopReason, bool, float, Failure | None, int]:
    """Return what decides how an episode counts."""
    return (
        trajectory.stop_reason,
        trajectory.success,
        round(trajectory.return_, 9),
        trajectory.failure,
        len(trajectory.turns),
    )


def turn(number: int, digest: str, **values: Any) -> Turn:
    """Return a turn of the recorded episode below: a plain legal action, but for `values`."""
    defaults: dict[str, Any] = {
        "reasoning": None,
        "outcome": Outcome.OK,
        "valid": True,
        "reward": 0.0,
        "event": None,
        "error": None,
        "memory": None,
        "finish_reason": "stop",
        "prompt_tokens": None,
        "completion_tokens": None,
        "policy_version": None,
    }
    return Turn(
        turn=number,
        request_seed=request_seed(3, "key_door", 7, 0, number),
        prompt_digest=digest,
        **{**defaults, **values},
    )


def test_an_episode_is_recorded_whole() -> None:
    """Seed 7 of the 2x2 grid: start at (1, 0), key at (0, 0), door at (0, 1)."""
    counted = Completion(
        text=f"<think>north</think>{action('UP')}",
        prompt_tokens=30,
        completion_tokens=4,
        policy_version="7",
    )
    policy = scripted(counted, action("interact"), action("right"), action("interact"))
    trajectory = played(policy=policy, run_seed=3)
    digests = [turn.prompt_digest for turn in trajectory.turns]
    nothing = "Your hands are empty. Nothing is here. "
    assert trajectory == Trajectory(
        key=KEY,
        turns=(
            turn(
                0,
                digests[0],
                observation=f"You are at (1, 0) in a 2x2 grid. {nothing}You can go up to (0, 0), "
                "right to (1, 1), or interact. What do you do?",
                completion=counted.text,
                reasoning="north",
                action="up",
                prompt_tokens=30,
                completion_tokens=4,
                policy_version="7",
            ),
            turn(
                1,
                digests[1],
                observation="You are at (0, 0) in a 2x2 grid. Your hands are empty. A key lies on "
                "the floor. You can go down to (1, 0), right to (0, 1), or interact. "
                "What do you do?",
                completion=action("interact"),
                action="interact",
                reward=0.1,
                event="key_picked_up",
            ),
            turn(
                2,
                digests[2],
                observation="You pick up the key. You are at (0, 0) in a 2x2 grid. You carry the "
                "key. Nothing is here. You can go down to (1, 0), right to (0, 1), or interact. "
                "What do you do?",
                completion=action("right"),
                action="right",
            ),
            turn(
                3,
                digests[3],
                observation="You are at (0, 1) in a 2x2 grid. You carry the key. A locked door is "
                "in front of you. You can go down to (1, 1), left to (0, 0), or interact. "
                "What do you do?",
                completion=action("interact"),
                action="interact",
                reward=1.0,
                event="door_unlocked",
            ),
        ),
        final_observation="The key turns and the door opens. You made it.",
        success=True,
        return_=1.1,
        optimal_turns=4,
        stop_reason=StopReason.TERMINATED,
    )
    assert all(len(digest) == 16 for digest in digests)
    assert Trajectory.from_json(trajectory.to_json()) == trajectory
    assert [ask.request_id for ask in policy.asked] == [f"run-A-7-0-{n}" for n in range(4)]
    assert {ask.session_id for ask in policy.asked} == {"run-A-7-0"}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (OraclePolicy(), (StopReason.TERMINATED, True, 1.1, None, 4)),
        (NoopPolicy(), (StopReason.TRUNCATED, False, -0.5, None, 5)),
        (ScriptPolicy([action("up")]), (StopReason.TRUNCATED, False, -0.5, None, 5)),
        (
            scripted(action("up"), action("interact"), action("left")),
            (StopReason.TRUNCATED, False, -0.4, None, 5),
        ),
        (
            scripted(ContextOverflow("too long")),
            (StopReason.CONTEXT_OVERFLOW, False, -0.5, Failure.CONTEXT_OVERFLOW, 0),
        ),
        (
            scripted(action("up"), action("interact"), ContextOverflow("too long")),
            (StopReason.CONTEXT_OVERFLOW, False, -0.4, Failure.CONTEXT_OVERFLOW, 2),
        ),
        (
            scripted(action("up"), action("interact"), CallFailed(Failure.TIMEOUT, "slow")),
            (StopReason.INFRA_ERROR, False, 0.1, Failure.TIMEOUT, 2),
        ),
    ],
    ids=lambda value: value[0].value if isinstance(value, tuple) else type(value).__name__,
)
def test_how_episodes_end(
    policy: FakePolicy, expected: tuple[StopReason, bool, float, Failure | None, int]
) -> None:
    trajectory = played(policy=policy)
    assert shape(trajectory) == expected
    unscored = {StopReason.INFRA_ERROR, StopReason.ENV_ERROR}
    assert trajectory.scored == (expected[0] not in unscored)


def test_a_failed_call_keeps_its_message() -> None:
    trajectory = played(policy=scripted(CallFailed(Failure.TIMEOUT, "no answer within 5 s")))
    assert trajectory.failure_message == "no answer within 5 s"


@pytest.mark.parametrize(
    ("reply", "outcome", "taken", "valid"),
    [
        (action("up"), Outcome.OK, "up", True),
        (action("left"), Outcome.OK, "left", True),
        (action("up") + action("down"), Outcome.MULTI_ACTION, "up", True),
        ("<action>up", Outcome.UNCLOSED, "up", True),
        (action("fly"), Outcome.ILLEGAL, "fly", False),
        (action("fly") + action("up"), Outcome.ILLEGAL, "fly", False),
        ("<action>up and away", Outcome.ILLEGAL, "up and away", False),
        ("up", Outcome.NO_ACTION, None, False),
        ("", Outcome.EMPTY, None, False),
        (f"<think>{action('up')}", Outcome.EMPTY, None, False),
        (Completion(text="no", refusal=True), Outcome.REFUSAL, None, False),
        (
            Completion(text=action("up"), finish_reason="length"),
            Outcome.TRUNCATED_TOKENS,
            "up",
            True,
        ),
        (
            Completion(text="<action>up", finish_reason="length"),
            Outcome.TRUNCATED_TOKENS,
            None,
            False,
        ),
        (
            Completion(text=action("fly"), finish_reason="length"),
            Outcome.TRUNCATED_TOKENS,
            "fly",
            False,
        ),
    ],
)
def test_the_outcome_of_a_turn(
    reply: Reply, outcome: Outcome, taken: str | None, valid: bool
) -> None:
    first = played(policy=scripted(reply, "")).turns[0]
    assert (first.outcome, first.action, first.valid) == (outcome, taken, valid)
    assert (first.error is None) == valid


def test_what_the_history_keeps_of_reasoning_is_a_choice() -> None:
    shown = {}
    for keep in (False, True):
        policy = scripted(f"<think>hm</think>{action('up')}", "")
        played(policy=policy, strategy=FullHistory(), keep_reasoning=keep)
        shown[keep] = [message.content for message in policy.asked[1].messages][2]
    assert shown == {False: action("up"), True: f"<think>hm</think>{action('up')}"}


def test_notes_are_counted_on_every_turn() -> None:
    policy = scripted(f"<scratchpad>x</scratchpad>{action('up')}", action("up"))
    trajectory = played(policy=policy, strategy=Scratchpad())
    assert [turn.memory for turn in trajectory.turns] == [Memory.REPLACED] + 4 * [Memory.MISSING]


@pytest.mark.parametrize("guided", [False, True])
def test_only_guided_arms_ask_for_a_pattern(guided: bool) -> None:
    policy = scripted("")
    played(policy=policy, guided=guided)
    pattern = r"<action>(up|down|left|right|interact)</action>"
    assert {ask.pattern for ask in policy.asked} == {pattern if guided else None}


def overflowing(limit: int) -> FakePolicy:
    """Refuse prompts of more than `limit` messages."""
    return FakePolicy(
        lambda ask: ContextOverflow("long") if len(ask.messages) > limit else action("up")
    )


@pytest.mark.parametrize(
    ("strategy", "stop", "n_turns"),
    [
        (FullHistory(), StopReason.CONTEXT_OVERFLOW, 2),
        (FullHistory(overflow="drop_oldest"), StopReason.TRUNCATED, 5),
        (NoHistory(), StopReason.TRUNCATED, 5),
    ],
)
def test_a_history_that_does_not_fit(strategy: Strategy, stop: StopReason, n_turns: int) -> None:
    trajectory = played(policy=overflowing(4), strategy=strategy)
    assert (trajectory.stop_reason, len(trajectory.turns)) == (stop, n_turns)
    assert trajectory.return_ == -0.5


def test_a_prompt_that_never_fits_ends_the_episode_even_when_the_oldest_may_be_dropped() -> None:
    trajectory = played(policy=overflowing(1), strategy=FullHistory(overflow="drop_oldest"))
    assert trajectory.stop_reason is StopReason.CONTEXT_OVERFLOW


def test_overflow_as_an_error_ends_the_run() -> None:
    with pytest.raises(RunFailed):
        played(policy=overflowing(2), strategy=FullHistory(overflow="error"))


def test_repetitions_ask_with_other_seeds_and_arms_with_the_same() -> None:
    asked = {}
    for arm, repetition in (("A", 0), ("B", 0), ("A", 1)):
        policy = scripted(action("up"))
        played(policy=policy, key=Key(env_seed=7, repetition=repetition, arm=arm))
        asked[arm, repetition] = [ask.seed for ask in policy.asked]
    assert asked["A", 0] == asked["B", 0]
    assert set(asked["A", 0]).isdisjoint(asked["A", 1])


class Rogue(KeyDoor):
    """A key_door that breaks its contract in one named place."""

    def __init__(self, *, breaks: str) -> None:
        super().__init__(size=2, max_turns=5)
        self.breaks = breaks

    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        self._fail("reset")
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> StepResult:
        self._fail("step")
        shown, reward, terminated, truncated, info = super().step(action)
        broken: dict[str, Any] = {
            "observation": (None, reward, terminated, truncated, info),
            "no reward": (shown, None, terminated, truncated, info),
            "nan": (shown, math.nan, terminated, truncated, info),
            "infinite": (shown, math.inf, terminated, truncated, info),
            "info": (shown, reward, terminated, truncated, None),
            "four": (shown, reward, terminated, info),
            "endless": (shown, reward, terminated, False, info),
        }
        result: StepResult = broken.get(self.breaks, (shown, reward, terminated, truncated, info))
        return result

    @property
    def success(self) -> bool:
        self._fail("success")
        return super().success

    def parse(self, completion: str) -> Any:
        self._fail("parse")
        return super().parse(completion)

    def oracle(self) -> str:
        self._fail("oracle")
        return super().oracle()

    def legal_actions(self) -> tuple[str, ...]:
        return () if self.breaks == "legal_actions" else super().legal_actions()

    def optimal_turns(self) -> int | None:
        self._fail("optimal_turns")
        return super().optimal_turns()

    def action_pattern(self) -> str:
        self._fail("pattern")
        return super().action_pattern()

    @property
    def system_prompt(self) -> str:
        self._fail("prompt")
        return super().system_prompt

    def _fail(self, where: str) -> None:
        if where == self.breaks:
            raise ZeroDivisionError(where)


def rogue(breaks: str) -> Callable[[], TextEnv]:
    return lambda: Rogue(breaks=breaks)


@pytest.mark.parametrize(
    "breaks",
    [
        "reset",
        "prompt",
        "pattern",
        "optimal_turns",
        "parse",
        "step",
        "four",
        "observation",
        "no reward",
        "nan",
        "infinite",
        "info",
        "endless",
        "success",
    ],
)
def test_a_broken_env_is_an_unscored_episode(breaks: str) -> None:
    trajectory = played(policy=scripted(action("up")), make_env=rogue(breaks), guided=True)
    assert (trajectory.stop_reason, trajectory.failure) == (
        StopReason.ENV_ERROR,
        Failure.ENV_BUG,
    )
    assert not trajectory.scored
    assert not trajectory.success
    assert trajectory.failure_message
    assert Trajectory.from_json(trajectory.to_json()) == trajectory


@pytest.mark.parametrize(
    ("policy", "breaks"), [(OraclePolicy(), "oracle"), (RandomPolicy(), "legal_actions")]
)
def test_an_env_that_breaks_under_a_baseline_is_an_unscored_episode(
    policy: OraclePolicy, breaks: str
) -> None:
    trajectory = played(policy=policy, make_env=rogue(breaks))
    assert (trajectory.stop_reason, trajectory.failure) == (StopReason.ENV_ERROR, Failure.ENV_BUG)


def test_an_env_that_breaks_while_turns_are_forfeited_is_an_unscored_episode() -> None:
    for breaks in ("step", "endless", "nan"):
        trajectory = played(policy=scripted(ContextOverflow("long")), make_env=rogue(breaks))
        assert trajectory.stop_reason is StopReason.ENV_ERROR


def test_a_policy_that_raises_anything_else_is_a_bug_and_no_data() -> None:
    with pytest.raises(ZeroDivisionError):
        played(policy=scripted(ZeroDivisionError("a bug")))


def test_a_policy_sees_the_env_as_it_is_before_its_turn() -> None:
    seen: list[tuple[int, str]] = []

    def reply(ask: Ask) -> str:
        seen.append((ask.env.state()["turn"], ask.messages[-1].content))
        return action("up")

    trajectory = played(policy=FakePolicy(reply))
    assert seen == [(turn.turn, turn.observation) for turn in trajectory.turns]
