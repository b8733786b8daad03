"""One loopback for each test file, and the words that find its apps."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loopback_modal import LoopbackModal

APPS = Path(__file__).parents[2] / "loopback_modal" / "apps"


@pytest.fixture(scope="module")
def modal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackModal]:
    """A loopback whose containers live as long as the file's tests."""
    root = tmp_path_factory.mktemp("loopback")
    with LoopbackModal(root, secrets={"echo-secret": {"ECHO_KEY": "sesame"}}) as modal:
        yield modal


@pytest.fixture(scope="module")
def state(modal: LoopbackModal) -> dict[str, str]:
    """The environment that tells apps where to mount their volume."""
    return {"LOOPBACK_STATE": str(modal.root / "mnt" / "state")}


@pytest.fixture(scope="session")
def apps() -> Path:
    """The folder of the apps to deploy."""
    return APPS
