"""A toy tokenizer: words to ids and back. Every FakeEngine has the same one, in any process.

An id is a hash of its word, and a process knows the words that it has met; an id that it has not
is written `<|ID|>`, which encodes to that id. Not every text is encoded to the tokens that were
made for it, as with real tokenizers.
"""

import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

import orjson

_MOST_WORDS = 1 << 18
_IDS = 1 << 31
_MARK = re.compile(r"<\|(\d+)\|>")
_PIECE = re.compile(r"<\|\w+\|>(?:(?!<\|)[^ \n])*|[ \n]?(?:(?!<\|)[^ \n])+|[ \n]|<")
"""A separator with the word after it, or a mark such as `<|user|>` with the word after it."""
_MADE = re.compile(r"\s*\S+|\s+")
"""A token of a reply: a word with all the space before it."""
_ANSWER: Final = "<|assistant|>"


class Vocabulary:
    """The words that this process has met. The oldest are forgotten before there are too many."""

    def __init__(self, most_words: int = _MOST_WORDS) -> None:
        self._most_words = most_words
        self._ids: dict[str, int] = {}
        self._words: dict[int, str] = {}

    def ids(self, words: Iterable[str]) -> list[int]:
        """Return the ids of words, each a token."""
        known = self._ids
        return [known[word] if word in known else self._meet(word) for word in words]

    def word(self, token_id: int) -> str:
        """Return the word of an id."""
        return self._words.get(token_id) or f"<|{token_id}|>"

    def _meet(self, word: str) -> int:
        if mark := _MARK.fullmatch(word):
            return int(mark[1])
        token_id = int.from_bytes(blake2b(word.encode(), digest_size=4).digest()) % _IDS
        while token_id in self._words:
            token_id = (token_id + 1) % _IDS
        if len(self._words) >= self._most_words:
            oldest = next(iter(self._words))
            del self._ids[self._words.pop(oldest)]
        self._ids[word] = token_id
        self._words[token_id] = word
        return token_id


WORDS: Final = Vocabulary()


def encode(text: str) -> list[int]:
    """Return the ids of a text."""
    return WORDS.ids(_PIECE.findall(text))


def decode(ids: Iterable[int]) -> str:
    """Return the text of ids."""
    return "".join(map(WORDS.word, ids))


def encode_chat(messages: Sequence[object], *, answer: bool = True) -> list[int]:
    """Return the ids of a conversation, with the mark that asks for an answer at its end.

    What an assistant said has the tokens that it was made of, so that the tokens of a turn begin
    those of the next one.
    """
    words: list[str] = []
    for message in messages:
        role, text = _said(message)
        if role == "assistant":
            words += [_ANSWER, *_MADE.findall(text)]
        else:
            words += _PIECE.findall(f"<|{role}|>{text}")
    return WORDS.ids([*words, _ANSWER] if answer else words)


def _said(message: object) -> tuple[str, str]:
    """Return who said what: text, parts of text, or calls of tools."""
    if not isinstance(message, dict):
        return "user", str(message)
    content = message.get("content")
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        content = "".join(part for part in parts if isinstance(part, str))
    if calls := message.get("tool_calls"):
        content = f"{content or ''}{orjson.dumps(calls).decode()}"
    role = re.sub(r"\W", "_", str(message.get("role", "user")))
    return role, content if isinstance(content, str) else ""
