"""What was played, as immutable records, and their form on disk (`trajectory/1`).

Knows neither policies nor statistics. Nothing here depends on the clock: how long calls took
lies in the journal, so that equal runs give equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from operator import itemgetter
from typing import Any

import orjson

from evalkit.errors import DamagedRun, Failure

FORMAT = "trajectory/1"


class Outcome(StrEnum):
    """How one completion fared as a turn; the first that applies, in the order given here."""

    REFUSAL = "refusal"
    """The server marked the completion as a refusal."""
    TRUNCATED_TOKENS = "truncated_tokens"
    """Cut by the token limit. An action whose tag was complete before the cut is still taken."""
    EMPTY = "empty"
    """No text, or nothing but reasoning."""
    NO_ACTION = "no_action"
    """Text without an action."""
    ILLEGAL = "illegal"
    """An action that the rules do not allow now."""
    MULTI_ACTION = "multi_action"
    """Several actions; the first one was taken."""
    UNCLOSED = "unclosed"
    """The action's tag was never closed; what follows it was taken."""
    OK = "ok"
    """Exactly one legal action."""


class Memory(StrEnum):
    """What one reply did to the model's notes."""

    REPLACED = "replaced"
    """A scratchpad in the reply replaced the notes."""
    MISSING = "missing"
    """No scratchpad in the reply: the notes stay."""
    OVERFLOW = "overflow"
    """The scratchpad was longer than allowed and was cut."""


class StopReason(StrEnum):
    """Why a trajectory ended."""

    TERMINATED = "terminated"
    """The task ended, won or lost."""
    TRUNCATED = "truncated"
    """The env's turn budget was used up."""
    CONTEXT_OVERFLOW = "context_overflow"
    """The history no longer fits the model's context: a failure of the arm, and scored as one."""
    INFRA_ERROR = "infra_error"
    """A call failed for good. Not scored."""
    ENV_ERROR = "env_error"
    """The env raised. Not scored."""


UNSCORED = frozenset({StopReason.INFRA_ERROR, StopReason.ENV_ERROR})


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Key:
    """Which episode: arm, env seed, repetition. Sorts by seed, then repetition, then arm."""

    env_seed: int
    repetition: int
    arm: str

    def __str__(self) -> str:
        return f"{self.arm}/{self.env_seed}/{self.repetition}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One completion and one env step."""

    turn: int
    """From 0."""
    observation: str
    """What the policy was shown."""
    completion: str
    """Raw text of the reply, reasoning included where the server sent it inline."""
    reasoning: str | None
    """What the server or `<think>` tags set apart as reasoning."""
    action: str | None
    """What was passed to the env; None when the reply named no action."""
    outcome: Outcome
    valid: bool
    """Whether a legal action was taken."""
    reward: float
    event: str | None
    """The env's word for what happened."""
    error: str | None
    """The env's reason why the action was not legal."""
    memory: Memory | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    request_seed: int
    prompt_digest: str
    """Names the messages sent, byte for byte."""
    policy_version: str | None
    """The weights that answered, where the server says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """The record of one episode."""

    key: Key
    turns: tuple[Turn, ...]
    final_observation: str
    success: bool
    return_: float
    optimal_turns: int | None
    """Turns the oracle needs from the start; None where it never gets there."""
    stop_reason: StopReason
    failure: Failure | None = None
    failure_message: str | None = None

    @property
    def scored(self) -> bool:
        """Whether the episode counts; infrastructure and env errors never do."""
        return self.stop_reason not in UNSCORED

    def to_json(self) -> bytes:
        """One line of trajectories.jsonl, without its newline."""
        return orjson.dumps({"format": FORMAT, **{name: getattr(self, name) for name in _NAMES}})

    def plain(self) -> Plain:
        """Return it as `parsed` reads it."""
        return parsed(self.to_json())

    @classmethod
    def from_json(cls, line: bytes) -> Trajectory:
        """Read what `to_json` wrote.

        Raises:
            DamagedRun: the line is not a trajectory of this format.

        """
        raw = parsed(line)
        failure = raw["failure"]
        return cls(
            key=Key(**raw["key"]),
            turns=tuple([_turn(turn) for turn in raw["turns"]]),
            final_observation=raw["final_observation"],
            success=raw["success"],
            return_=raw["return_"],
            optimal_turns=raw["optimal_turns"],
            stop_reason=StopReason(raw["stop_reason"]),
            failure=None if failure is None else Failure(failure),
            failure_message=raw["failure_message"],
        )


Plain = dict[str, Any]
"""A trajectory as its line holds it: by field name, key and turns by theirs, enums as texts.

Making records of the turns takes longer than all else that a table of many episodes needs.
"""


def parsed(line: bytes) -> Plain:
    """Read what `Trajectory.to_json` wrote, as plain values; see `Plain`.

    Raises:
        DamagedRun: the line is not a trajectory of this format.

    """
    try:
        raw: Plain = orjson.loads(line)
        if raw["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
        _check(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedRun(f"not a {FORMAT} line: {error}") from error
    return raw


def _check(raw: Plain) -> None:
    """Raise KeyError, TypeError or ValueError unless every field is there and every word known."""
    _whole(raw)
    if raw["key"].keys() != _KEY:
        raise ValueError(f"expected {', '.join(sorted(_KEY))} as the key")
    if raw["stop_reason"] not in _STOPS or raw["failure"] not in _FAILURES:
        raise ValueError("unknown stop_reason or failure")
    for turn in raw["turns"]:
        if tuple(turn) != _TURN and turn.keys() != set(_TURN):
            raise ValueError("a turn has other fields")
        if turn["outcome"] not in OUTCOMES or turn["memory"] not in MEMORIES:
            raise ValueError("unknown outcome or memory")


def _turn(raw: Plain) -> Turn:
    raw["outcome"] = OUTCOMES[raw["outcome"]]
    raw["memory"] = MEMORIES[raw["memory"]]
    return Turn(**raw)


_NAMES = tuple(field.name for field in fields(Trajectory))
_TURN = tuple(field.name for field in fields(Turn))
_KEY = {field.name for field in fields(Key)}
OUTCOMES = {outcome.value: outcome for outcome in Outcome}
MEMORIES: dict[str | None, Memory | None] = {memory.value: memory for memory in Memory}
MEMORIES[None] = None
_STOPS = frozenset(StopReason)
_FAILURES = frozenset({None, *Failure})
_whole = itemgetter(*_NAMES)
