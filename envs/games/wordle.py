"""wordle: find a hidden five-letter word in six guesses, each answered with marks.

Lives here: the game, its texts and its oracle; the words lie in `wordle_words.txt`. The
observation shows the last guess and its marks only: what earlier guesses told must be remembered.
"""

from __future__ import annotations

import copy
import hashlib
import random
import re
import zlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from itertools import groupby
from typing import Any, Self

from envs.base import EpisodeOver, Info, Parsed, ParseKind, StepResult, TextEnv, parse_tag

SPLITS = ("all", "train", "eval")
RIGHT, ELSEWHERE, ABSENT = "G", "Y", "X"

_WIN = RIGHT * 5
_WORTH = {RIGHT: 0.125, ELSEWHERE: 0.0625, ABSENT: 0.0}
_WIN_REWARD = 1.0
_WORD = re.compile("[a-z]{5}")
_MARKED = re.compile(rf"\b([A-Za-z]{{5}})\W{{1,3}}([{RIGHT}{ELSEWHERE}{ABSENT}]{{5}})\b")
_QUESTION = "What do you guess?"

Guesses = tuple[tuple[str, str], ...]
"""Guesses so far, each with its marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The words of the game. `secrets`: those that can be hidden; all of them may be guessed."""

    secrets: tuple[str, ...]
    all: tuple[str, ...]
    known: frozenset[str]
    digest: str


