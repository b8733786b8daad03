"""The debugger of one episode: stepping, looking, going back, changing, forking."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from envs.base import Info, StepResult
from envs.games.key_door import KeyDoor
from evalkit.debug.interventions import Intervention, InterventionKind
from evalkit.debug.session import Debugger, Phase
from evalkit.debug.view import view
from evalkit.errors import BadConfig, CallFailed, ContextOverflow, Failure, ReplayDiffers
from evalkit.play.baselines import NoopPolicy, OraclePolicy, RandomPolicy
from evalkit.play.rollout import Arm, play
from evalkit.play.strategies import (
    FullHistory,
    NoHistory,
    OptimalScratchpad,
    Scratchpad,
    Strategy,
    Summary,
    Window,
    prompt_digest,
)
from evalkit.record.trajectory import Key, StopReason, Trajectory
from evalkit.testing import FakePolicy, Reply

KEY = Key(env_seed=7, repetition=0, arm="A")
ARM = Arm(
    name="A",
    policy=OraclePolicy(),
    strategy=NoHistory(),
    make_env=lambda: KeyDoor(size=3, max_turns=9),
    run_id="run",
)


def whole(arm: Arm = ARM, key: Key = KEY, **changes: Any) -> Trajectory:
    return asyncio.run(play(replace(arm, **changes), key))


def at(turn: int, debugger: Debugger | None = None, **changes: Any) -> Debugger:
    """Return a debugger that has played `turn` turns."""
    debugger = debugger or Debugger(replace(ARM, **changes), KEY)
    asyncio.run(debugger.run(turn))
    return debugger


def test_stepping_to_the_end_is_playing() -> None:
    debugger = Debugger(ARM, KEY)
    phases = []
    while debugger.end is None:
        asyncio.run(debugger.ask())
        phases.append(debugger.phase)
        asyncio.run(debugger.step())
    assert debugger.end == whole()
    assert set(phases) == {Phase.ANSWERED}
    assert debugger.phase is Phase.OVER


def test_an_answer_waits_and_is_asked_for_once() -> None:
    policy = FakePolicy(lambda _: "<action>up</action>")
    debugger = Debugger(replace(ARM, policy=policy), KEY)
    for _ in range(3):
        assert asyncio.run(debugger.ask()).text == "<action>up</action>"
    assert (debugger.turn, len(policy.asked)) == (0, 1)
    asyncio.run(debugger.step())
    assert (debugger.turn, len(policy.asked)) == (1, 1)
    assert debugger.pending is None


@pytest.mark.parametrize(
    "strategy",
    [NoHistory(), FullHistory(), Window(k=1), Scratchpad(), Summary(k=1), OptimalScratchpad()],
)
def test_going_back_makes_the_same_prompt_again(strategy: Strategy) -> None:
    debugger = at(2, strategy=strategy)
    before = view(debugger)
    asyncio.run(debugger.run(4))
    debugger.back(2)
    assert view(debugger) == before
    assert asyncio.run(debugger.finish()) == whole(strategy=strategy)


def test_going_back_from_the_end_undoes_what_was_changed() -> None:
    debugger = at(1)
    debugger.use(NoopPolicy(), "noop")
    debugger.intervene(InterventionKind.OBSERVATION, "nothing")
    asyncio.run(debugger.run())
    assert debugger.end is not None
    assert not debugger.end.success
    debugger.back(1)
    assert debugger.interventions == []
    assert asyncio.run(debugger.finish()) == whole()


def test_a_turn_that_was_not_reached_cannot_be_gone_back_to() -> None:
    for turn in (-1, 3):
        with pytest.raises(BadConfig, match=f"turn {turn} was not reached: turns 0 to 2 were"):
            at(2).back(turn)


def test_another_observation_is_what_the_model_sees_and_the_record_says() -> None:
    debugger = at(1)
    asyncio.run(debugger.ask())
    debugger.intervene(InterventionKind.OBSERVATION, "a void")
    assert debugger.phase is Phase.ASKING
    assert debugger.prompt()[-1].content == "a void"
    asyncio.run(debugger.step())
    assert debugger.turns[1].observation == "a void"
    assert debugger.turns[1].prompt_digest != whole().turns[1].prompt_digest


def test_a_scratchpad_is_rewritten_where_there_is_one() -> None:
    debugger = at(1, strategy=Scratchpad(max_chars=9))
    debugger.intervene(InterventionKind.NOTES, "key: up")
    assert debugger.prompt()[-1].content.startswith("## Your notes\nkey: up\n\n## Now\n")
    with pytest.raises(BadConfig, match="keeps 9 characters of notes"):
        debugger.intervene(InterventionKind.NOTES, "x" * 10)
    with pytest.raises(BadConfig, match="NO_HISTORY keeps no notes of the model's"):
        at(1).intervene(InterventionKind.NOTES, "key: up")
    kept = [Intervention(turn=1, kind=InterventionKind.NOTES, value="key: up")]
    assert debugger.interventions == kept


def test_a_reply_and_an_action_are_put_in_the_models_mouth() -> None:
    debugger = at(0, strategy=FullHistory())
    debugger.intervene(InterventionKind.REPLY, "<think>no</think> <action>jump</action>")
    asyncio.run(debugger.step())
    debugger.intervene(InterventionKind.ACTION, "interact")
    asyncio.run(debugger.step())
    said = [(turn.completion, turn.action, turn.valid) for turn in debugger.turns]
    assert said == [
        ("<think>no</think> <action>jump</action>", "jump", False),
        ("<action>interact</action>", "interact", True),
    ]
    assert [m.content for m in debugger.prompt()][2::2] == [
        " <action>jump</action>",
        "<action>interact</action>",
    ]


def test_an_action_that_is_not_legal_is_not_forced() -> None:
    debugger = at(1)
    with pytest.raises(BadConfig, match="no legal action 'jump' in turn 1: up, down, left, right"):
        debugger.intervene(InterventionKind.ACTION, "jump")
    assert (debugger.phase, debugger.interventions) == (Phase.ASKING, [])


@pytest.mark.parametrize("before", [NoHistory(), Scratchpad(), Summary(k=1)])
def test_another_strategy_keeps_the_whole_past(before: Strategy) -> None:
    expected = whole(strategy=FullHistory())
    debugger = at(3, strategy=before)
    debugger.intervene(InterventionKind.STRATEGY, "FULL_HISTORY")
    asyncio.run(debugger.run())
    assert debugger.end is not None
    digests = [turn.prompt_digest for turn in debugger.end.turns]
    assert digests[3:] == [turn.prompt_digest for turn in expected.turns[3:]]
    assert digests[1:3] != [turn.prompt_digest for turn in expected.turns[1:3]]


def test_notes_of_the_env_are_of_the_turn_at_which_they_are_asked_for() -> None:
    expected = whole(strategy=OptimalScratchpad())
    debugger = at(3)
    debugger.intervene(InterventionKind.STRATEGY, "OPTIMAL_SCRATCHPAD")
    assert prompt_digest(debugger.prompt()) == expected.turns[3].prompt_digest


def test_a_strategy_that_is_none_changes_nothing() -> None:
    debugger = at(1)
    with pytest.raises(BadConfig, match="no strategy 'TOTAL_RECALL'"):
        debugger.intervene(InterventionKind.STRATEGY, "TOTAL_RECALL")
    assert asyncio.run(debugger.finish()) == whole()


def test_recorded_replies_are_given_until_something_is_changed() -> None:
    parent = whole(policy=RandomPolicy())
    live = FakePolicy(lambda _: "<action>up</action>")
    debugger = Debugger(replace(ARM, policy=live), KEY, recorded=parent.turns)
    at(3, debugger)
    assert (debugger.turns, live.asked, debugger.follows_record) == (parent.turns[:3], [], True)
    debugger.intervene(InterventionKind.ACTION, "down")
    asyncio.run(debugger.run(5))
    assert [ask.turn for ask in live.asked] == [4]
    debugger.back(2)
    assert debugger.follows_record
    asyncio.run(debugger.run(5))
    assert debugger.turns == parent.turns[:5]


def test_a_record_that_does_not_play_the_same_again_is_refused() -> None:
    parent = whole()
    other = replace(parent.turns[1], reward=0.5)
    debugger = Debugger(ARM, KEY, recorded=(parent.turns[0], other))
    with pytest.raises(ReplayDiffers, match=r"turn 1: reward is 0\.1, and 0\.5 is recorded"):
        asyncio.run(debugger.run(2))
    assert (debugger.turn, debugger.phase) == (1, Phase.ASKING)
    moved = Debugger(replace(ARM, strategy=FullHistory()), KEY, recorded=parent.turns)
    with pytest.raises(ReplayDiffers, match="A/7/0: the prompt of turn 1 is not the recorded one"):
        asyncio.run(moved.run(2))
    assert moved.turn == 1


def test_a_call_that_fails_plays_nothing_and_may_be_made_again() -> None:
    said: list[Reply] = [CallFailed(Failure.TIMEOUT, "slow"), "<action>up</action>"]
    replies = iter(said)
    debugger = Debugger(replace(ARM, policy=FakePolicy(lambda _: next(replies))), KEY)
    with pytest.raises(CallFailed, match="slow"):
        asyncio.run(debugger.step())
    assert (debugger.turn, debugger.phase) == (0, Phase.ASKING)
    asyncio.run(debugger.step())
    assert debugger.turn == 1


def test_a_fork_that_is_finished_records_a_call_that_fails() -> None:
    failing = FakePolicy(lambda _: CallFailed(Failure.TIMEOUT, "slow"))
    debugger = at(1)
    debugger.use(failing, "slow")
    end = asyncio.run(debugger.finish())
    assert (end.stop_reason, end.failure, len(end.turns)) == (
        StopReason.INFRA_ERROR,
        Failure.TIMEOUT,
        1,
    )


def test_a_history_that_overflows_ends_the_episode_and_can_be_gone_back_from() -> None:
    debugger = at(2)
    debugger.use(FakePolicy(lambda _: ContextOverflow("full")), "small")
    asyncio.run(debugger.step())
    assert debugger.end is not None
    assert debugger.end.stop_reason is StopReason.CONTEXT_OVERFLOW
    debugger.back(2)
    assert asyncio.run(debugger.finish()) == whole()


def test_a_fork_has_the_past_and_a_future_of_its_own() -> None:
    debugger = at(2)
    debugger.intervene(InterventionKind.OBSERVATION, "a void")
    asyncio.run(debugger.run())
    other = asyncio.run(debugger.fork(3))
    assert (other.turns, other.interventions) == (debugger.turns[:3], debugger.interventions)
    other.use(NoopPolicy(), "noop")
    end = asyncio.run(other.finish())
    assert debugger.end is not None
    assert (debugger.end.success, end.success, len(end.turns)) == (True, False, 9)
    assert asyncio.run(asyncio.run(debugger.fork(2)).finish()) == whole()
    with pytest.raises(BadConfig, match="turn 99 was not reached"):
        asyncio.run(debugger.fork(99))


def test_a_repetition_draws_other_request_seeds_from_where_it_begins() -> None:
    arm = replace(ARM, policy=RandomPolicy())
    debugger = Debugger(arm, KEY)
    at(2, debugger)
    debugger.intervene(InterventionKind.REPETITION, "3")
    end = asyncio.run(debugger.finish())
    assert end.key == replace(KEY, repetition=3)
    assert end.turns[:2] == whole(arm).turns[:2]
    third = whole(arm, replace(KEY, repetition=3))
    assert end.turns[2].request_seed == third.turns[2].request_seed


class Broken(KeyDoor):
    """Its second step raises, and so do its pictures."""

    def step(self, action: str) -> StepResult:
        if self.state()["turn"] == 1:
            raise ZeroDivisionError("of the env")
        return super().step(action)

    def render(self) -> str:
        raise ZeroDivisionError("of the env")


class Unready(KeyDoor):
    """Cannot even begin."""

    def reset(self, *, seed: int, options: Any = None) -> tuple[str, Info]:
        raise ZeroDivisionError(f"of seed {seed}, {options}")


def test_an_env_that_raises_ends_its_episode_and_can_still_be_looked_at() -> None:
    debugger = Debugger(replace(ARM, make_env=lambda: Broken(size=3)), KEY)
    end = asyncio.run(debugger.finish())
    assert (end.stop_reason, len(end.turns)) == (StopReason.ENV_ERROR, 1)
    seen = view(debugger)
    assert (seen["picture"], seen["state"]["turn"], seen["phase"]) == (None, 1, Phase.OVER)
    unready = Debugger(replace(ARM, make_env=Unready), KEY)
    assert view(unready)["stop_reason"] is StopReason.ENV_ERROR
    with pytest.raises(BadConfig, match="the episode is over: env_error"):
        asyncio.run(unready.step())


def test_everything_there_is_to_see() -> None:
    debugger = at(1, strategy=Scratchpad())
    asyncio.run(debugger.ask())
    seen = view(debugger)
    assert seen["prompt"]["digest"] == prompt_digest(debugger.prompt())
    assert [m["role"] for m in seen["prompt"]["messages"]] == ["system", "user"]
    assert seen["state"] == debugger.rollout.env.state()
    assert seen["reply"] == f"<action>{seen['oracle']}</action>"
    assert (seen["turn"], seen["max_turns"], seen["strategy"]) == (1, 9, "SCRATCHPAD")
    assert seen["legal_actions"] == ["up", "down", "left", "right", "interact"]
    assert (seen["notes"], seen["notes_editable"], seen["return"]) == ("", True, 0.0)


@pytest.mark.parametrize("kind", [InterventionKind.REPLY, InterventionKind.OBSERVATION])
def test_a_text_that_no_file_can_hold_changes_nothing(kind: InterventionKind) -> None:
    debugger = at(1)
    with pytest.raises(BadConfig, match="not UTF-8"):
        debugger.intervene(kind, "a\ud800")
    assert (debugger.interventions, debugger.pending) == ([], None)


def test_a_reply_that_is_not_taken_is_not_written_down() -> None:
    debugger = at(1)
    debugger.intervene(InterventionKind.REPLY, "<action>up</action>")
    debugger.intervene(InterventionKind.OBSERVATION, "fog")
    fog = Intervention(turn=1, kind=InterventionKind.OBSERVATION, value="fog")
    assert debugger.interventions == [fog]
    debugger.intervene(InterventionKind.REPLY, "<action>up</action>")
    debugger.intervene(InterventionKind.ACTION, "interact")
    forced = Intervention(turn=1, kind=InterventionKind.ACTION, value="interact")
    assert debugger.interventions == [fog, forced]
    debugger.use(ARM.policy, "other")
    model = Intervention(turn=1, kind=InterventionKind.MODEL, value="other")
    assert debugger.interventions == [fog, model]
