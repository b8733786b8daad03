"""Who may look: the pages of another site may not, and nobody else on the network without a token.

A page of another site can make a browser ask this server. It cannot read the answer, unless its own
name is made to resolve to this machine: so the name that was asked for is checked. A token does the
same and more: its cookie belongs to the name under which it was typed in.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from evalkit.errors import BadConfig
from evalkit.view.routes import Request, Response

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIN_TOKEN_CHARS = 16
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'self'"
)
HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
_PLAIN = re.compile(r"/(?!/)[A-Za-z0-9._~%/-]*")
_ASK = """<!doctype html><html lang="en"><meta charset="utf-8"><title>evalkit view</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="stylesheet" href="/assets/style.css">
<link rel="stylesheet" href="/assets/view.css"><script src="/assets/view.js" defer></script>
<body class="view"><main class="ask"><h1>evalkit view</h1><p>{said}</p>
<form><label>Token <input type="password" name="token" autocomplete="off" autofocus></label>
<button>Open</button></form></main>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Decides whether a request is answered. Without a token only loopback names are."""

    token: str | None = None
    port: int = 0

    def refusal(self, request: Request) -> Response | None:
        """Return what a request gets that may not pass; None for one that may."""
        host = request.headers.get("host", "")
        if self.token is None and _hostname(host) not in LOOPBACK:
            said = f"asked for {host or 'no host'}; this server is http://127.0.0.1:{self.port}"
            return _refused(403, said)
        if request.method not in {"GET", "HEAD"} and not _is_own_page(request, host):
            return _refused(403, "only a page of this server may ask that, and only in JSON")
        if self.token is None or request.path.startswith("/assets/"):
            return None
        return self._unlocked(request, self.token)

    def _unlocked(self, request: Request, token: str) -> Response | None:
        """Take a token from the address into a cookie, or look whether the cookie is there."""
        name = f"evalkit_view_{self.port}"
        if "token" in request.query and request.method == "GET":
            if not _same(request.query["token"], token):
                return Response.html(_ASK.format(said="This is not the token."), 401)
            rest = urlencode({k: v for k, v in request.query.items() if k != "token"})
            path = request.path if _PLAIN.fullmatch(request.path) else "/"
            where = path + (f"?{rest}" if rest else "")
            cookie = f"{name}={token}; Path=/; HttpOnly; SameSite=Strict"
            return Response.moved(where, ("Set-Cookie", cookie))
        cookies = request.headers.get("cookie", "").split(";")  # others of this host are any text
        if any(_same(cookie.strip(), f"{name}={token}") for cookie in cookies):
            return None
        return Response.html(_ASK.format(said="These pages need the token of the server."), 401)


def required_token(host: str, variable: str | None, value: str) -> str | None:
    """Return the token that is needed to listen on `host`, from the variable named for it.

    Raises:
        BadConfig: not this machine's own address, and no token; or a token that is easily guessed.

    """
    if variable is None:
        if host in LOOPBACK:
            return None
        raise BadConfig(
            f"--host {host} lets others in: name a variable with a token, --token-env VAR"
        )
    if len(value) < MIN_TOKEN_CHARS or not value.isascii() or not value.isalnum():
        raise BadConfig(
            f"{variable} holds no token: expected {MIN_TOKEN_CHARS} letters and digits or more "
            f"(export {variable}=$(openssl rand -hex 16))"
        )
    return value


def _hostname(host: str) -> str | None:
    """Return the name of a Host header, without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_own_page(request: Request, host: str) -> bool:
    """Whether a request that changes something comes from a page of this server."""
    _, _, origin = request.headers.get("origin", "").partition("://")
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    return origin == host and bool(host) and kind == "application/json"


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _refused(status: int, said: str) -> Response:
    kind = "text/plain; charset=utf-8"
    return Response(body=said.encode("utf-8", "replace"), content_type=kind, status=status)
