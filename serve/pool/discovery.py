"""The port: a server somewhere else, its containers, and how to have more of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from serve.errors import ServeError


class DiscoveryFailed(ServeError):
    """The server, or its containers, cannot be found; `is_final` if asking again is in vain."""

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container of a server, and how the server's own front calls it."""

    id: str
    host: str
    port: int


class Discovery(ABC):
    """What a pool asks of whoever runs the containers. All of it may raise DiscoveryFailed."""

    @abstractmethod
    async def url(self) -> str:
        """Return the server's URL: http or https, without a path."""

    @abstractmethod
    async def containers(self) -> Sequence[Container]:
        """Return those that take requests now."""

    @abstractmethod
    async def scale(self, count: int) -> None:
        """Keep at least so many from now on."""

    @abstractmethod
    async def wake(self) -> None:
        """Cause the first one to be started."""
