"""From a completion to an action and an outcome: reasoning off first, then the env's own parser."""

from __future__ import annotations

import re
from dataclasses import dataclass

from envs import NO_ACTION, ParseKind, TextEnv
from evalkit.play.policy import Completion
from evalkit.record.trajectory import Outcome

_BLOCK = re.compile(r"<(think|thinking)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_OPEN = re.compile(r"<(?:think|thinking)>", re.IGNORECASE)
_CLOSE = re.compile(r"</(?:think|thinking)>", re.IGNORECASE)
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
    """
    if "think" not in text and "THINK" not in text and "Think" not in text:
        return text, None
    thoughts: list[str] = []
    stray = _CLOSE.search(text)
    first = _OPEN.search(text)
    if stray is not None and (first is None or stray.start() < first.start()):
        thoughts.append(text[: stray.start()])
        text = text[stray.end() :]
    thoughts += [block[2] for block in _BLOCK.finditer(text)]
    text = _BLOCK.sub("", text)
    unclosed = _OPEN.search(text)
    if unclosed is not None:
        thoughts.append(text[unclosed.end() :])
        text = text[: unclosed.start()]
    joined = "\n".join(thought.strip() for thought in thoughts)
    return text, joined if thoughts else None
