"""A string that matches a regular expression of the kind that action formats need. Pure.

Understood: literals, escapes, `.`, classes, groups with alternatives, and the quantifiers
`? * + {m} {m,n}`, which repeat as little as they may. Alternatives are picked by number.
"""

import re
from collections.abc import Iterator

_ESCAPED = {"d": "0", "w": "a", "s": " ", "n": "\n", "t": "\t", "S": "a", "D": "a"}
_QUANTIFIER = re.compile(r"(?:\?|\*|\+|\{(\d+)(?:,\d*)?\})\??")


class NotUnderstood(ValueError):
    """The expression is malformed, or beyond what FakeEngine makes strings for."""


def matching(regex: str, pick: int) -> str:
    """Return a string that `regex` matches in full, the same for the same `pick`."""
    try:
        compiled = re.compile(regex)
    except re.error as error:
        raise NotUnderstood(f"invalid regex {regex!r}: {error}") from None
    text = _Maker(regex, pick).alternatives()
    if not compiled.fullmatch(text):
        raise NotUnderstood(f"FakeEngine cannot make a string for the regex {regex!r}")
    return text


class _Maker:
    """Recursive descent over the expression, making the string as it reads."""

    def __init__(self, regex: str, pick: int) -> None:
        self._regex = regex
        self._at = 0
        self._pick = pick

    def alternatives(self) -> str:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._sequence())
        chosen = branches[self._pick % len(branches)]
        self._pick //= len(branches)
        return chosen

    def _sequence(self) -> str:
        return "".join(self._pieces())

    def _pieces(self) -> Iterator[str]:
        while self._peek() not in ("", "|", ")"):
            atom = self._atom()
            quantifier = _QUANTIFIER.match(self._regex, self._at)
            if quantifier is None:
                yield atom
                continue
            self._at = quantifier.end()
            least = quantifier[1] or ("1" if quantifier[0].startswith("+") else "0")
            yield atom * int(least)

    def _atom(self) -> str:
        char = self._take()
        match char:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case "\\":
                escaped = self._take()
                return _ESCAPED.get(escaped, escaped)
            case ".":
                return "a"
            case "^" | "$":
                return ""
            case _:
                return char

    def _group(self) -> str:
        if self._regex.startswith("?:", self._at):
            self._at += 2
        text = self.alternatives()
        self._take()
        return text

    def _class(self) -> str:
        """Make one character of a class; of a negated one, the first printable it admits."""
        start = self._at - 1
        self._at += self._peek() == "^"
        self._at += self._peek() == "]"
        while self._peek() != "]":
            self._at += 1 + (self._peek() == "\\")
        self._at += 1
        admits = re.compile(self._regex[start : self._at])
        return next((char for char in map(chr, range(126, 31, -1)) if admits.match(char)), "")

    def _peek(self) -> str:
        return self._regex[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._peek()
        self._at += 1
        return char
