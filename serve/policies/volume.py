"""The port: storage that machines share, each with a view of its own.

What others wrote is seen after `reload`, what is written here is seen by others after `commit`.
"""

import contextlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from serve.errors import StateError

logger = logging.getLogger(__name__)

_TRIES = 3
_FIRST_WAIT_S = 0.25


class VolumeFailed(StateError):
    """A volume could not be reloaded, or committed; it is worth another try."""


class SharedVolume(ABC):
    """Storage that machines share. Its calls block."""

    root: Path
    """Where it is mounted."""

    @abstractmethod
    def reload(self) -> None:
        """Let what others have committed be seen here; raise VolumeFailed."""

    @abstractmethod
    def commit(self) -> None:
        """Let what was written here be seen by others; raise VolumeFailed."""


class Shared:
    """A volume whose failures are tried again; without one, all is a matter of this machine."""

    def __init__(
        self, volume: SharedVolume | None, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._volume = volume
        self._sleep = sleep
        self._turn = threading.Lock()
        """A volume cannot be reloaded while somebody here has one of its files open."""

    def holds(self, path: Path) -> bool:
        """Whether a path lies on the volume."""
        return self._volume is not None and path.is_relative_to(self._volume.root.resolve())

    def look(self) -> None:
        """See what others wrote, if that can be now: the next look comes soon."""
        if self._volume is None or not self._turn.acquire(blocking=False):
            return
        try:
            self._volume.reload()
        except VolumeFailed as error:
            logger.warning("the volume could not be reloaded now: %s", error)
        finally:
            self._turn.release()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only one here who writes, and have seen what others wrote; raise VolumeFailed."""
        if self._volume is None:
            yield
            return
        with self._turn:
            self._tried(self._volume.reload, "see what others wrote")
            yield

    def commit(self, what: str) -> None:
        """Let others see `what`; raise VolumeFailed."""
        if self._volume is not None:
            self._tried(self._volume.commit, f"commit {what}")

    def _tried(self, call: Callable[[], None], what: str) -> None:
        for attempt in range(_TRIES):
            try:
                call()
            except VolumeFailed as error:
                logger.warning("attempt %d to %s failed: %s", attempt + 1, what, error)
                if attempt == _TRIES - 1:
                    raise VolumeFailed(f"cannot {what}: {error}") from error
                self._sleep(_FIRST_WAIT_S * 2**attempt)
            else:
                return
