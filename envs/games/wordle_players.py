"""Policies for wordle that read nothing but the observation, one with and one without a memory.

Lives here: what `envs.baselines` measures. Neither knows which of the words can be hidden.
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from functools import cache, lru_cache

from envs.base import TextEnv
from envs.games.wordle import ABSENT, RIGHT, Guesses, marks_of, words
from envs.playing import Policy

Words = frozenset[str]

_LAST = re.compile(r"^((?:[a-z] ){4}[a-z])\n((?:[GYX] ){4}[GYX])$", re.MULTILINE)


class RememberingGuesser:
    """Guess a word that all marks so far allow, of letters that many such words have.

    One object an episode.
    """

    def __init__(self) -> None:
        self._made: Guesses = ()

    def __call__(self, env: TextEnv, observation: str) -> str:  # noqa: ARG002 - a Policy
        """Choose the next guess; never asks `env`."""
        last = _read(observation)
        if last is not None:
            self._made = (*self._made, last)
        return _most_telling(self._made)


def forgetful_guesser(rng: random.Random) -> Policy:
    """Guess any word that the marks of the last guess allow."""

    def act(env: TextEnv, observation: str) -> str:  # noqa: ARG001 - a Policy's signature
        last = _read(observation)
        return rng.choice(words().all if last is None else _possible_after(*last))

    return act


def _read(observation: str) -> tuple[str, str] | None:
    found = _LAST.search(observation)
    return (found[1].replace(" ", ""), found[2].replace(" ", "")) if found else None


def _possible_after(guess: str, marks: str) -> list[str]:
    """Return the words that these marks allow."""
    at, has = _index()
    needed, barred = [words().known], []
    present = {letter for letter, mark in zip(guess, marks, strict=True) if mark != ABSENT}
    for place, (letter, mark) in enumerate(zip(guess, marks, strict=True)):
        if mark == RIGHT:
            needed.append(at[place, letter])
        elif letter in present:
            needed.append(has[letter])
            barred.append(at[place, letter])
        else:
            barred.append(has[letter])
    allowed = frozenset.intersection(*sorted(needed, key=len)).difference(*barred)
    return sorted(word for word in allowed if marks_of.__wrapped__(guess, word) == marks)


@cache
def _index() -> tuple[dict[tuple[int, str], Words], dict[str, Words]]:
    """Return (words by place and letter, words by letter)."""
    every, letters = words().all, string.ascii_lowercase
    at = {
        (place, letter): frozenset(word for word in every if word[place] == letter)
        for place in range(5)
        for letter in letters
    }
    return at, {letter: frozenset(word for word in every if letter in word) for letter in letters}


@lru_cache(maxsize=65536)
def _possible(made: Guesses) -> tuple[str, ...]:
    if not made:
        return words().all
    allowed = set(_possible_after(*made[-1]))
    return tuple(word for word in _possible(made[:-1]) if word in allowed)


@lru_cache(maxsize=65536)
def _most_telling(made: Guesses) -> str:
    possible = _possible(made)
    frequency = Counter(letter for word in possible for letter in set(word))
    return max(possible, key=lambda word: sum(frequency[letter] for letter in set(word)))
