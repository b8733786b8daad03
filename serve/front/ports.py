"""What connections and requests need of the gateway that they run in, as a port."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from serve.accounts.limits import Account, Denied
from serve.front.relay.naming import Resolver
from serve.front.sight.meters import Meters
from serve.pool.base import Pool
from serve.pool.routing import Router
from serve.settings import FrontConfig

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]
"""An ASGI application."""
Headers = list[tuple[bytes, bytes]]
"""Names in lower case, and values."""


class Client(Protocol):
    """Whoever asked: a connection, or nobody for shadow traffic."""

    keep_alive: bool
    source: str
    """The address that the request came from."""

    @property
    def is_stuck(self) -> bool:
        """Whether it does not read what it gets."""

    def write(self, data: bytes) -> None:
        """Send bytes of the answer."""

    def cut(self) -> None:
        """Drop the connection, so that a short answer cannot look like a whole one."""

    def exchange_done(self) -> None:
        """Learn that the answer is complete, and go on with the next request."""


class Auth(Protocol):
    """Who asks; `serve.accounts.auth.Auth` is one."""

    @property
    def open(self) -> bool:
        """Whether there is no key yet, so that everybody may do everything."""

    @property
    def known(self) -> Callable[[bytes | None], Account | None]:
        """Return the account of an Authorization header that was proven before."""

    async def verify(self, header: bytes | None, source: str) -> Account | Denied:
        """Prove a header."""


class Ledger(Protocol):
    """Where usage is counted; `serve.accounts.ledger.Ledger` is one."""

    def add(
        self, key_id: str, model: str, prompt_tokens: int, completion_tokens: int, estimated: bool
    ) -> None:
        """Count one request."""


class Tracer(Protocol):
    """Where spans are made; `serve.front.sight.trace.Tracer` is one."""

    def record(self, request: dict[str, Any]) -> None:
        """Take one finished request."""


class House(Protocol):
    """What a request needs of its gateway."""

    loop: asyncio.AbstractEventLoop
    auth: Auth
    pool: Pool
    router: Router
    resolver: Resolver
    meters: Meters

    def unserved(self, request: Any) -> None:  # noqa: ANN401  # the request's own type is above us
        """Hold, or refuse, a request that no ready replica can serve now."""

    def finished(self, request: Any) -> None:  # noqa: ANN401
        """Settle what a request cost."""

    def shadow(self, request: Any) -> None:  # noqa: ANN401
        """Send a copy elsewhere, where a rule says so."""


class FrontDoor(House, Protocol):
    """What a connection needs of its gateway."""

    app: App
    limits: FrontConfig
    stopping: bool
    expects_https: bool
    trusts_edge: bool
    address: tuple[str, int]

    def connected(self, lane: Any) -> bool:  # noqa: ANN401
        """Count a connection in; False if there are too many."""

    def disconnected(self, lane: Any) -> None:  # noqa: ANN401
        """Count a connection out."""

    def is_secure(self, source: str, headers: Headers) -> bool:
        """Whether nobody on the way could read the request."""

    def client_of(self, peer: str, headers: Headers) -> str:
        """Return the address of whoever asks, behind proxies that are trusted."""

    def scheme(self, source: str, headers: Headers) -> str:
        """Return what the client spoke, `http` or `https`."""
