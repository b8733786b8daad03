"""A Modal volume, as its SDK shows it. The only door to `modal` in serve's policies."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from serve.errors import ConfigError
from serve.policies.volume import SharedVolume, VolumeFailed

_RELOAD_TIMEOUT_S = 60.0
_COMMIT_TIMEOUT_S = 900.0
"""Gigabytes of weights may be on their way."""
_OPEN_FILES = "there are open files preventing the operation"


class ModalVolume(SharedVolume):
    """The volume `name`, mounted at `root`."""

    def __init__(self, name: str, root: Path, *, environment: str | None = None) -> None:
        """Raise ConfigError without the SDK; nothing is asked yet."""
        try:
            import modal  # noqa: PLC0415  # an extra, and half a second
        except ImportError:
            raise ConfigError(
                "volume: the SDK is missing: pip install 'palaestra[modal]'"
            ) from None
        self.root = root
        self._volume = modal.Volume.from_name(name, environment_name=environment)
        self._name = name

    def reload(self) -> None:
        """Reload it, which fails while one of its files is open in this container."""
        self._done(self._volume.reload, _RELOAD_TIMEOUT_S)

    def commit(self) -> None:
        """Commit it. The SDK reloads it afterwards, which our own lock on a folder may prevent."""
        try:
            self._done(self._volume.commit, _COMMIT_TIMEOUT_S)
        except VolumeFailed as error:
            # Only a reload minds open files: by then the commit is done.
            if _OPEN_FILES not in str(error):
                raise

    def _done(self, call: Callable[[], None], timeout_s: float) -> None:
        done: Future[None] = Future()

        def run() -> None:
            try:
                call()
            except Exception as error:  # noqa: BLE001  # it is raised where it is waited for
                done.set_exception(error)
            else:
                done.set_result(None)

        # A thread of its own: one that never comes back must hold nobody, at the end neither.
        threading.Thread(target=run, name=f"volume {self._name}", daemon=True).start()
        try:
            error = done.exception(timeout_s)
        except TimeoutError:
            error = TimeoutError(f"not done within {timeout_s:g} s")
        if error is not None:
            # Whatever the SDK raises, the gateway lives on with what it sees.
            words = f"volume {self._name}: {type(error).__name__}: {error}"
            raise VolumeFailed(words) from error
