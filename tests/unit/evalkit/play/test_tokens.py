"""Token mode: prompts go on from sampled ids, answers carry logprobs and versions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest

from envs import make
from evalkit.errors import BadConfig, CallFailed, Failure
from evalkit.play.limits import Patience, RetryLimits
from evalkit.play.rollout import Arm, play
from evalkit.play.strategies import Message, Messages, parse_strategy
from evalkit.play.tokens import TokenModel, TokenPolicy, TokenSampling, read_tokens
from evalkit.record.trajectory import Key, StopReason, Trajectory
from evalkit.testing import FakeTransport, response

END = 3


class Letters:
    """One id per character, messages between 1 and 2; a reply ends with 3."""

    keeps_replies = True

    def render(self, messages: Messages) -> list[int]:
        return [id_ for m in messages for id_ in (1, *map(ord, m.content), 2)] + [1]

    def goes_on(self, reply: Sequence[int], said: Message) -> list[int] | None:
        if not self.keeps_replies:
            return None
        close = [] if reply and reply[-1] == END else [END]
        return [*close, 1, *map(ord, said.content), 2, 1]

    def text(self, ids: Sequence[int]) -> str:
        return "".join(chr(id_) for id_ in ids if id_ > 3)


def generation(
    ids: Sequence[int],
    *,
    headers: Mapping[str, str] | None = None,
    finish_reason: str = "stop",
    **more: Any,
) -> Any:
    content = [{"token": id_, "logprob": -0.5 - i} for i, id_ in enumerate(ids)]
    choice = {"token_ids": ids, "logprobs": {"content": content}, "finish_reason": finish_reason}
    body = orjson.dumps({"choices": [choice | more]})
    return response(body, headers={"x-policy-version": "7"} if headers is None else headers)


def answer(text: str) -> list[int]:
    return [*map(ord, text), END]


def model(transport: FakeTransport, renderer: Letters, **how: Any) -> TokenModel:
    return TokenModel(
        transport,
        model="tiny",
        renderer=renderer,
        sampling=TokenSampling(max_tokens=8),
        patience=Patience(RetryLimits(attempts=2, backoff_s=0.0), sleep=_no_sleep),
        max_len=how.get("max_len", 100_000),
    )


async def _no_sleep(seconds: float) -> None:
    del seconds


def episode(
    strategy: str, reply: str, renderer: Letters | None = None, **how: Any
) -> tuple[Trajectory, TokenPolicy, list[dict[str, Any]]]:
    transport = FakeTransport(lambda _: how.get("answered") or generation(answer(reply)))
    policy = TokenPolicy(model(transport, renderer or Letters(), **how))
    arm = Arm(
        name="train",
        policy=policy,
        strategy=parse_strategy(strategy),
        make_env=lambda: make("key_door", size=3, max_turns=4),
        run_id="r",
    )
    played = asyncio.run(play(arm, Key(env_seed=1, repetition=0, arm="train")))
    return played, policy, [orjson.loads(body) for body, _ in transport.posted]


def test_full_history_goes_on_from_the_sampled_ids() -> None:
    played, policy, asked = episode("FULL_HISTORY", "<action>up</action>")
    assert played.stop_reason is StopReason.TRUNCATED
    assert len(policy.turns) == len(played.turns) == 4
    for before, after in zip(policy.turns, policy.turns[1:], strict=False):
        held = (*before.prompt, *before.sampled)
        assert after.prompt[: len(held)] == held
    assert [each["token_ids"] for each in asked] == [list(turn.prompt) for turn in policy.turns]
    assert asked[0]["model"] == "tiny"
    params = asked[0]["sampling_params"]
    assert params.pop("seed") == played.turns[0].request_seed
    assert params == {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8, "logprobs": 0}


def test_a_prompt_that_ids_reach_is_the_one_that_messages_reach() -> None:
    """Where replies tokenise as they were sampled, both ways give the same ids."""
    _, on, _ = episode("FULL_HISTORY", "<action>up</action>")
    renderer = Letters()
    renderer.keeps_replies = False
    _, anew, _ = episode("FULL_HISTORY", "<action>up</action>", renderer)
    # The fake's whole prompts close a reply with 2; only that differs.
    assert [p.prompt[:40] for p in on.turns] == [p.prompt[:40] for p in anew.turns]
    assert len(on.turns[-1].prompt) == len(anew.turns[-1].prompt)


@pytest.mark.parametrize("strategy", ["NO_HISTORY", "SCRATCHPAD", "WINDOW(1)"])
def test_rewritten_prompts_are_rendered_anew(strategy: str) -> None:
    reply = "<scratchpad>here</scratchpad><action>up</action>"
    _, policy, _ = episode(strategy, reply)
    held = (*policy.turns[1].prompt, *policy.turns[1].sampled)
    assert policy.turns[2].prompt[: len(held)] != held


def test_thoughts_that_the_history_leaves_out_end_the_row() -> None:
    _, policy, _ = episode("FULL_HISTORY", "<think>hm</think><action>up</action>")
    held = (*policy.turns[0].prompt, *policy.turns[0].sampled)
    assert policy.turns[1].prompt[: len(held)] != held
    assert "hm" not in Letters().text(policy.turns[1].prompt)


def test_each_token_has_its_logprob_and_version() -> None:
    turn, reason = read_tokens(generation([5, 6, END]), (1, 2))
    assert (turn.prompt, turn.sampled, reason) == ((1, 2), (5, 6, END), "stop")
    assert turn.logprobs == (-0.5, -1.5, -2.5)
    assert turn.versions == (7, 7, 7)


@pytest.mark.parametrize(("label", "end"), [("tiny@8", "8"), ("tiny@8?", "0")])
def test_a_swap_on_the_way_shows_token_by_token(label: str, end: str) -> None:
    """With a question mark as long as the gateway has not proved the new weights."""
    spans = [
        {"version": "tiny@7", "start": 0, "end": 1},
        {"version": label, "start": 1, "end": 3},
    ]
    headers = {"x-policy-version": "7", "x-policy-version-end": end}
    turn, _ = read_tokens(generation([5, 6, 9], headers=headers, weight_versions=spans), (1,))
    assert turn.versions == (7, 8, 8)


def test_an_adapters_version_is_the_gateways_word() -> None:
    """The engine's spans name the base that the adapter sits on."""
    spans = [{"version": "tiny@1", "start": 0, "end": 2}]
    turn, _ = read_tokens(generation([5, 6], weight_versions=spans), (1,))
    assert turn.versions == (7, 7)


