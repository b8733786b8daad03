"""From a completion to an action and an outcome: reasoning off first, then the env's own parser."""

from __future__ import annotations

import re
from dataclasses import dataclass

from envs import NO_ACTION, ParseKind, TextEnv
from evalkit.play.policy import Completion
from evalkit.record.trajectory import Outcome

_TAG = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_KINDS = {
    ParseKind.OK: Outcome.OK,
    ParseKind.MULTI_ACTION: Outcome.MULTI_ACTION,
    ParseKind.UNCLOSED: Outcome.UNCLOSED,
    ParseKind.NO_ACTION: Outcome.NO_ACTION,
    ParseKind.EMPTY: Outcome.EMPTY,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """A completion, taken apart."""

    visible: str
    """The text without reasoning: what is parsed, and what the history keeps."""
    reasoning: str | None
    action: str
    """What the env is asked to do; `NO_ACTION` for nothing."""
    outcome: Outcome
    """As far as the text tells: whether the action is legal only the env knows."""


def read(completion: Completion, env: TextEnv) -> Reading:
    """Take a completion apart.

    A completion cut by the token limit acts only if its action was complete before the cut.
    """
    visible, inline = split_reasoning(completion.text)
    reasoning = completion.reasoning or inline
    parsed = env.parse(visible)
    action = parsed.action or NO_ACTION
    outcome = _KINDS[parsed.kind]
    if completion.finish_reason == "length":
        outcome = Outcome.TRUNCATED_TOKENS
        if parsed.kind is ParseKind.UNCLOSED:
            action = NO_ACTION
    if completion.refusal:
        outcome = Outcome.REFUSAL
    return Reading(visible, reasoning, action, outcome)


def split_reasoning(text: str) -> tuple[str, str | None]:
    """Split a text into (what is meant for others, reasoning or None).

    Reasoning is what stands in `<think>..</think>`, what follows a `<think>` that is never
    closed, and what precedes a `</think>` that was never opened (templates open it in the prompt).
    Takes time in proportion to the text, whatever a model repeats in it.
    """
    if "think" not in text.lower():
        return text, None
    thoughts: list[str] = []
    shown: list[str] = []
    inside, at = False, 0
    for tag in _TAG.finditer(text):
        closes = bool(tag[1])
        if inside and not closes:
            continue  # an opening within reasoning is a part of it
        piece = text[at : tag.start()]
        if inside:
            thoughts.append(piece)
        elif closes:
            thoughts.append("".join([*shown, piece]))
            shown.clear()
        else:
            shown.append(piece)
        inside, at = not closes, tag.end()
    (thoughts if inside else shown).append(text[at:])
    joined = "\n".join(thought.strip() for thought in thoughts)
    return "".join(shown), joined if thoughts else None
