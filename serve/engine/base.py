"""The port: what any inference server is to the rest of serve. Knows no process and no HTTP."""

import asyncio
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from serve.errors import EngineDied


class Engine(ABC):
    """One inference server that answers the OpenAI API for one model.

    Entering starts it, leaving stops it and everything it started. Between the two,
    `wait_ready` returns once a completion really works.
    """

    model: str
    """The name to put into a request's `model` field."""
    base_url: str
    """OpenAI's base URL, `http://HOST:PORT/v1`; known from entering on."""
    died: asyncio.Future[EngineDied]
    """Done when the engine ended without being asked to; its result says why."""

    @property
    def root_url(self) -> str:
        """`http://HOST:PORT`, under which /health and /version live."""
        return self.base_url.removesuffix("/v1")

    @abstractmethod
    async def start(self) -> None:
        """Start the server; it need not be able to answer yet."""

    @abstractmethod
    async def wait_ready(self, timeout_s: float = 600.0) -> None:
        """Return when a completion works; raise EngineDied or EngineNotReady otherwise."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop the server and all it started; harmless the second time."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()
