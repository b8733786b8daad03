"""What a player's notes on key_door state: key, door, empty rooms, in plain English.

Reads words, not meaning: a sentence or a line about the key, the door or empty rooms, and the
places `(row, column)` in it. Knows nothing of the game's state.
"""

from __future__ import annotations

import re

CARRIED = "key carried"
"""The fact that says "yes" or "no"."""
EMPTY = "empty"
"""What the fact of a room says that holds neither key nor door."""

_SENTENCE = re.compile(r"[^.;!\n]+")
_PLACE = re.compile(
    r"\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)|\brow\s*(-?\d+)\s*,?\s*(?:and\s*)?col(?:umn)?\s*(-?\d+)",
    re.IGNORECASE,
)
_TOPIC = re.compile(r"\b(no (?:key|door)|key|door|empty|nothing|visited)\b", re.IGNORECASE)
_SAID_AFTER = re.compile(
    r"\s*(?:[:=]|-+>?|is|was|has|holds|contains)\s*(?:the |an? )?" + _TOPIC.pattern, re.IGNORECASE
)
_WITHOUT = re.compile(
    r"\bno key\b(?! (?:at|in|here|there)\b)|\bkey\s*[:=]\s*no\b"
    r"|\bhands?( are| is)? empty|\bempty hands?\b"
    r"|(\bnot|n't|\bnever|\bwithout) (yet )?"
    r"(carry\w*|hold\w*|have|has|got|found|pick\w*)[^,]*\bkey\b"
    r"|\b(carry\w*|hold\w*|have|has)( the| a)? key: no\b|\bwithout (the |a )?key\b",
    re.IGNORECASE,
)
_WITH = re.compile(
    r"(?<!\) )\b(carry\w*|hold\w*|have|has|got|took|picked up|picking up)( the| a| up)* key\b"
    r"|\bkey( is| was|:)? ?(carried|taken|picked up|in hand|mine|yes)\b|\bwith the key\b"
    r"|\b(inventory|holding|carrying|hands?)\s*[:=]\s*(the |a )?key\b",
    re.IGNORECASE,
)


def read_claims(notes: str) -> dict[str, str]:
    """Return the facts that `notes` state; of two on one thing the later one counts.

    "key" and "door" map to a place "(row, column)", `CARRIED` to yes or no, and the place of a
    room called empty, visited or holding nothing to `EMPTY`.
    """
    claims: dict[str, str] = {}
    for sentence in _SENTENCE.findall(notes):
        if _WITHOUT.search(sentence):
            claims[CARRIED] = "no"
        elif _WITH.search(sentence):
            claims[CARRIED] = "yes"
        claims |= _places(sentence)
    return claims


def _places(sentence: str) -> dict[str, str]:
    """Give every place to the topic said of it: "(0, 1): door", or else the last before it."""
    topics = [(found.start(), found[1].lower()) for found in _TOPIC.finditer(sentence)]
    claims: dict[str, str] = {}
    taken: set[int] = set()
    for found in _PLACE.finditer(sentence):
        row, column = (int(value) for value in found.groups() if value is not None)
        place = f"({row}, {column})"
        after = _SAID_AFTER.match(sentence, found.end())
        before = [topic for topic in topics if topic[0] < found.start()]
        if after:
            at, topic = after.start(1), after[1].lower()
        elif before:
            at, topic = before[-1]
        else:
            continue
        if topic in {"empty", "nothing", "visited"}:
            claims[place] = EMPTY
        elif topic not in {"key", "door"}:  # that it is not here says not what is
            continue
        elif at not in taken:  # of "door at (0, 1), (1, 1)" the first place is the door's
            taken.add(at)
            claims[topic] = place
    return claims
