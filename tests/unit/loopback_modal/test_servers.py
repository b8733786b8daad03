"""Modal Servers on the loopback: deployed, woken, scaled, pinned, drained, refused."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.loopback_modal import LoopbackModal, ServerView

WAIT_S = 120.0


@pytest.fixture(scope="module")
def echo(modal: LoopbackModal, apps: Path, state: dict[str, str]) -> ServerView:
    """The echo server, deployed by the real CLI."""
    done = modal.cli("deploy", str(apps / "echo_server.py"), env={**state, "ECHO_WINDOW": "2"})
    assert done.returncode == 0, done.stdout + done.stderr
    return modal.app("echo").servers["Echo"]


@pytest.fixture(scope="module")
def ready(modal: LoopbackModal, echo: ServerView) -> str:
    """The server's URL, with at least one container that takes requests from now on."""
    program = (
        "import modal; modal.Server.from_name('echo', 'Echo').autoscaler.update("
        "min_containers=1, scaledown_window=60)"
    )
    done = modal.python("-c", program)
    assert done.returncode == 0, done.stderr
    modal.wait_ready("echo", "Echo", timeout_s=WAIT_S)
    return echo.url


def test_what_was_deployed_is_seen(echo: ServerView, state: dict[str, str]) -> None:
    assert echo.gpus == ["H100", "A100-80GB:2"]
    assert (echo.min_containers, echo.max_containers, echo.scaledown_window) == (0, 2, 2)
    assert (echo.target_concurrency, echo.max_concurrency, echo.port) == (1.0, 2, 8000)
    assert (echo.cpu, echo.memory_mib, echo.startup_timeout_s) == (0.5, 512, 60)
    assert (echo.exit_grace_period_s, echo.unauthenticated, echo.snapshot) == (5, True, True)
    assert echo.secrets == ["echo-secret"]
    assert echo.required_keys == {"echo-secret": ["ECHO_KEY"]}
    volume = echo.volumes[state["LOOPBACK_STATE"]]
    assert (volume.name, volume.read_only, volume.version) == ("echo-state", True, 2)
    assert echo.env["GREETING"] == "hello there"
    assert any("numpy==2.0.0" in line for line in echo.image)
    assert [Path(path).name for path in echo.mounts] == ["echo_server.py"]


def test_no_container_is_503_at_once_and_wakes_one(modal: LoopbackModal, echo: ServerView) -> None:
    modal.wait_for(lambda: not modal.containers("echo"), timeout_s=WAIT_S)
    (modal.volume("echo-state") / "file").write_text("there")
    assert httpx.get(echo.url).status_code == 503
    (container,) = modal.wait_ready("echo", "Echo", timeout_s=WAIT_S)
    facts = httpx.get(f"{echo.url}/where?x=1").json()
    assert facts == {
        "container": container.id,
        "path": "/where?x=1",
        "key": "sesame",
        "greeting": "hello there",
        "volume": ["file"],
    }
    assert modal.log(container=container).split().index("loaded") == 0
    assert len(modal.called("ContainerCheckpoint", container=container.id)) == 1
    modal.wait_for(lambda: not modal.containers("echo"), timeout_s=WAIT_S)
    assert "stopped" in modal.log(container=container)


def test_a_stream_is_passed_on_as_it_comes(ready: str) -> None:
    with httpx.stream("GET", f"{ready}/stream") as answer:
        arrivals = [time.monotonic() for _ in answer.iter_raw()]
    assert len(arrivals) == 3
    assert arrivals[-1] - arrivals[0] > 0.3


def test_a_client_that_leaves_ends_the_request(modal: LoopbackModal, ready: str) -> None:
    with httpx.stream("GET", f"{ready}/endless") as answer:
        assert next(answer.iter_raw())
    modal.wait_for(lambda: "the client has left" in modal.log(app="echo"), timeout_s=WAIT_S)
    modal.wait_for(lambda: not any(one.in_flight for one in modal.containers("echo")))


def test_requests_scale_up_to_the_target_and_429_beyond_the_most(
    modal: LoopbackModal, ready: str
) -> None:
    with ThreadPoolExecutor(8) as threads:
        slow = [threads.submit(httpx.get, f"{ready}/slow?1", timeout=60) for _ in range(3)]
        modal.wait_for(lambda: sum(one.in_flight for one in modal.containers("echo")) == 2)
        assert {one.result().status_code for one in slow} == {200, 429}
        modal.wait_ready("echo", "Echo", count=2, timeout_s=WAIT_S)
        seen = [threads.submit(httpx.get, f"{ready}/slow?0.5", timeout=60) for _ in range(2)]
        assert len({one.result().json()["container"] for one in seen}) == 2


