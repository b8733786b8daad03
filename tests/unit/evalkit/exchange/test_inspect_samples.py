"""Samples of inspect as episodes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from evalkit.errors import Failure
from evalkit.exchange.inspect_samples import (
    MOST,
    NoGrade,
    Reading,
    flat_scores,
    graded,
    seed_of,
    tokens,
)
from evalkit.record.trajectory import Key, StopReason

READING = Reading(arm="m", model="m", score="s", return_score="s", success_at=1.0)


def _sample(**changed: Any) -> dict[str, Any]:
    sample = {
        "id": 7,
        "epoch": 2,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "2"},
        ],
        "scores": {"s": {"value": "C"}},
    }
    return {**sample, **changed}


@pytest.mark.parametrize(
    ("value", "grade"),
    [
        ("C", 1.0), ("I", 0.0), ("P", 0.5), ("N", 0.0), ("yes", 1.0), ("False", 0.0), ("2.5", 2.5),
        (True, 1.0), (3, 3.0), (0.25, 0.25), (None, None), (math.nan, None),
    ],
)  # fmt: skip
def test_grades(value: object, grade: float | None) -> None:
    assert graded(value) == grade


@pytest.mark.parametrize("value", ["great", [1, 2], {"a": 1}])
def test_what_is_no_grade(value: object) -> None:
    with pytest.raises(NoGrade, match="expected"):
        graded(value)


def test_ids_that_are_numbers_are_seeds_and_others_are_hashed() -> None:
    assert [seed_of(each) for each in (0, 17, "17", MOST - 1)] == [0, 17, 17, MOST - 1]
    others = [seed_of(each) for each in ("sum-2", "017", "-1", str(MOST), "１", "")]
    assert len(set(others)) == 6
    assert all(17 < seed < MOST for seed in others)
    assert seed_of("sum-2") == seed_of("sum-2")


def test_scores_of_several_values_have_a_name_each() -> None:
    scores = {"a": {"value": "C"}, "b": {"value": {"x": 1, "y": 0}}}
    assert list(flat_scores(scores)) == [("a", "C"), ("b/x", 1), ("b/y", 0)]
    assert list(flat_scores(None)) == []


def test_cached_tokens_were_sent_too() -> None:
    usage = {"input_tokens": 10, "output_tokens": 4, "input_tokens_cache_read": 90}
    assert tokens(usage) == (100, 4)
    assert tokens(None) == (None, None)


def test_a_sample_is_an_episode() -> None:
    episode = READING.episode(_sample(model_usage={"m": {"input_tokens": 9, "output_tokens": 1}}))
    (turn,) = episode.turns
    assert episode.key == Key(env_seed=7, repetition=1, arm="m")
    assert (episode.success, episode.return_) == (True, 1.0)
    assert episode.stop_reason is StopReason.TERMINATED
    assert (turn.observation, turn.completion) == ("1+1?", "2")
    assert (turn.prompt_tokens, turn.completion_tokens, turn.finish_reason) == (9, 1, None)


def test_tokens_are_those_of_the_calls_where_there_is_one_per_reply() -> None:
    reply = {
        "role": "assistant",
        "content": "3",
        "tool_calls": [{"function": "f", "arguments": {}}],
    }
    messages = [*_sample()["messages"], {"role": "tool", "content": "ok"}, reply]

    def call(sent: int, stop: str, model: str = "m") -> dict[str, Any]:
        usage = {"input_tokens": sent, "output_tokens": 1}
        output = {"choices": [{"stop_reason": stop}], "usage": usage}
        return {"event": "model", "model": model, "output": output}

    events = [call(5, "stop"), {"event": "info"}, call(99, "stop", "grader"), call(8, "max_tokens")]
    first, second = READING.episode(_sample(messages=messages, events=events)).turns
    assert (first.prompt_tokens, first.finish_reason) == (5, "stop")
    assert (second.prompt_tokens, second.finish_reason) == (8, "length")
    assert (second.observation, second.completion) == ("ok", "3\nf({})")


@pytest.mark.parametrize(
    ("changed", "stop"),
    [
        ({"limit": {"type": "message"}}, StopReason.TRUNCATED),
        ({"limit": {"type": "context"}}, StopReason.CONTEXT_OVERFLOW),
        ({"error": {"message": "boom"}}, StopReason.TERMINATED),
    ],
)
def test_what_has_a_score_counts(changed: dict[str, Any], stop: StopReason) -> None:
    episode = READING.episode(_sample(**changed))
    assert episode.scored
    assert episode.stop_reason is stop


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scores": None, "error": {"message": "boom"}}, "boom"),
        ({"scores": {"s": {"value": math.nan}}}, "no score 's'"),
        ({"scores": {"other": {"value": 1}}}, "no score 's'"),
    ],
)
def test_what_has_no_score_is_lost(changed: dict[str, Any], said: str) -> None:
    episode = READING.episode(_sample(**changed))
    assert not episode.scored
    assert (episode.failure, episode.failure_message) == (Failure.SERVER_ERROR, said)
    assert (episode.success, episode.return_) == (False, 0.0)


def test_reasoning_and_pictures_are_told_from_text() -> None:
    parts = [
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "text", "text": "2"},
        {"type": "image", "image": "data:"},
    ]
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": parts}]
    (turn,) = READING.episode(_sample(messages=messages)).turns
    assert (turn.completion, turn.reasoning) == ("2\n[image]", "hm")


def test_success_begins_at_the_level_asked_for() -> None:
    lenient = Reading(arm="m", model="m", score="s", return_score="s", success_at=0.5)
    half = _sample(scores={"s": {"value": "P"}})
    assert (READING.episode(half).success, lenient.episode(half).success) == (False, True)
