"""From completions to actions and outcomes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.games.key_door import KeyDoor
from evalkit.play.parsing import Reading, read, split_reasoning
from evalkit.play.policy import Completion
from evalkit.record.trajectory import Outcome

UP = "<action>up</action>"
THINK_UP = f"<think>{UP}</think>"


@pytest.mark.parametrize(
    ("text", "visible", "reasoning"),
    [
        ("", "", None),
        ("plain", "plain", None),
        ("I think so", "I think so", None),
        ("<think>a</think>b", "b", "a"),
        ("a<think>b</think>c", "ac", "b"),
        ("<think>\na\n</think>\n\nb", "\n\nb", "a"),
        ("<thinking>a</thinking>b", "b", "a"),
        ("<THINK>a</THINK>b", "b", "a"),
        ("<tHiNk>a</Think>b", "b", "a"),
        ("<think></think>b", "b", ""),
        ("<think>a", "", "a"),
        ("b<think>a", "b", "a"),
        ("a</think>b", "b", "a"),
        ("a</thinking>b", "b", "a"),
        ("</think>b", "b", ""),
        ("a</think>b</think>c", "c", "a\nb"),
        ("a</think>b<think>c</think>d", "bd", "a\nc"),
        ("a</think>b<think>c", "b", "a\nc"),
        ("<think>a</think>b<think>c</think>d", "bd", "a\nc"),
        ("<think>a</think>b<think>c", "b", "a\nc"),
        ("<think>a<think>b</think>c", "c", "a<think>b"),
        ("<think>a<think>b</think>c</think>d", "d", "a<think>b\nc"),
        ("<think>a</thinking>b", "b", "a"),
        ("<think >a</think>b", "b", "<think >a"),
        ("<thinker>a</thinker>b", "<thinker>a</thinker>b", None),
    ],
)
def test_reasoning_is_split_off(text: str, visible: str, reasoning: str | None) -> None:
    assert split_reasoning(text) == (visible, reasoning)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (Completion(text=UP), Reading(UP, None, "up", Outcome.OK)),
        (
            Completion(text=f"<think>hm</think>{UP}"),
            Reading(UP, "hm", "up", Outcome.OK),
        ),
        (
            Completion(text=f"{THINK_UP}<action>down</action>"),
            Reading("<action>down</action>", UP, "down", Outcome.OK),
        ),
        (Completion(text=THINK_UP), Reading("", UP, "", Outcome.EMPTY)),
        (Completion(text=f"<think>{UP}"), Reading("", UP, "", Outcome.EMPTY)),
        (
            Completion(text=UP, reasoning="sent apart"),
            Reading(UP, "sent apart", "up", Outcome.OK),
        ),
        (
            Completion(text=f"<think>inline</think>{UP}", reasoning="sent apart"),
            Reading(UP, "sent apart", "up", Outcome.OK),
        ),
        (
            Completion(text=f"{UP}<action>down</action>"),
            Reading(f"{UP}<action>down</action>", None, "up", Outcome.MULTI_ACTION),
        ),
        (Completion(text="up"), Reading("up", None, "", Outcome.NO_ACTION)),
        (
            Completion(text="<action> </action>"),
            Reading("<action> </action>", None, "", Outcome.NO_ACTION),
        ),
        (Completion(text=""), Reading("", None, "", Outcome.EMPTY)),
        (Completion(text=" \n"), Reading(" \n", None, "", Outcome.EMPTY)),
        (
            Completion(text="<action>up"),
            Reading("<action>up", None, "up", Outcome.UNCLOSED),
        ),
        (
            Completion(text=f"{UP} because", finish_reason="length"),
            Reading(f"{UP} because", None, "up", Outcome.TRUNCATED_TOKENS),
        ),
        (
            Completion(text="<action>up", finish_reason="length"),
            Reading("<action>up", None, "", Outcome.TRUNCATED_TOKENS),
        ),
        (
            Completion(text="I will", finish_reason="length"),
            Reading("I will", None, "", Outcome.TRUNCATED_TOKENS),
        ),
        (
            Completion(text="<think>for ever", finish_reason="length"),
            Reading("", "for ever", "", Outcome.TRUNCATED_TOKENS),
        ),
        (
            Completion(text="I cannot help with that", refusal=True),
            Reading("I cannot help with that", None, "", Outcome.REFUSAL),
        ),
        (
            Completion(text="", refusal=True, finish_reason="length"),
            Reading("", None, "", Outcome.REFUSAL),
        ),
    ],
)
def test_a_completion_is_read(completion: Completion, expected: Reading) -> None:
    assert read(completion, KeyDoor()) == expected


TAGS = st.sampled_from(
    ["<think>", "</think>", "<THINKING>", "</thinking>", "<action>", "</action>", "up", "<", "é"]
)


@given(
    text=st.lists(TAGS | st.text(max_size=5), max_size=12).map("".join),
    finish=st.sampled_from(["stop", "length", None]),
    refusal=st.booleans(),
)
def test_reading_never_raises_and_loses_no_text(
    text: str, finish: str | None, refusal: bool
) -> None:
    completion = Completion(text=text, finish_reason=finish, refusal=refusal)
    reading = read(completion, KeyDoor())
    assert len(reading.visible) + len(reading.reasoning or "") <= len(text)
    assert (reading.action == "") or (reading.action in reading.visible.lower())


@pytest.mark.parametrize("text", ["<think>", "</think>", "<think></think>", "<think>x</think>y"])
def test_a_megabyte_of_tags_takes_no_time(text: str) -> None:
    visible, reasoning = split_reasoning(text * (1_000_000 // len(text)))
    assert "think" not in visible
    assert reasoning is not None
