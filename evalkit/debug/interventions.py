"""What a person may change in an episode, as data that replays it. Knows no episode."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class InterventionKind(StrEnum):
    """What a person changed."""

    OBSERVATION = "observation"
    """The policy was shown another text."""
    NOTES = "notes"
    """The scratchpad was rewritten."""
    REPLY = "reply"
    """Another reply was put in the policy's mouth."""
    ACTION = "action"
    """An action was forced: the reply is that action, as a reply must carry it."""
    MODEL = "model"
    """Another model plays from here."""
    STRATEGY = "strategy"
    """Another history strategy keeps the past, all of it, from here."""
    REPETITION = "repetition"
    """From here the requests draw the seeds of another repetition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """One change, before the reply of `turn` was taken."""

    turn: int
    kind: InterventionKind
    value: str
    """The new text, action, model, strategy or repetition."""


SAID = {InterventionKind.REPLY, InterventionKind.ACTION}
"""Interventions that are an answer, in the record as any other."""