@pytest.mark.parametrize(
    "said",
    [
        generation([5, 6], headers={}),
        generation([]),
        generation([5], finish_reason="abort"),
        generation([5], logprobs={"content": []}),
        generation(
            [5, 6],
            headers={"x-policy-version": "7", "x-policy-version-end": "8"},
            weight_versions=[{"version": "tiny@7", "start": 0, "end": 1}],
        ),
        response(b"{}"),
        response(b"<html>"),
    ],
)
def test_what_does_not_say_all_is_no_answer(said: Any) -> None:
    with pytest.raises(CallFailed) as caught:
        read_tokens(said, (1,))
    assert caught.value.failure is Failure.BAD_REPLY


def test_a_failed_call_is_tried_again_and_then_data() -> None:
    played, _, asked = episode("NO_HISTORY", "", answered=response(b"no", 500))
    assert played.stop_reason is StopReason.INFRA_ERROR
    assert len(asked) == 2


def test_a_prompt_without_room_is_an_overflow_and_never_sent() -> None:
    _, whole, _ = episode("FULL_HISTORY", "<action>up</action>")
    room = len(whole.turns[2].prompt) + 8  # for the third turn, not for the fourth
    played, policy, asked = episode("FULL_HISTORY", "<action>up</action>", max_len=room)
    assert played.stop_reason is StopReason.CONTEXT_OVERFLOW
    assert len(asked) == len(policy.turns) == 3
    assert played.return_ == -0.5


def test_nonsense_is_refused() -> None:
    with pytest.raises(BadConfig, match="no room"):
        model(FakeTransport(lambda _: generation([5])), Letters(), max_len=8)
