"""Who makes tokens and who waits: pauses, limits and aborts, as vLLM's scheduler. No I/O."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from enum import StrEnum


class PauseMode(StrEnum):
    """What a pause does to the requests that are running."""

    ABORT = "abort"
    """They end where they are."""
    WAIT = "wait"
    """They are finished first."""
    KEEP = "keep"
    """They stand still, and go on afterwards."""


class Job(ABC):
    """A request, as far as it can be scheduled."""

    names: frozenset[str] = frozenset()
    """The ids it can be aborted by."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """How many tokens it holds in the cache."""

    @abstractmethod
    def go(self) -> None:
        """Begin, or go on."""

    @abstractmethod
    def halt(self) -> None:
        """Stand still until the next `go`."""

    @abstractmethod
    def abort(self) -> None:
        """End at once, and say so."""


class Scheduler:
    """The requests of one engine that have no answer yet, oldest first."""

    def __init__(self, *, most_running: int | None = None) -> None:
        self.is_paused = False
        self.running: dict[Job, None] = {}
        self.waiting: dict[Job, None] = {}
        self._most_running = most_running
        self._drained: list[Callable[[], None]] = []

    @property
    def is_open(self) -> bool:
        """Whether any request is let in at once."""
        return not self.is_paused and self._most_running is None

    def admit(self, job: Job) -> None:
        """Let it run, as soon as it may."""
        self.waiting[job] = None
        self._fill()

    def leave(self, job: Job) -> None:
        """Forget a request that has its answer, or whose client has left."""
        self.waiting.pop(job, None)
        self.running.pop(job, None)
        self._fill()
        self._tell_drained()

    def pause(self, mode: PauseMode, done: Callable[[], None]) -> None:
        """Let nobody run from now on; call `done` when nobody does."""
        self.is_paused = True
        if mode is PauseMode.ABORT:
            self.abort(None)
        elif mode is PauseMode.KEEP:
            self.freeze()
        self._drained.append(done)
        self._tell_drained(all_halted=mode is PauseMode.KEEP)

    def resume(self) -> None:
        """Let everybody go on."""
        self.is_paused = False
        self.thaw()
        self._fill()

    def freeze(self) -> None:
        """Let everybody stand still, as a stopped process does."""
        for job in self.running:
            job.halt()

    def thaw(self) -> None:
        """Let those who ran go on, unless there is a pause."""
        if not self.is_paused:
            for job in list(self.running):
                job.go()

    def abort(self, names: Iterable[str] | None) -> int:
        """End the requests of these names, or all that run; return how many that were."""
        wanted = None if names is None else set(names)
        among = self.running if wanted is None else self.running | self.waiting
        found = [job for job in among if wanted is None or wanted & job.names]
        for job in found:
            job.abort()
        return len(found)

    def clear(self) -> None:
        """Forget everything, as a restart does."""
        self.is_paused = False
        self.running.clear()
        self.waiting.clear()
        self._drained.clear()

    def _fill(self) -> None:
        most = self._most_running
        while self.waiting and not self.is_paused and (most is None or len(self.running) < most):
            job = next(iter(self.waiting))
            del self.waiting[job]
            self.running[job] = None
            job.go()

    def _tell_drained(self, *, all_halted: bool = False) -> None:
        if self._drained and (all_halted or not self.running):
            told, self._drained = self._drained, []
            for done in told:
                done()
