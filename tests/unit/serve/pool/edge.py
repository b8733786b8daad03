"""What stands before a server's containers, as a double: routes by a header, and says 503 for none.

It speaks TLS where it is told to, and keeps the heads of all requests that passed.
"""

import asyncio
import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from serve.pool.discovery import Container, Discovery, DiscoveryFailed

_NONE = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Edge(Discovery):
    """A server whose containers the test adds and takes away. Each is a port on loopback."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.ports: dict[str, int] = {}
        self.heads: list[str] = []
        self.wakes = 0
        self.scaled_to: list[int] = []
        self.problem: DiscoveryFailed | None = None
        """Raised by each list, if set."""
        self._tls = tls
        self._writers: set[asyncio.StreamWriter] = set()

    async def url(self) -> str:
        port = self._server.sockets[0].getsockname()[1]
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"

    async def containers(self) -> Sequence[Container]:
        if self.problem is not None:
            raise self.problem
        return [Container(id=id_, host="10.0.0.1", port=port) for id_, port in self.ports.items()]

    async def scale(self, count: int) -> None:
        if count > 99:
            raise DiscoveryFailed("too many")
        self.scaled_to.append(count)

    async def wake(self) -> None:
        self.wakes += 1

    def asked(self, line: str) -> list[str]:
        """Return the heads of requests whose first line begins so."""
        return [head for head in self.heads if head.startswith(line)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                text = head.decode().lower()
                self.heads.append(head.decode())
                port = self._port_for(text)
                *_, sized = ["0", *text.split("content-length: ")[1:]]
                length = int(sized.split("\r\n")[0])
                body = await reader.readexactly(length)
                if port is None:
                    writer.write(_NONE)
                    break
                await self._pass(head, body, port, writer)
                break
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _port_for(self, head: str) -> int | None:
        named = head.split("modal-flash-upstream: 10.0.0.1:")
        if len(named) > 1:
            port = int(named[1].split("\r\n")[0])
            return port if port in self.ports.values() else None
        return next(iter(self.ports.values()), None)

    async def _pass(
        self, head: bytes, body: bytes, port: int, writer: asyncio.StreamWriter
    ) -> None:
        """Pass one request and all of its answer; the connection ends with it."""
        reader, onward = await asyncio.open_connection("127.0.0.1", port)
        try:
            first, _, rest = head.partition(b"\r\n")
            onward.write(first + b"\r\nconnection: close\r\n" + rest + body)
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        finally:
            onward.close()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
