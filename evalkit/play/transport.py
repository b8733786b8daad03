"""Carries JSON requests to one server: the port, its two implementations and the choice between.

Lives here: `Transport`, its exceptions, the keep-alive client of the hot path and the httpx client
for servers behind a proxy. Knows nothing of models, messages or retries after an answer: a body
goes in as bytes and comes out as bytes, with whatever status the server gave it.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Protocol, Self, TypedDict, Unpack

from evalkit.play import http1, urls

if TYPE_CHECKING:
    import httpx

_MAX_REDIRECTS = 20
_ADDRESS_LIFE_S = 60.0

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


def open_transport(base_url: str, **options: Unpack[Options]) -> Transport:
    """Return the transport that fits: httpx where the environment puts a proxy in between."""
    proxy = urls.environment_proxy(urls.BaseUrl.parse(base_url))
    if proxy is None:
        return Http1Transport(base_url, **options)
    return HttpxTransport(base_url, proxy=proxy, **options)


class _Client(ABC):
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


class Http1Transport(_Client):
    """The hot path: a pool of keep-alive connections, one request on each at a time.

    The connection used last is used next, so that the fewest stay open.
    """

    def __init__(self, base_url: str, **options: Unpack[Options]) -> None:
        super().__init__(base_url, **options)
        self._fixed = b"host: %b\r\n%b" % (self._base.authority.encode(), self._fixed)
        self._tls = ssl.create_default_context() if self._base.scheme == "https" else None
        self._alive: set[http1.Connection] = set()
        self._idle: dict[http1.Connection, None] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = math.inf
        self._addresses: list[str] = []
        self._addresses_until = 0.0
        self._resolving = asyncio.Lock()
        self._closed = False

    async def aclose(self) -> None:
        """Close every connection: see `Transport`."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        await asyncio.gather(*(connection.aclose() for connection in self._alive))

    async def _exchange(
        self, method: str, target: str, body: Body, extra: bytes, deadline: float
    ) -> http1.Reply:
        fresh = not self._idle
        while True:
            connection = await self._connect(deadline) if fresh else self._idle.popitem()[0]
            if deadline < self._sweep_at:
                self._sweep_by(deadline)
            waiter = self._send(connection, method, target, body, extra, deadline)
            try:
                return await waiter
            except ConnectionError as error:
                # A server may close an idle connection in the moment that it is taken. Once more
                # is safe: nothing was answered, so no turn was played, and a completion made in
                # vain costs tokens, not truth.
                if fresh or connection.any_byte:
                    message = f"{self._base.origin}: {error}"
                    raise ConnectionLost(message, any_byte=connection.any_byte) from error
                fresh = True
            except TimeoutError as error:
                raise ResponseTimeout(f"{self._base.origin}: {error}") from None
            except http1.Malformed as error:
                raise ProtocolViolation(f"{self._base.origin}: {error}") from error
            finally:
                if connection.waiter is waiter:  # cancelled: what is still to come is nobody's
                    connection.fail(ConnectionAbortedError("cancelled"))

    def _send(
        self,
        connection: http1.Connection,
        method: str,
        target: str,
        body: Body,
        extra: bytes,
        deadline: float,
    ) -> asyncio.Future[http1.Reply]:
        line = f"{method} {target} HTTP/1.1\r\n".encode()
        if method == "GET":
            return connection.send(b"%b%b%b\r\n" % (line, self._fixed, extra), b"", deadline)
        sent = body if isinstance(body, bytes) else body()
        head = b"%b%b%bcontent-length: %d\r\n\r\n" % (line, self._fixed, extra, len(sent))
        return connection.send(head, sent, deadline)

    def _sweep_by(self, deadline: float) -> None:
        """Have the deadlines looked at then: one timer for all requests, not one for each."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep_at = deadline
        delay_s = max(deadline - monotonic(), 0.001)  # at most a thousand sweeps a second
        self._sweep = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._sweep, self._sweep_at = None, math.inf
        now = monotonic()
        for connection in [each for each in self._alive if each.waiter and each.deadline <= now]:
            connection.fail(TimeoutError("no complete response in time"))
        earliest = min((each.deadline for each in self._alive if each.waiter), default=math.inf)
        if earliest < math.inf:
            self._sweep_by(earliest)

    async def _connect(self, deadline: float) -> http1.Connection:
        budget_s = max(0.0, min(self._connect_timeout_s, deadline - monotonic()))
        try:
            async with asyncio.timeout(budget_s):
                connection = await self._dial()
        except TimeoutError:
            message = f"{self._base.origin}: no connection within {budget_s:.3g} s"
            kind = ResponseTimeout if budget_s < self._connect_timeout_s else ConnectFailed
            raise kind(message) from None
        if self._closed:
            connection.fail(ConnectionAbortedError())
            raise ConnectionLost("the transport was closed")
        return connection

    async def _dial(self) -> http1.Connection:
        loop = asyncio.get_running_loop()
        errors: list[OSError] = []
        for address in await self._resolve():
            try:
                _, connection = await loop.create_connection(
                    lambda: http1.Connection(self._alive, self._idle, self._max_body_bytes),
                    address,
                    self._base.port,
                    ssl=self._tls,
                    server_hostname=self._base.host if self._tls else None,
                )
            except OSError as error:
                errors.append(error)
            else:
                connection.join()
                return connection
        self._addresses_until = 0.0
        refused = all(isinstance(error, ConnectionRefusedError) for error in errors)
        raise ConnectFailed(f"{self._base.origin}: {'; '.join(map(str, errors))}", refused=refused)

    async def _resolve(self) -> list[str]:
        """Look the host up once for all: a thousand connections at a time overrun resolvers."""
        async with self._resolving:
            if monotonic() >= self._addresses_until:
                lookup = asyncio.get_running_loop().getaddrinfo
                try:
                    found = await lookup(self._base.host, None, type=socket.SOCK_STREAM)
                except (OSError, UnicodeError) as error:
                    raise ConnectFailed(f"{self._base.origin}: {error}") from error
                self._addresses = [str(entry[4][0]) for entry in found]
                self._addresses_until = monotonic() + _ADDRESS_LIFE_S
        return self._addresses


class HttpxTransport(_Client):
    """The way through a proxy: slower by an order of magnitude, the same in all else."""

    def __init__(
        self, base_url: str, *, proxy: str | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(base_url, **options)
        import httpx  # noqa: PLC0415  100 ms that the hot path does without

        self._client = httpx.AsyncClient(
            proxy=proxy,
            trust_env=False,
            verify=ssl.create_default_context(),
            timeout=httpx.Timeout(None, connect=self._connect_timeout_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def aclose(self) -> None:
        """Close every connection: see `Transport`."""
        await self._client.aclose()

    async def _exchange(
        self, method: str, target: str, body: Body, extra: bytes, deadline: float
    ) -> http1.Reply:
        import httpx  # noqa: PLC0415  loaded by __init__

        lines = (self._fixed + extra).splitlines()
        request = httpx.Request(
            method,
            self._base.origin + target,
            headers=[(line[: line.index(b":")], line[line.index(b":") + 2 :]) for line in lines],
            content=None if method != "POST" else body if isinstance(body, bytes) else body(),
        )
        response = None
        try:
            async with asyncio.timeout(deadline - monotonic()):
                response = await self._client.send(request, stream=True)
                return await self._read(response)
        except TimeoutError:
            raise ResponseTimeout(f"{self._base.origin}: no complete response in time") from None
        except httpx.TransportError as error:
            raise self._translated(error, any_byte=response is not None) from error
        except http1.Malformed as error:
            raise ProtocolViolation(f"{self._base.origin}: {error}") from error
        finally:
            if response is not None:
                await response.aclose()

    async def _read(self, response: httpx.Response) -> http1.Reply:
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > self._max_body_bytes:
                break
        response.headers.encoding = "latin-1"
        headers = {k.encode(): v.encode("latin-1") for k, v in response.headers.items()}
        plain = http1.plain_body(headers, bytes(body), self._max_body_bytes)
        return http1.Reply(response.status_code, headers, plain, reusable=True)

    def _translated(self, error: httpx.TransportError, *, any_byte: bool) -> TransportError:
        import httpx  # noqa: PLC0415  loaded by __init__

        message = f"{self._base.origin}: {error}"
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
            return ConnectFailed(message, refused=_refused(error))
        ended = "closed" in str(error) or "disconnected" in str(error)  # httpx has no name for it
        if isinstance(error, httpx.ProtocolError) and not ended:
            return ProtocolViolation(message)
        return ConnectionLost(message, any_byte=any_byte)


def _refused(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_refused(each) for each in error.exceptions)
    cause = error and (error.__cause__ or error.__context__)
    return isinstance(error, ConnectionRefusedError) or (cause is not None and _refused(cause))
