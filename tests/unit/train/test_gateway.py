"""A gateway of the run's own, with a fake in serve's place: start, death, again, stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.train import fakes
from tests.unit.train.fakes import DEADLINE_S, alive, answers, until
from train.config import TrainConfig, resolve
from train.errors import BadConfig, GatewayLost
from train.gateway import OwnGateway, serve_command
from train.remote import ensure_serves

FAKE = (*fakes.PYTHON, fakes.__file__, "gateway", "--port", "{port}")


def config(**overrides: Any) -> TrainConfig:
    tree = {"env": {"name": "key_door"}, "model": {"path": "models/m", "name": "m"}}
    return resolve(tree, {key.replace("__", "."): value for key, value in overrides.items()})


def made(tmp_path: Path, *command: str, **options: Any) -> OwnGateway:
    return OwnGateway(command or FAKE, log=tmp_path / "logs" / "g.log", env=os.environ, **options)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[OwnGateway]:
    gateway = made(tmp_path)
    yield gateway
    gateway.kill()


def test_the_command_line_is_one_that_serve_takes(tmp_path: Path) -> None:
    from serve.cli import _parser

    told = config(
        model__lora={"r": 24},
        gateway__replicas=2,
        gateway__max_model_len=300,
        gateway__engine_args=["--max-num-seqs", "9"],
    )
    argv = list(serve_command(told, tmp_path))
    assert argv[:3] == [sys.executable, "-m", "serve"]
    cut = argv.index("--")
    assert argv[cut + 1 :] == ["--max-lora-rank", "32", "--max-num-seqs", "9"]
    options = _parser().parse_args([word.replace("{port}", "0") for word in argv[3:cut]])
    assert (options.model, options.name, options.host, options.port) == (
        *("models/m", "m", "127.0.0.1"),
        0,
    )
    assert (options.state, options.replicas, options.max_model_len, options.lora) == (
        *(str(tmp_path), 2, 300),
        True,
    )


@pytest.mark.parametrize(
    ("overrides", "lora"),
    [
        ({}, False),
        ({"model__lora": {}}, True),
        ({"model__lora": {}, "publish__channel": "full"}, False),
    ],
)
def test_adapters_are_served_only_where_they_are_published(
    tmp_path: Path, overrides: dict[str, Any], lora: bool
) -> None:
    argv = serve_command(config(**overrides), tmp_path)
    assert ("--lora" in argv) is lora
    assert "--" not in argv


def test_it_says_how_its_start_goes_and_where_it_is(gateway: OwnGateway) -> None:
    said: list[str] = []
    gateway.start()
    assert gateway.wait_ready(DEADLINE_S, said.append)
    assert said == ["gateway starting: 1 s"]
    assert answers(gateway.url)
    assert gateway.poll(said.append) is None
    pid = gateway.pid
    gateway.stop()
    assert pid is not None
    assert not alive(pid)
    assert gateway.pid is None


def test_it_keeps_its_port_and_its_log_when_it_is_started_again(
    gateway: OwnGateway, tmp_path: Path
) -> None:
    gateway.start()
    gateway.wait_ready(DEADLINE_S, print)
    url, pid = gateway.url, gateway.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: gateway.poll(print)) == -signal.SIGKILL
    gateway.start()
    assert not gateway.is_ready
    assert gateway.wait_ready(DEADLINE_S, print)
    assert (gateway.url, gateway.starts) == (url, 2)
    assert gateway.pid != pid
    assert (tmp_path / "logs" / "g.log").read_text().count("base URL") == 2


def test_a_death_before_it_is_ready_shows_the_log(tmp_path: Path) -> None:
    gateway = made(tmp_path, sys.executable, "-c", "print('out of memory'); exit(3)")
    gateway.start()
    with pytest.raises(GatewayLost, match=r"(?s)by itself \(exit code 3\).*out of memory"):
        gateway.wait_ready(DEADLINE_S, print)


def test_what_serve_refuses_is_a_usage_error(tmp_path: Path) -> None:
    gateway = made(tmp_path, sys.executable, "-c", "print('error: no such port'); exit(2)")
    gateway.start()
    with pytest.raises(BadConfig, match="the gateway refuses: no such port"):
        gateway.wait_ready(DEADLINE_S, print)


def test_real_serve_refuses_a_folder_that_is_none(tmp_path: Path) -> None:
    told = config(model__path=str(tmp_path / "nope"))
    gateway = made(tmp_path, *serve_command(told, tmp_path / "state"))
    gateway.start()
    with pytest.raises(BadConfig, match=r"the gateway refuses: no model '.*nope'"):
        gateway.wait_ready(DEADLINE_S, print)


def test_a_start_that_takes_too_long(tmp_path: Path) -> None:
    gateway = made(tmp_path, sys.executable, "-c", "import time; time.sleep(60)")
    gateway.start()
    try:
        with pytest.raises(GatewayLost, match="not ready within 0 s"):
            gateway.wait_ready(0.2, print)
    finally:
        gateway.kill()


def test_waiting_ends_when_it_is_no_longer_wanted(tmp_path: Path) -> None:
    gateway = made(tmp_path, sys.executable, "-c", "import time; time.sleep(60)")
    gateway.start()
    try:
        assert not gateway.wait_ready(DEADLINE_S, print, lambda: True)
    finally:
        gateway.kill()


DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def test_one_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    gateway = made(tmp_path, *fakes.PYTHON, "-c", DEAF, grace_s=0.2)
    gateway.start()
    gateway.wait_ready(DEADLINE_S, print)
    pid = gateway.pid
    assert pid is not None
    began_s = time.monotonic()
    gateway.stop()
    assert not alive(pid)
    assert 0.2 <= time.monotonic() - began_s < 5


def test_the_real_gateway_is_understood_and_comes_back(tmp_path: Path) -> None:
    """Over a fake engine, which takes no time to start."""
    engine = [sys.executable, "-m", "serve.testing", "--model", "m"]
    with subprocess.Popen(engine, stdout=subprocess.PIPE, text=True) as upstream:
        assert upstream.stdout is not None
        up = ("up", "--upstream", upstream.stdout.readline().strip(), "--port", "{port}")
        state = ("--state", str(tmp_path / "state"))
        gateway = made(tmp_path, sys.executable, "-m", "serve", *up, *state)
        try:
            gateway.start()
            gateway.wait_ready(DEADLINE_S, print)
            url, pid = gateway.url, gateway.pid
            ensure_serves(config(gateway__url=url), None)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            until(lambda: gateway.poll(print))
            gateway.start()
            gateway.wait_ready(DEADLINE_S, print)
            assert gateway.url == url
            ensure_serves(config(gateway__url=url), None)
            gateway.stop()
            assert (tmp_path / "logs" / "g.log").read_text().endswith("stopped\n")
        finally:
            gateway.kill()
            upstream.terminate()


PARENT = """
import os, signal, sys, time
from pathlib import Path
from train.gateway import OwnGateway
gateway = OwnGateway(sys.argv[2:], log=Path(sys.argv[1]), env=os.environ)
gateway.start()
gateway.wait_ready(10, lambda line: None)
print(gateway.pid, flush=True)
time.sleep(60)
"""


def test_it_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", PARENT, str(tmp_path / "g.log"), *FAKE]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    until(lambda: not alive(pid), 2.0)