class Wordle(TextEnv):
    """Guess the word: the return is 1.0 for a win, else what the best guess told.

    Partial credit: a guess is worth 0.125 for every letter in its right place and 0.0625 for every
    one that belongs elsewhere, a turn pays what its guess is worth more than the best before it.
    So a loss returns at most 0.5, a win always 1.0, and nothing is gained by being slow.

    What is no guess (another length, other signs, an unknown word, one guessed before) earns
    nothing and costs a turn. It costs no guess the first time; a second one in a row ends the game
    as lost. `guesses`: how many there are; turns are twice as many, for as many slips.
    `split`: which secrets are drawn: "train" and "eval" have no word in common, "all" is both.
    """

    id = "wordle"
    action_tag = "guess"

    def __init__(self, *, guesses: int = 6, split: str = "all") -> None:
        if guesses < 1:
            raise ValueError(f"guesses must be at least 1, got {guesses}")
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        self.guesses = guesses
        self.split = split
        self.max_turns = 2 * guesses
        self._words = words()
        self._secret = ""
        self._made: Guesses = ()
        self._best = 0.0
        self._slipped = False
        self._over = True

    @property
    def params(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"guesses": self.guesses, "split": self.split}

    def data_digest(self) -> str:
        """Name the words; see `envs.registry.digest`."""
        return self._words.digest

    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        """Hide a word.

        Raises:
            ValueError: `options` are given: this env has none.

        """
        if options:
            raise ValueError(f"wordle takes no options, got {dict(options)}")
        self._secret = random.Random(seed).choice(secrets(self.split))
        self._made = ()
        self._best = 0.0
        self._slipped = self._over = False
        return self._observe(""), {}

    def step(self, action: str) -> StepResult:
        """Guess, or slip; see `TextEnv.step`.

        `info["event"]`: guess, win, loss (no guess is left), invalid_guess (forgiven), forfeit
        (the second invalid one in a row).
        """
        if self._over:
            raise EpisodeOver("the episode is over or was never reset: call reset first")
        if action not in self._words.known or any(action == word for word, _ in self._made):
            return self._slip(action)
        self._slipped = False
        marks = marks_of(action, self._secret)
        self._made = (*self._made, (action, marks))
        worth = _WIN_REWARD if marks == _WIN else sum(_WORTH[mark] for mark in marks)
        reward = max(0.0, worth - self._best)
        self._best += reward
        if marks == _WIN:
            self._over = True
            return f"{_lines(action, marks)}\nThat is the word.", reward, True, False, _event("win")
        self._over = len(self._made) == self.guesses
        event = "loss" if self._over else "guess"
        return self._observe(""), reward, self._over, False, _event(event)

    @property
    def success(self) -> bool:
        """Whether the word was guessed."""
        return bool(self._made) and self._made[-1][1] == _WIN

    def legal_actions(self) -> tuple[str, ...]:
        """Return the words that were not guessed yet."""
        legal = self._words.all
        for word, _ in self._made:
            at = bisect_left(legal, word)
            legal = legal[:at] + legal[at + 1 :]
        return legal

    def all_actions(self) -> tuple[str, ...]:
        """Return every word that may be guessed."""
        return self._words.all

    def action_pattern(self) -> str:
        """Return a regular expression that admits a guess of a known word."""
        return _pattern(self.action_tag)

    def parse(self, completion: str) -> Parsed:
        """Read the first guess; `<guess>[apple]</guess>` is the guess apple as well."""
        parsed = parse_tag(completion, self.action_tag)
        if parsed.action is None:
            return parsed
        word = parsed.action.strip("[] \t\r\n")
        return Parsed(word, parsed.kind) if word else Parsed(None, ParseKind.NO_ACTION)

    def oracle(self) -> str:
        """Return the hidden word."""
        return self._secret

    def state(self) -> dict[str, Any]:
        """Return the episode, the hidden word included."""
        return {
            "secret": self._secret,
            "guesses": [word for word, _ in self._made],
            "slipped": self._slipped,
            "over": self._over,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._secret = state["secret"]
        self._made = tuple((word, marks_of(word, self._secret)) for word in state["guesses"])
        worth = (sum(_WORTH[mark] for mark in marks) for _, marks in self._made)
        self._best = _WIN_REWARD if self.success else max(worth, default=0.0)
        self._slipped, self._over = state["slipped"], state["over"]

    def clone(self) -> Self:
        """Return an independent copy: every field is immutable."""
        return copy.copy(self)

    @property
    def system_prompt(self) -> str:
        """The rules and the answer's format."""
        return (
            f"Find a hidden English word of five letters. You have {self.guesses} guesses. Each is "
            f"answered with a mark below each letter: {RIGHT} the letter is in its right place, "
            f"{ELSEWHERE} the word has that letter in another place, {ABSENT} the word does not "
            "have that letter (or not once more).\n"
            "Guess common English words of five letters, none twice. An answer that is no such "
            "word tells you nothing, and two of them in a row end the game.\n"
            "Answer with one word, written like this: <guess>apple</guess>"
        )

    @property
    def scratchpad_prompt(self) -> str:
        """What is worth noting here."""
        return (
            "You do not see earlier turns, and the marks of your last guess only. Before your "
            "guess, write your notes between <scratchpad> and </scratchpad>. They replace your old "
            "notes and are all you will remember, so repeat what still matters: every word that "
            "you guessed with its marks, letters whose place is known, letters that belong "
            "elsewhere, letters that are not in the word.\n"
            "Example: <scratchpad>stone XXGXG. Place known: _ _ o _ e. Not in it: s, t, n."
            "</scratchpad><guess>choke</guess>"
        )

    def optimal_scratchpad(self) -> str:
        """Return every guess with its marks, and what they say together."""
        if not self._made:
            return "No guess yet."
        made = ", ".join(f"{word} {marks}" for word, marks in self._made)
        known, elsewhere, absent = _knowledge(self._made)
        return (
            f"Guesses: {made}.\nPlaces known: {known}.\n"
            f"In the word, but not there: {elsewhere}.\nNot in the word: {absent}."
        )

    def facts(self) -> dict[str, str]:
        """Return every word that was guessed, with its marks."""
        return dict(self._made)

    def claims(self, notes: str) -> dict[str, str]:
        """Read words that are followed by their marks: `stone XXGXG`; the marks in capitals."""
        return {word.lower(): marks for word, marks in _MARKED.findall(notes)}

    def render(self) -> str:
        """Show every guess with its marks, and the hidden word."""
        made = [f"{word} {marks}" for word, marks in self._made]
        status = "over" if self._over else "running"
        return "\n".join(
            [*made, f"the word is {self._secret}, {self._left()} guesses left, {status}"]
        )

    def tools(self) -> list[dict[str, Any]]:
        """Return one tool whose argument is the word."""
        parameters = {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "five lower-case letters"}},
            "required": ["word"],
            "additionalProperties": False,
        }
        about = {"name": "guess", "description": "Guess the word.", "parameters": parameters}
        return [{"type": "function", "function": about}]

    def _slip(self, action: str) -> StepResult:
        """Forgive what is no guess, or end the game if the turn before was one too."""
        reason = self._why_invalid(action)
        self._over = self._slipped
        self._slipped = True
        event = "forfeit" if self._over else "invalid_guess"
        info: Info = {"illegal": True, "error": reason, "event": event}
        after = "Another one in a row ends the game"
        if self._over:
            after = "It is the second in a row: the game is lost"
        feedback = f"That was no valid guess: {reason}. {after}.\n"
        return self._observe(feedback), 0.0, self._over, False, info

    def _why_invalid(self, action: str) -> str:
        if not action:
            return "the answer names no word"
        if any(action == word for word, _ in self._made):
            return f"you guessed {action} before"
        shown = repr(action if len(action) <= 40 else f"{action[:40]}...")
        if _WORD.fullmatch(action):
            return f"{shown} is not in the list of words"
        if not (action.isascii() and action.isalpha()):
            return f"{shown} has other signs than the letters a to z"
        return f"{shown} has {len(action)} letters, not 5"

    def _left(self) -> int:
        return self.guesses - len(self._made)

    def _observe(self, feedback: str) -> str:
        last = f"{_lines(*self._made[-1])}\n" if self._made else ""
        left = self._left()
        guesses = f"{left} guess{'' if left == 1 else 'es'}"
        return f"{feedback}{last}You have {guesses} left. {_QUESTION}"


