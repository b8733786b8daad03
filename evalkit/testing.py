"""Stands in for models, servers and time, in tests of evalkit and of what is built on it.

Lives here: fakes of the ports `Policy` and `Transport`, and a clock. They are deterministic, open
no connection and never sleep. Must not know pytest.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Self

from evalkit.play.policy import Ask, Completion, Policy
from evalkit.play.transport import ExtraHeaders, Response

Reply = str | Completion | Exception


class FakePolicy(Policy):
    """Answers every `Ask` by a function, and remembers what it was asked.

    `reply` returns a text, a `Completion`, or an exception to raise. With a `shuffle` seed answers
    come in another order than the questions, as they do from a server.
    """

    def __init__(self, reply: Callable[[Ask], Reply], *, shuffle: int | None = None) -> None:
        self._reply = reply
        self._rng = None if shuffle is None else random.Random(shuffle)
        self.asked: list[Ask] = []

    async def complete(self, ask: Ask) -> Completion:
        """Answer as `reply` says."""
        self.asked.append(ask)
        for _ in range(self._rng.randrange(8) if self._rng else 0):
            await asyncio.sleep(0)
        reply = self._reply(ask)
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, Completion) else Completion(text=reply)


def response(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None, elapsed_s: float = 0.0
) -> Response:
    """Return a `Response`; the names in `headers` are lower-case."""
    return Response(status=status, headers=headers or {}, body=body, elapsed_s=elapsed_s)


class FakeTransport:
    """A `Transport` that answers every body by a function, and remembers bodies and headers."""

    def __init__(self, answer: Callable[[bytes], Response | Exception]) -> None:
        self._answer = answer
        self.posted: list[tuple[bytes, ExtraHeaders]] = []
        self.closed = False

    async def post(
        self,
        path: str | bytes,  # noqa: ARG002 - the port's signature
        body: bytes,
        headers: ExtraHeaders = b"",
        *,
        timeout_s: float,  # noqa: ARG002 - the port's signature
    ) -> Response:
        """Answer as the function says."""
        self.posted.append((body, headers))
        return self._said(body)

    async def get(
        self,
        path: str | bytes,  # noqa: ARG002 - the port's signature
        headers: ExtraHeaders = b"",  # noqa: ARG002 - the port's signature
        *,
        timeout_s: float,  # noqa: ARG002 - the port's signature
    ) -> Response:
        """Answer as the function says to an empty body."""
        return self._said(b"")

    async def aclose(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _said(self, body: bytes) -> Response:
        said = self._answer(body)
        if isinstance(said, Exception):
            raise said
        return said


class FakeClock:
    """A clock that moves only when somebody sleeps by it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept_s: list[float] = []

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Move the time on, and let others run."""
        self.slept_s.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)
