"""Serves the pages for people: the dashboard and the documentation. Each is one file, and complete.

A page may load nothing but itself and ask nobody but this gateway: its policy says so to the
browser, by the digests of its own script and style.
"""

import base64
import re
from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Response

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@router.get("/dashboard")
async def dashboard() -> Response:
    """Return the dashboard's page; its data needs a login."""
    return _page("dashboard.html")


@router.get("/docs")
async def docs() -> Response:
    """Return the page that shows /openapi.json."""
    return _page("docs.html")


@cache
def _load(name: str) -> tuple[bytes, str]:
    text = (_FOLDER / name).read_text("utf-8")
    sources: dict[str, list[str]] = {"script": [], "style": []}
    for tag, content in _INLINE.findall(text):
        digest = base64.b64encode(sha256(content.encode()).digest()).decode()
        sources[tag].append(f"'sha256-{digest}'")
    policy = (
        f"default-src 'none'; script-src {' '.join(sources['script'])}; "
        f"style-src {' '.join(sources['style'])}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


def _page(name: str) -> Response:
    body, policy = _load(name)
    headers = {"content-security-policy": policy, "x-frame-options": "DENY"}
    return Response(body, media_type="text/html; charset=utf-8", headers=headers)
