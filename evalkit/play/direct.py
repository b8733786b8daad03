"""The hot path to a server: our own HTTP/1.1 client over keep-alive connections."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from time import monotonic
from typing import Unpack

from evalkit.play import http1
from evalkit.play.transport import (
    Body,
    Client,
    ConnectFailed,
    ConnectionLost,
    Options,
    ProtocolViolation,
    ResponseTimeout,
)

_ADDRESS_LIFE_S = 60.0


class Http1Transport(Client):
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