def test_a_request_is_pinned_to_the_container_it_names(modal: LoopbackModal, ready: str) -> None:
    (container, *_) = modal.wait_ready("echo", "Echo")
    pin = {"modal-flash-upstream": f"127.0.0.1:{container.port}"}
    assert httpx.get(ready, headers=pin).json()["container"] == container.id
    lost = {"modal-flash-upstream": "127.0.0.1:1"}
    assert httpx.get(ready, headers=lost).status_code == 503


def test_a_drained_container_finishes_its_request(modal: LoopbackModal, ready: str) -> None:
    (container, *_) = modal.wait_ready("echo", "Echo")
    answers: list[int] = []
    pin = {"modal-flash-upstream": f"127.0.0.1:{container.port}"}

    def ask() -> None:
        answers.append(httpx.get(f"{ready}/slow?1", headers=pin, timeout=60).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    modal.wait_for(lambda: any(one.in_flight for one in modal.containers("echo")))
    assert modal.cli("container", "stop", container.id, "-y").returncode == 0
    assert httpx.get(ready, headers=pin).status_code == 503
    asking.join()
    assert answers == [200]
    modal.wait_for(lambda: "stopped" in modal.log(container=container), timeout_s=WAIT_S)


def test_a_killed_container_is_replaced(modal: LoopbackModal, ready: str) -> None:
    (container, *_) = modal.wait_ready("echo", "Echo", timeout_s=WAIT_S)
    modal.kill(container)
    modal.wait_for(lambda: container.id not in {one.id for one in modal.containers("echo")})
    (other, *_) = modal.wait_ready("echo", "Echo", timeout_s=WAIT_S)
    assert httpx.get(ready).json()["container"] == other.id


def test_a_deployment_rolls_over_without_a_gap(
    modal: LoopbackModal, ready: str, apps: Path, state: dict[str, str]
) -> None:
    old = {one.id for one in modal.containers("echo")}
    statuses: list[int] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while not over.wait(0.05):
                statuses.append(client.get(ready).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    assert modal.cli("deploy", str(apps / "echo_server.py"), env=state).returncode == 0
    modal.wait_for(lambda: not old & {one.id for one in modal.containers("echo")}, timeout_s=WAIT_S)
    over.set()
    asking.join()
    assert modal.app("echo").servers["Echo"].url == ready
    assert set(statuses) == {200}


def test_the_sdk_sees_what_runs(modal: LoopbackModal, ready: str) -> None:
    program = """
import json, modal
server = modal.Server.from_name("echo", "Echo")
containers = server._experimental_list_containers()
settings = server.autoscaler.settings()
info = server.info()
print(json.dumps({
    "url": server.get_url(),
    "containers": [[one.container_id, one.host, one.port] for one in containers],
    "min": settings.min_containers,
    "target": settings.target_concurrency,
    "gpus": info.gpus,
    "requests": server.stats().request_count,
}))
"""
    running = modal.wait_ready("echo", "Echo", timeout_s=WAIT_S)
    done = modal.python("-c", program)
    seen = json.loads(done.stdout or done.stderr)
    requests = seen.pop("requests")
    assert requests > 0
    assert seen == {
        "url": ready,
        "containers": [[one.id, "127.0.0.1", one.port] for one in running],
        "min": 0,
        "target": 1.0,
        "gpus": [["H100", 1], ["A100-80GB", 2]],
    }


def test_a_proxy_token_opens_and_a_failed_start_says_why(modal: LoopbackModal, apps: Path) -> None:
    done = modal.cli("deploy", str(apps / "locked_server.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    url = modal.app("locked").servers["Locked"].url
    modal.wait_ready("locked", "Locked", timeout_s=WAIT_S)
    key, _, secret = modal.proxy_key.partition(".")
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"Authorization": "Bearer wk-a.ws-b"}).status_code == 401
    bearer = {"Authorization": f"Bearer {modal.proxy_key}"}
    assert httpx.get(url, headers=bearer).status_code == 501  # the handler has no GET
    pair = {"Modal-Key": key, "Modal-Secret": secret}
    assert httpx.get(url, headers=pair).status_code == 501
    (failure, *_) = modal.wait_for(
        lambda: modal.server_failures("locked", "Broken"), timeout_s=WAIT_S
    )
    assert failure == "FileNotFoundError('expected a checkpoint, found none')"
    assert modal.cli("app", "stop", "locked", "-y").returncode == 0
    modal.wait_for(lambda: not modal.containers("locked"), timeout_s=WAIT_S)
    assert modal.app("locked").state == "stopped"
