"""Carries JSON requests to one server: the port, its exceptions, and what its clients share.

The clients are `direct` (the hot path) and `proxied` (httpx, for servers behind a proxy). Knows
nothing of models, messages or retries after an answer: a body goes in as bytes and comes out as
bytes, with whatever status the server gave it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Protocol, Self, TypedDict, Unpack

from evalkit.play import http1, urls

_MAX_REDIRECTS = 20

Body = bytes | Callable[[], bytes]
"""A body, or what makes it: anew for each sending, so that a thousand calls which wait for their
answers do not hold a thousand bodies."""
ExtraHeaders = Mapping[str, str] | bytes
"""Headers of one request: names and values, or what `http1.header_block` made of them."""


class TransportError(Exception):
    """No complete response came; whether to try again is the caller's to decide.

    * TransportError
      - ConnectFailed
      - ConnectionLost
      - ResponseTimeout
      - ProtocolViolation

    A response with an error status is a response; a wrong argument is a `ValueError`.
    """


class ConnectFailed(TransportError):
    """No connection: the name does not resolve, nobody listens, or TLS does not trust the peer."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        """Whether every address answered that nobody listens there."""


class ConnectionLost(TransportError):
    """The connection ended before the response was complete."""

    def __init__(self, message: str, *, any_byte: bool = False) -> None:
        super().__init__(message)
        self.any_byte = any_byte
        """Whether a part of the response had come."""


class ResponseTimeout(TransportError):
    """The response was not complete when the request's time was up."""


class ProtocolViolation(TransportError):
    """What came is not HTTP/1.1, is larger than the bound, or is in a coding nobody asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One complete response, of any status."""

    status: int
    headers: Mapping[str, str]
    """Under lower-case names; they describe the body as it was sent, before it was decoded."""
    body: bytes
    elapsed_s: float
    """From the call to the last byte: connecting and redirects included."""


class Transport(Protocol):
    """Carries requests to one server, any number at once: limits are the caller's.

    `path` follows the base URL's own, percent-encoded. `headers` are added to the transport's and
    do not replace them. `timeout_s` bounds the whole call. Cancelling the call closes its
    connection, by which the server knows. Both raise `TransportError` where no complete response
    came, and `ValueError` for a path or header that cannot be sent: then nothing was.
    """

    async def post(
        self, path: str | bytes, body: Body, headers: ExtraHeaders = b"", *, timeout_s: float
    ) -> Response:
        """Send a JSON body."""
        ...

    async def get(
        self, path: str | bytes, headers: ExtraHeaders = b"", *, timeout_s: float
    ) -> Response:
        """Ask for a resource."""
        ...

    async def aclose(self) -> None:
        """Close every connection; requests under way raise `ConnectionLost`."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...


class Options(TypedDict, total=False):
    """What every transport can be told."""

    headers: Mapping[str, str]
    """Sent with each request: Authorization and the like."""
    max_body_bytes: int
    """Largest body that is taken, before and after decoding; 64 MiB."""
    connect_timeout_s: float
    """For name, TCP and TLS together; 10 s, and never more than the request has."""


class Client(ABC):
    """What both transports share: arguments checked, redirects followed, time taken."""

    def __init__(self, base_url: str, **options: Unpack[Options]) -> None:
        self._base = urls.BaseUrl.parse(base_url)
        self._max_body_bytes = options.get("max_body_bytes", 64 << 20)
        self._connect_timeout_s = options.get("connect_timeout_s", 10.0)
        json = "application/json"
        headers = {"accept": json, "content-type": json, "user-agent": "palaestra"}
        headers |= {name.lower(): value for name, value in options.get("headers", {}).items()}
        self._fixed = http1.header_block(headers)

    async def post(
        self, path: str | bytes, body: Body, headers: ExtraHeaders = b"", *, timeout_s: float
    ) -> Response:
        """Send a JSON body: see `Transport`."""
        return await self._request("POST", path, body, headers, timeout_s)

    async def get(
        self, path: str | bytes, headers: ExtraHeaders = b"", *, timeout_s: float
    ) -> Response:
        """Ask for a resource: see `Transport`."""
        return await self._request("GET", path, b"", headers, timeout_s)

    @abstractmethod
    async def aclose(self) -> None:
        """Close every connection: see `Transport`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    @abstractmethod
    async def _exchange(
        self, method: str, target: str, body: Body, extra: bytes, deadline: float
    ) -> http1.Reply:
        """Carry one request and no more."""

    async def _request(
        self, method: str, path: str | bytes, body: Body, headers: ExtraHeaders, timeout_s: float
    ) -> Response:
        started = monotonic()
        deadline = started + timeout_s
        target = urls.request_target(self._base.prefix, path)
        extra = http1.header_block(headers) if headers else b""
        reply = await self._exchange(method, target, body, extra, deadline)
        hops = 0
        while 300 <= reply.status < 400 and hops < _MAX_REDIRECTS:
            location = reply.headers.get(b"location", b"").decode("latin-1")
            step = urls.redirect(self._base, method, target, reply.status, location)
            if step is None:
                break
            method, target = step
            body = body if method == "POST" else b""
            hops += 1
            reply = await self._exchange(method, target, body, extra, deadline)
        return Response(
            status=reply.status,
            headers=http1.Headers(reply.headers),
            body=reply.body,
            elapsed_s=monotonic() - started,
        )
