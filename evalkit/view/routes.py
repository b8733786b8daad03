"""What is asked and what is answered, as values, and which page answers what.

Knows HTTP's words but no socket: tests ask without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import orjson

from evalkit.errors import BadConfig


class NotFound(BadConfig):
    """There is no such page, run or file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request; `path` is still quoted, the names in `headers` are lower-case."""

    path: str
    method: str = "GET"
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:  # noqa: ANN401 - the page says what it expects
        """Read the body as JSON.

        Raises:
            BadConfig: it is not.

        """
        try:
            return orjson.loads(self.body)
        except ValueError as error:
            raise BadConfig(f"expected a body of JSON: {error}") from error

    def number(self, name: str, default: int | None = None) -> int:
        """Read a whole number of the query.

        Raises:
            BadConfig: it is missing without a default, or not a whole number.

        """
        text = self.query.get(name, "")
        if not text and default is not None:
            return default
        if not text.removeprefix("-").isascii() or not text.removeprefix("-").isdigit():
            raise BadConfig(f"?{name}= is a whole number, not {text!r}")
        return int(text[:20])


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer; a body that is a path is sent from the disk."""

    body: bytes | Path
    content_type: str
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def html(cls, text: str, status: int = 200) -> Self:
        """Answer with a page."""
        kind = "text/html; charset=utf-8"
        return cls(body=text.encode("utf-8", "replace"), content_type=kind, status=status)

    @classmethod
    def json(cls, value: object, status: int = 200) -> Self:
        """Answer with data."""
        body = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS, default=str)
        return cls(body=body, content_type="application/json", status=status)

    @classmethod
    def moved(cls, to: str, *headers: tuple[str, str]) -> Self:
        """Send to another page of this server."""
        where = ("Location", to)
        return cls(body=b"", content_type="text/plain", status=303, headers=(where, *headers))


Handler = Callable[[Request, Mapping[str, str]], Response]


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a method and a path; `{name}` stands for one segment."""

    method: str
    pattern: str
    answer: Handler

    def match(self, path: str) -> dict[str, str] | None:
        """Return the named segments of a path, unquoted; None where it is another page's."""
        wanted, found = self.pattern.split("/"), path.split("/")
        if len(wanted) != len(found):
            return None
        names = {}
        for want, have in zip(wanted, found, strict=True):
            if want.startswith("{"):
                names[want[1:-1]] = unquote(have)
            elif want != have:
                return None
        return names


def route(routes: Sequence[Route], request: Request) -> Response:
    """Let the page answer that is asked for; the first that matches.

    Raises:
        NotFound: none does.

    """
    allowed = set()
    method = "GET" if request.method == "HEAD" else request.method
    for each in routes:
        names = each.match(request.path)
        if names is None:
            continue
        if each.method == method:
            return each.answer(request, names)
        allowed.add(each.method)
    if allowed:
        allow = ("Allow", ", ".join(sorted(allowed)))
        kind = "text/plain; charset=utf-8"
        said = f"{request.method} is not for this page".encode()
        return Response(body=said, content_type=kind, status=405, headers=(allow,))
    raise NotFound(f"there is no page {request.path}")
