"""The two places where the gateway itself asks Modal's SDK: a server's containers, and a volume."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loopback_modal import LoopbackModal

APPS = Path(__file__).parents[2] / "loopback_modal" / "apps"

SERVER = """
import asyncio, json, time
from serve.pool.discovery import DiscoveryFailed
from serve.pool.modal_server import ModalServer

async def main():
    server = ModalServer("echo", "Echo")
    said = {"url": await server.url(), "none": len(await server.containers())}
    await server.wake()
    deadline_s = time.monotonic() + 100
    while not (found := await server.containers()):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.2)
    said["woken"] = [[each.id, each.host, each.port] for each in found]
    await server.scale(2)
    while len(found := await server.containers()) < 2:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.2)
    said["scaled"] = len(found)
    await server.scale(0)
    try:
        await ModalServer("echo", "Nothing").url()
    except DiscoveryFailed as error:
        said["missing"] = str(error)
    print(json.dumps(said))

asyncio.run(main())
"""

VOLUME = """
import json
from pathlib import Path
from serve.policies.modal_volume import ModalVolume
from serve.policies.volume import VolumeFailed

said = {}
for name in ("echo-state", "nothing"):
    volume = ModalVolume(name, Path("."))
    for call in (volume.reload, volume.commit):
        try:
            call()
            said[f"{name} {call.__name__}"] = ""
        except VolumeFailed as error:
            said[f"{name} {call.__name__}"] = str(error)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def modal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackModal]:
    """A loopback on which the echo server is deployed, with nothing running."""
    root = tmp_path_factory.mktemp("loopback")
    with LoopbackModal(root, secrets={"echo-secret": {"ECHO_KEY": "sesame"}}) as modal:
        env = {"LOOPBACK_STATE": str(modal.root / "mnt" / "state")}
        done = modal.cli("deploy", str(APPS / "echo_server.py"), env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        yield modal


def said_by(modal: LoopbackModal, program: str) -> dict[str, Any]:
    done = modal.python("-c", program)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_server_is_found_woken_and_scaled(modal: LoopbackModal) -> None:
    said = said_by(modal, SERVER)
    assert said["url"] == modal.app("echo").servers["Echo"].url.rstrip("/")
    assert (said["none"], said["scaled"]) == (0, 2)
    ((_, host, port),) = said["woken"]
    assert host
    assert port > 0
    assert said["missing"].startswith("echo/Nothing: NotFoundError: ")


def test_a_volume_is_reloaded_and_committed(modal: LoopbackModal) -> None:
    said = said_by(modal, VOLUME)
    assert said["nothing reload"].startswith("volume nothing: NotFoundError: ")
    assert said["nothing commit"].startswith("volume nothing: NotFoundError: ")
    assert (said["echo-state reload"], said["echo-state commit"]) == ("", "")
