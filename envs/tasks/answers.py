"""Numbers as models write them: where the answer stands in a reply, and which number it is.

Knows no question. Numbers are exact fractions: what is equal is equal, nothing is close enough.
"""

from __future__ import annotations

import re
from fractions import Fraction

from envs.base import Parsed, ParseKind

_LONGEST = 100
_TAG = re.compile(r"<answer>(.*?)(</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_BOX = re.compile(r"\\boxed\s*\{")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_WORDS = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\[,;:!% $]|\\(?:quad|qquad|left|right)\b|[$€£%~*]")
_NUMBER = re.compile(
    r"(?<![\w.,/])([-+\u2212]?)\s?"
    r"(?:(\d+)\s+(?=\d+/))?"
    r"(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?"
    r"(?:\s?/\s?(\d+))?",
    re.ASCII,
)
_PLAIN = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?", re.ASCII)


def read_number(text: str) -> Fraction | None:
    r"""Return the one number in `text`; None if it holds none, or several.

    Reads 1000, 1,000, 1000.0, -7, 1/2, 2 1/2, .5, \frac{1}{2}; currency signs, percent signs and
    words around the number do not count ("$1,000", "42 apples", "50%" is 50). A power of ten
    (1e3) and a sum (3 + 4) are no numbers.
    """
    if len(text) > _LONGEST:
        return None
    plain = _SPACING.sub("", text.replace("{,}", ","))
    plain = _WORDS.sub(r" \1 ", _FRACTION.sub(r" \1/\2 ", plain))
    found = [match for match in _NUMBER.finditer(plain) if match[3] or match[4]]
    if len(found) != 1 or re.search(r"\d", plain[: found[0].start()] + plain[found[0].end() :]):
        return None
    sign, whole, digits, decimals, divisor = found[0].groups()
    value = Fraction((digits or "0").replace(",", "") + (decimals or ""))
    if divisor is not None:
        if int(divisor) == 0:
            return None
        value /= int(divisor)
    value += int(whole or 0)
    return value if sign in {"", "+"} else -value


def plain_number(text: str) -> Fraction | None:
    """Return the number that `text` is, with nothing around it; None if it is something else."""
    return read_number(text) if len(text) <= _LONGEST and _PLAIN.fullmatch(text) else None


def read_answer(completion: str) -> Parsed:
    r"""Read the last `<answer>` or `\boxed{}` of a reply, whichever stands later.

    The last, because reasoning may try others first. The action is the number as `number_text`
    writes it, or what stands there, if that is no number.
    """
    found = [(match.start(), match[1], bool(match[2])) for match in _TAG.finditer(completion)]
    found += [_boxed(completion, match) for match in _BOX.finditer(completion)]
    if not found:
        kind = ParseKind.NO_ACTION if completion.strip() else ParseKind.EMPTY
        return Parsed(None, kind)
    answers = [_canonical(text) for _, text, _ in sorted(found)]
    if not answers[-1]:
        return Parsed(None, ParseKind.NO_ACTION)
    if not max(found)[2]:
        return Parsed(answers[-1], ParseKind.UNCLOSED)
    several = len(set(answers)) > 1
    return Parsed(answers[-1], ParseKind.MULTI_ACTION if several else ParseKind.OK)


def number_text(number: Fraction) -> str:
    """Write a number in its one form: 1000, -7, 1/2."""
    return str(number)


def _canonical(text: str) -> str:
    inner = _BOX.sub("{", text).strip()
    number = read_number(inner.strip("{}") if inner.startswith("{") else inner)
    return text.strip()[:_LONGEST] if number is None else number_text(number)


def _boxed(completion: str, match: re.Match[str]) -> tuple[int, str, bool]:
    """Return (where, what, whether it is closed) of a box; braces in it may nest."""
    depth = 1
    for at in range(match.end(), min(len(completion), match.end() + 2 * _LONGEST)):
        depth += {"{": 1, "}": -1}.get(completion[at], 0)
        if depth == 0:
            return match.start(), completion[match.end() : at], True
    return match.start(), completion[match.end() : match.end() + 2 * _LONGEST], False