@lru_cache(maxsize=8192)
def marks_of(guess: str, secret: str) -> str:
    """Mark a guess: right places first, then letters that are left over elsewhere, from the left.

    So each letter of the secret earns one mark: "geese" for "elect" gives XYGXX.
    """
    left = [there for here, there in zip(guess, secret, strict=True) if here != there]
    marks = ""
    for here, there in zip(guess, secret, strict=True):
        if here == there:
            marks += RIGHT
        elif here in left:
            left.remove(here)
            marks += ELSEWHERE
        else:
            marks += ABSENT
    return marks


@cache
def words() -> Words:
    """Read the words, once: the secrets, an empty line, what may be guessed besides."""
    text = resources.files("envs.games").joinpath("wordle_words.txt").read_text("utf-8")
    hidden, _, others = text.partition("\n\n")
    every = tuple(sorted([*hidden.split(), *others.split()]))
    return Words(
        secrets=tuple(hidden.split()),
        all=every,
        known=frozenset(every),
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
    )


@cache
def secrets(split: str) -> tuple[str, ...]:
    """Return the secrets of a split: every word's own checksum puts about one in five into eval."""
    if split == "all":
        return words().secrets
    held_out = split == "eval"
    return tuple(
        word for word in words().secrets if (zlib.crc32(word.encode()) % 5 == 0) is held_out
    )


@cache
def _pattern(tag: str) -> str:
    """Write all words as alternatives, those that begin alike together."""
    groups = groupby(words().all, key=lambda word: word[:2])
    choices = "|".join(f"{head}(?:{'|'.join(w[2:] for w in group)})" for head, group in groups)
    return f"<{tag}>(?:{choices})</{tag}>"


def _event(name: str) -> Info:
    return {"event": name}


def _lines(word: str, marks: str) -> str:
    return f"{' '.join(word)}\n{' '.join(marks)}"


def _knowledge(made: Sequence[tuple[str, str]]) -> tuple[str, str, str]:
    """Return (pattern of known places, letters with places they are not at, letters not in it)."""
    known = ["_"] * 5
    not_at: dict[str, set[int]] = {}
    absent: set[str] = set()
    for word, marks in made:
        present = {letter for letter, mark in zip(word, marks, strict=True) if mark != ABSENT}
        absent |= set(word) - present
        for place, (letter, mark) in enumerate(zip(word, marks, strict=True)):
            if mark == RIGHT:
                known[place] = letter
            elif letter in present:
                not_at.setdefault(letter, set()).add(place + 1)
    elsewhere = [
        f"{letter} not at {' or '.join(map(str, sorted(places)))}"
        for letter, places in sorted(not_at.items())
    ]
    return " ".join(known), ", ".join(elsewhere) or "none", ", ".join(sorted(absent)) or "none"
