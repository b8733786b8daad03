"""A deployed Modal server, as its SDK shows it. The only door to `modal` in serve's pools."""

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any

import httpx

from serve.errors import ConfigError
from serve.pool.discovery import Container, Discovery, DiscoveryFailed

_WAKE_TIMEOUT_S = 10.0


class ModalServer(Discovery):
    """The server `name` of a deployed app; `headers` get a request past Modal's edge."""

    def __init__(
        self,
        app: str,
        name: str,
        *,
        environment: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Raise ConfigError without the SDK; nothing is asked yet."""
        try:
            import modal  # noqa: PLC0415  # an extra, and half a second
        except ImportError:
            raise ConfigError("modal: the SDK is missing: pip install 'palaestra[modal]'") from None
        self._server = modal.Server.from_name(app, name, environment_name=environment)
        self._label = f"{app}/{name}"
        self._headers = list(headers)
        self._tls = tls
        self._url = ""

    async def url(self) -> str:
        """Return its URL; raise DiscoveryFailed where it is not deployed."""
        found = await self._asked(self._server.get_url.aio)
        if not found:
            raise DiscoveryFailed(f"{self._label} has no URL")
        self._url = str(found).rstrip("/")
        return self._url

    async def containers(self) -> Sequence[Container]:
        """Return the containers that Modal routes requests to."""
        listing = getattr(self._server, "_experimental_list_containers", None)
        if listing is None:
            words = "this version of Modal's SDK cannot list a server's containers"
            raise DiscoveryFailed(words, is_final=True)
        return [
            Container(id=each.container_id, host=each.host, port=each.port)
            for each in await self._asked(listing.aio)
        ]

    async def scale(self, count: int) -> None:
        """Set the fewest containers; the next deployment resets it."""
        await self._asked(self._server.autoscaler.update.aio, min_containers=count)

    async def wake(self) -> None:
        """Ask for its health: the 503 does not matter, that Modal counts the request does."""
        try:
            async with httpx.AsyncClient(
                verify=self._tls or False, trust_env=False, timeout=_WAKE_TIMEOUT_S
            ) as client:
                await client.get(f"{self._url or await self.url()}/health", headers=self._headers)
        except httpx.HTTPError as error:
            raise DiscoveryFailed(f"{self._label}: {str(error) or type(error).__name__}") from error

    async def _asked(self, ask: Any, **told: Any) -> Any:  # noqa: ANN401  # the SDK's own types
        try:
            return await ask(**told)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # Whatever the SDK raises, the pool lives on with what it knows.
            raise DiscoveryFailed(f"{self._label}: {type(error).__name__}: {error}") from error
