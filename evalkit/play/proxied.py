"""The way to a server through a proxy, over httpx; and the choice between it and the direct one."""

from __future__ import annotations

import asyncio
import ssl
from time import monotonic
from typing import TYPE_CHECKING, Unpack

from evalkit.play import http1, urls
from evalkit.play.direct import Http1Transport
from evalkit.play.transport import (
    Body,
    Client,
    ConnectFailed,
    ConnectionLost,
    Options,
    ProtocolViolation,
    ResponseTimeout,
    Transport,
    TransportError,
)

if TYPE_CHECKING:
    import httpx


def open_transport(base_url: str, **options: Unpack[Options]) -> Transport:
    """Return the transport that fits: httpx where the environment puts a proxy in between."""
    proxy = urls.environment_proxy(urls.BaseUrl.parse(base_url))
    if proxy is None:
        return Http1Transport(base_url, **options)
    return HttpxTransport(base_url, proxy=proxy, **options)


class HttpxTransport(Client):
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
