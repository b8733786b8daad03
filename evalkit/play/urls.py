"""Where requests go: base URLs, request targets, redirects, the environment's proxy.

Lives here: every decision about a URL, as pure functions. Knows nothing of connections or bodies.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[0-9A-Za-z._~-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[0-9A-Za-z._~-]+)?")
_TARGET = re.compile(r"/[\x21\x22\x24-\x7e]*")  # visible ASCII without "#"


class BaseUrl(NamedTuple):
    """Where a server is, and the path that its API starts at."""

    scheme: str
    host: str
    """An IPv6 address stands without its brackets."""
    port: int
    prefix: str
    """Comes before every request's own path: empty, or "/v1", never ending in a slash."""

    @classmethod
    def parse(cls, url: str) -> BaseUrl:
        """Read `http(s)://host[:port][/prefix]`.

        Raises:
            ValueError: anything else; the message never shows what may be a password.

        """
        if any(sign <= " " for sign in url):
            raise ValueError("base URL: expected no blanks and no control characters")
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORTS:
            raise ValueError(f"base URL: expected http:// or https://, found {parts.scheme!r}")
        if "@" in parts.netloc:
            raise ValueError("base URL: expected no user:password@; pass an Authorization header")
        host, prefix = parts.hostname or "", parts.path.rstrip("/")
        if not _HOST.fullmatch(host):
            raise ValueError(f"base URL: expected an ASCII host (IDNA: xn--...), found {host!r}")
        if parts.query or parts.fragment or not _TARGET.fullmatch(prefix or "/"):
            raise ValueError("base URL: expected a percent-encoded path, no query, no fragment")
        try:
            port = _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
        except ValueError as error:
            raise ValueError(f"base URL: expected a port up to 65535 ({error})") from None
        return cls(parts.scheme, host, port, prefix)

    @property
    def authority(self) -> str:
        """The Host header's value: the port is named only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """`scheme://authority`."""
        return f"{self.scheme}://{self.authority}"


@lru_cache(maxsize=256)  # a run asks for a handful of paths, millions of times
def request_target(prefix: str, path: str | bytes) -> str:
    """Join the base URL's prefix and a request's path.

    Raises:
        ValueError: the path does not start with a slash or holds what a request line cannot.

    """
    own = path if isinstance(path, str) else path.decode("latin-1")
    if not _TARGET.fullmatch(own):
        raise ValueError(f"path: expected /percent-encoded/ascii, found {path!r}")
    return prefix + own


def redirect(
    base: BaseUrl, method: str, target: str, status: int, location: str
) -> tuple[str, str] | None:
    """Return the method and target that a redirect leads to, None where it is not followed.

    303 asks for the result by GET (Modal's answer while a request runs on), 307 and 308 for the
    same request again, 301 and 302 are followed for GET only. Never to another origin: the
    Authorization header would go with it.
    """
    if status == 303:
        method = "GET"
    elif status not in ((301, 302, 307, 308) if method == "GET" else (307, 308)):
        return None
    try:
        url = urlsplit(urljoin(base.origin + target, location))
        there = BaseUrl.parse(f"{url.scheme}://{url.netloc}")
        path = url.path or "/"
        new_target = request_target("", f"{path}?{url.query}" if url.query else path)
    except ValueError:
        return None
    return (method, new_target) if location and there.origin == base.origin else None


def environment_proxy(base: BaseUrl) -> str | None:
    """Return the proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name for a URL.

    Never one for a loopback address: the proxy's loopback is another machine's.
    """
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415  15 ms that --help spares

    proxies = getproxies()
    proxy = proxies.get(base.scheme) or proxies.get("all")
    loopback = base.host in ("localhost", "::1") or base.host.startswith("127.")
    if not proxy or loopback or proxy_bypass(f"{base.host}:{base.port}"):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
