"""A completion at its pace: a token a tick, written as it is made. Knows no HTTP but its owner's.

Stops at once when the client leaves, stands still in a pause, and breaks where a fault says so.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from serve.testing.faults import Fault
from serve.testing.forms import Form
from serve.testing.generation import Generation
from serve.testing.scheduler import Job

ERROR_EVENT = (
    b'data: {"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the '
    b'root cause.","type":"InternalServerError","param":null,"code":500}}\n\ndata: [DONE]\n\n'
)
BREAKS = frozenset({Fault.CUT_STREAM, Fault.CUT_MID_EVENT, Fault.ERROR_EVENT})
"""Faults that only streams can have."""


class Line(ABC):
    """Where a run writes to."""

    @abstractmethod
    def event(self, data: bytes) -> None:
        """Write a part of a stream."""

    @abstractmethod
    def broken(self) -> None:
        """Close without ending the stream."""

    @abstractmethod
    def finished(self, body: bytes | None) -> None:
        """End the stream, or write the whole answer."""

    @abstractmethod
    def made(self, tokens: int) -> None:
        """Count tokens."""


class Run(Job):
    """One completion on its way."""

    def __init__(
        self,
        made: Generation,
        form: Form,
        line: Line,
        *,
        delay_s: float,
        itl_s: float,
        fault: Fault | None,
    ) -> None:
        self.made = made
        self._form = form
        self._line = line
        self._delay_s = delay_s
        self._itl_s = itl_s
        self._breaks = fault if fault in BREAKS else None
        self._break_at = max(1, made.left // 2)
        self._is_begun = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def tokens(self) -> int:
        """How many tokens it holds in the cache."""
        return len(self.made.ask.prompt_ids) + len(self.made.pieces)

    def go(self) -> None:
        """Make the next token after a while."""
        if self._timer is None:
            wait_s = self._itl_s + (0 if self.made.pieces else self._delay_s)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)

    def halt(self) -> None:
        """Make no token until the next `go`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def abort(self) -> None:
        """End where it is, and say so."""
        self.halt()
        start = len(self.made.pieces)
        self.made.abort()
        self._end(self._event(start))

    def _tick(self) -> None:
        """Make a token, or all of them where there is no pace."""
        self._timer = None
        said = b""
        while True:
            start = len(self.made.pieces)
            self.made.step()
            self._line.made(len(self.made.pieces) - start)
            event = self._event(start)
            if self._breaks and len(self.made.pieces) >= self._break_at:
                self._break(said, event)
                return
            said += event
            if self.made.is_over:
                self._end(said)
                return
            if self._itl_s:
                break
        if said:
            self._line.event(said)
        self.go()

    def _event(self, start: int) -> bytes:
        """Return what a stream says of the tokens from number `start` on."""
        if not self.made.ask.stream:
            return b""
        opening = b"" if self._is_begun else self._form.opening(self.made)
        self._is_begun = True
        return opening + self._form.event(self.made, start)

    def _end(self, said: bytes) -> None:
        if self.made.ask.stream:
            self._line.event(said + self._form.closing(self.made))
            self._line.finished(None)
        else:
            self._line.finished(self._form.whole(self.made))

    def _break(self, said: bytes, event: bytes) -> None:
        """End a stream as the fault says."""
        if self._breaks is Fault.CUT_MID_EVENT:
            event = event[: len(event) // 2]
        elif self._breaks is Fault.ERROR_EVENT:
            self._line.event(said + event + ERROR_EVENT)
            self._line.finished(None)
            return
        self._line.event(said + event)
        self._line.broken()


class Later(Job):
    """Anything else that has to wait its turn, such as an error."""

    tokens = 0

    def __init__(self, delay_s: float, do: Callable[[], None]) -> None:
        self._delay_s = delay_s
        self._do = do
        self._timer: asyncio.TimerHandle | None = None

    def go(self) -> None:
        """Do it after a while."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._delay_s, self._do)

    def halt(self) -> None:
        """Do it not before the next `go`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def abort(self) -> None:
        """Do it now."""
        self.halt()
        self._do()
