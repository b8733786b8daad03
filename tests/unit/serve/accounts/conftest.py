import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from serve.accounts.store import AccountStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AccountStore]:
    opened = AccountStore.open(tmp_path / "state")
    yield opened
    opened.close()


@pytest.fixture
def argon2_threads() -> Iterator[list[str]]:
    """The name of the thread, for each time that Argon2 checks a secret."""
    names: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "verify" and "argon2" in str(frame.f_code):
            names.append(threading.current_thread().name)

    threading.setprofile(note)
    sys.setprofile(note)
    yield names
    sys.setprofile(None)
    threading.setprofile(None)
