"""A sample of inspect as an episode: what was shown and said, its score, its tokens.

An inspect log does not say what an env would: every reply counts as one legal action, and there is
no oracle. `evalkit.exchange.inspect_import` says which run the episodes make.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from evalkit.errors import Failure
from evalkit.record.trajectory import Key, Outcome, StopReason, Trajectory, Turn

GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
"""What inspect's own metrics make of a score that is a text."""
FINISH = {"max_tokens": "length", "model_length": "length"}
Call = tuple[int | None, int | None, str | None]
"""Of one call: tokens sent, tokens received, why it stopped."""
MOST = 2**53
"""Seeds stay below, so that every reader of JSON and CSV keeps them whole."""


class NoGrade(ValueError):
    """A score's value is no number, nor a text that stands for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How samples become episodes."""

    arm: str
    model: str
    score: str
    """Name of the score that is the success: a value of at least `success_at`."""
    return_score: str
    success_at: float

    def episode(self, sample: Mapping[str, Any]) -> Trajectory:
        """Return a sample as an episode.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: it is not a sample of inspect.
            NoGrade: its score cannot be read.

        """
        scores = dict(flat_scores(sample.get("scores")))
        grade, return_ = (graded(scores.get(name)) for name in (self.score, self.return_score))
        scored = grade is not None and return_ is not None
        lost = None if scored else _lost(sample, self.score)
        turns = tuple(self._turns(sample))
        return Trajectory(
            key=Key(
                env_seed=seed_of(sample["id"]), repetition=_epoch(sample["epoch"]) - 1, arm=self.arm
            ),
            turns=turns,
            final_observation="",
            success=grade is not None and scored and grade >= self.success_at,
            return_=return_ if return_ is not None and scored else 0.0,
            optimal_turns=None,
            stop_reason=_stop(sample) if scored else StopReason.INFRA_ERROR,
            failure=None if scored else Failure.SERVER_ERROR,
            failure_message=lost,
        )

    def _turns(self, sample: Mapping[str, Any]) -> Iterator[Turn]:
        """Yield a turn per reply of the model in the sample's conversation."""
        messages = sample["messages"]
        n_replies = sum(message["role"] == "assistant" for message in messages)
        calls = iter(self._calls(sample, n_replies))
        before = blake2b(digest_size=8)
        shown: list[str] = []
        turn = 0
        for message in messages:
            said, reasoning = _texts(message)
            if message["role"] == "assistant":
                yield _turn(
                    turn, "\n".join(shown), before.hexdigest(), said, reasoning, next(calls)
                )
                shown, turn = [], turn + 1
            elif message["role"] != "system":
                shown.append(said)
            before.update(json.dumps([message["role"], said, reasoning]).encode())

    def _calls(self, sample: Mapping[str, Any], n_replies: int) -> list[Call]:
        """Return tokens sent, tokens received and why it stopped, of each reply.

        Where the sample has another number of calls than replies, the last reply has all tokens.
        """
        calls = [
            event["output"]
            for event in sample.get("events") or ()
            if event["event"] == "model" and event["model"] == self.model and not event.get("error")
        ]
        if len(calls) == n_replies:
            return [
                (*tokens(call.get("usage")), call["choices"][0].get("stop_reason"))
                for call in calls
            ]
        used = tokens((sample.get("model_usage") or {}).get(self.model))
        return [*[(None, None, None)] * (n_replies - 1), (*used, None)]


def seed_of(sample_id: str | int) -> int:
    """Return the env seed that stands for a sample: its id, where that is a number.

    Any other id gets a number that depends on its text alone: the same in every log.
    """
    text = str(sample_id)
    if text.isascii() and text.isdecimal() and str(int(text)) == text and int(text) < MOST:
        return int(text)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) % MOST


def _epoch(said: object) -> int:
    if not isinstance(said, int) or isinstance(said, bool) or not 1 <= said < MOST:
        raise ValueError(f"expected an epoch from 1 on, found {said!r}")
    return said


def flat_scores(scores: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of a sample's scores; a score of several values as NAME/KEY."""
    for name, score in (scores or {}).items():
        value = score["value"]
        if isinstance(value, Mapping):
            yield from ((f"{name}/{key}", each) for key, each in value.items())
        else:
            yield name, value


def graded(value: object) -> float | None:
    """Return a score as a number, as inspect's metrics do; None where there is none.

    Raises:
        NoGrade: it is neither a number nor a text that stands for one.

    """
    if isinstance(value, str):
        known = GRADES.get(value, GRADES.get(value.lower()))
        try:
            value = float(value) if known is None else known
        except ValueError:
            raise NoGrade(f"expected a number, C, I, P, N, yes or no, found {value!r}") from None
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise NoGrade(f"expected one number, found {value!r}")
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        raise NoGrade("expected a number, found a whole one of more than 300 digits") from None


def tokens(usage: Mapping[str, Any] | None) -> tuple[int | None, int | None]:
    """Return (tokens sent, cached ones too, tokens received); None where nobody counted."""
    if usage is None:
        return None, None
    cached = ("input_tokens_cache_read", "input_tokens_cache_write")
    sent = usage["input_tokens"] + sum(usage.get(name) or 0 for name in cached)
    return sent, usage["output_tokens"]


def _turn(turn: int, shown: str, prompt: str, said: str, reasoning: str | None, call: Call) -> Turn:
    sent, got, stop = call
    return Turn(
        turn=turn,
        observation=shown,
        completion=said,
        reasoning=reasoning,
        action=None,
        outcome=Outcome.OK,
        valid=True,
        reward=0.0,
        event=None,
        error=None,
        memory=None,
        finish_reason=FINISH.get(stop, stop) if stop else None,
        prompt_tokens=sent,
        completion_tokens=got,
        request_seed=0,
        prompt_digest=prompt,
        policy_version=None,
    )


def _texts(message: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return (text, reasoning or None) of a message; tool calls are written into the text."""
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    said = [part["text"] if part["type"] == "text" else f"[{part['type']}]" for part in parts
            if part["type"] != "reasoning"]  # fmt: skip
    said += [
        f"{call['function']}({json.dumps(call['arguments'])})"
        for call in message.get("tool_calls") or ()
    ]
    thought = [part["reasoning"] for part in parts if part["type"] == "reasoning"]
    return "\n".join(said), "\n".join(thought) if thought else None


def _stop(sample: Mapping[str, Any]) -> StopReason:
    limit = (sample.get("limit") or {}).get("type")
    if limit is None:
        return StopReason.TERMINATED
    return StopReason.CONTEXT_OVERFLOW if limit == "context" else StopReason.TRUNCATED


def _lost(sample: Mapping[str, Any], score: str) -> str:
    error = sample.get("error")
    return str(error["message"]) if error else f"no score {score!r}"
