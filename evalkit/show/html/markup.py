"""HTML as text: escaping, figures, and terms that carry their definition.

Everything that came from a model, a server or a user passes through `esc` or `data_block`. Must not
know what is shown.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson

from evalkit.show.html.definitions import DEFINITIONS, IN_SENTENCES


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One chart of the page."""

    name: str
    """The element's id."""
    kind: str
    """What kind of chart it is; a key of the definitions."""
    finding: str
    """The title, as plain text: what the chart says."""
    body: str
    """HTML."""
    reading: str
    """How to read it, as HTML."""
    wide: bool = False


def esc(text: object) -> str:
    """Escape a text for HTML, within tags and attributes."""
    return html.escape(str(text), quote=True)


def unbroken(text: str) -> str:
    """Escape a text for HTML, and keep each number together with its per cent."""
    return esc(text).replace(" %", "\u00a0%")


def define(term: str, shown: str | None = None) -> str:
    """Return `shown` (escaped, or else the term) with the term's definition on hover and focus."""
    definition = DEFINITIONS.get(term)
    text = esc(term if shown is None else shown)
    if definition is None:
        return text
    return f'<abbr class="def" tabindex="0" title="{esc(definition)}">{text}</abbr>'


def sentence(text: str) -> str:
    """Escape a sentence, and define each known term in it once."""
    seen: set[str] = set()

    def defined(found: re.Match[str]) -> str:
        word = html.unescape(found[0]).replace("\u00a0", " ")
        if word in seen:
            return found[0]
        seen.add(word)
        return define(IN_SENTENCES[word], found[0])

    return _TERMS.sub(defined, unbroken(text))


def data_block(name: str, data: object) -> str:
    """Return data for the page's script; no text in it can end the block or the page."""
    text = orjson.dumps(data).decode()
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def key(entries: Sequence[tuple[str, str]]) -> str:
    """Return a legend of (class of the swatch, text)."""
    items = "".join(
        f'<li><i class="swatch {css}" aria-hidden="true"></i>{esc(text)}</li>'
        for css, text in entries
    )
    return f'<ul class="key">{items}</ul>'


def length(texts: Iterable[str]) -> str:
    """Return "long" where a text needs a line of its own, a class of what holds such texts."""
    return "long" if any(len(text) > 14 for text in texts) else ""


def arm_class(index: int) -> str:
    """Return the class that gives an arm its colour."""
    return f"a{index % 8}"


def names(parts: Sequence[str]) -> str:
    """Join names with commas and a last "and"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


_TERMS = re.compile(
    r"(?<![\w-])("
    + "|".join(re.escape(unbroken(term)) for term in sorted(IN_SENTENCES, key=len, reverse=True))
    + r")(?![\w-])"
)
