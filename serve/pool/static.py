"""A pool of engines that somebody else started: a fixed list of URLs."""

import ssl
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from serve.errors import ConfigError
from serve.pool.base import Pool
from serve.pool.health import Health
from serve.pool.replicas import Replica


class StaticPool(Pool):
    """Replicas at `http://HOST:PORT` each, or `https://HOST` with `tls`.

    `headers` go with every request to them; `health` are the options of `Health`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        tls: ssl.SSLContext | None = None,
        headers: Sequence[tuple[str, str]] = (),
        **health: Any,  # noqa: ANN401  # Health's
    ) -> None:
        super().__init__()
        for number, url in enumerate(urls):
            parts = urlsplit(url)
            is_tls = parts.scheme == "https"
            if is_tls and tls is None:
                raise ConfigError(f"{url}: there is nothing to believe its certificate by")
            self.replicas.append(
                Replica(
                    f"upstream-{number}",
                    parts.hostname or "",
                    parts.port or (443 if is_tls else 80),
                    tls=tls if is_tls else None,
                    headers=headers,
                )
            )
        self._health = Health(self, **health)

    async def start(self) -> None:
        """Begin to probe."""
        for replica in self.replicas:
            self._health.watch(replica)

    async def stop(self) -> None:
        """Probe no more."""
        await self._health.stop()

    def wake(self) -> None:
        """Do nothing: what is not there cannot be started from here."""

    def failed(self, replica: Replica, reason: str) -> None:
        """Take a replica out until a probe succeeds."""
        self._health.failed(replica, reason)

    async def scale(self, count: int) -> None:
        """Refuse: the set is fixed."""
        raise ConfigError(f"a pool of upstreams cannot be scaled to {count}")
