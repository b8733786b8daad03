"""The gateway as a process: started, used with keys, killed, restarted, told to stop."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from serve.accounts.store import AccountStore
from serve.client import AdminClient
from serve.engine.launch import free_port

BODY = {"model": "fake", "messages": [{"role": "user", "content": "Go."}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    url: str
    process: subprocess.Popen[str]

    def ask(self, key: str = "none", path: str = "/v1/chat/completions", **body: object) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(self.url + path, json=BODY | body, headers=headers).status_code


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A process of ours that prints; signals reach it whatever we ignore ourselves."""
    command = ["env", "--default-signal=INT,TERM,HUP", sys.executable, "-m", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def fake(*words: str) -> Iterator[str]:
    """A FakeEngine's root URL."""
    with running("serve.testing", *words) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip().removesuffix("/v1")


@contextmanager
def gateway(state: Path, *upstreams: str, port: int = 0) -> Iterator[Gateway]:
    words = [word for url in upstreams for word in ("--upstream", url)]
    with running("serve", "up", *words, "--port", str(port), "--state", str(state)) as process:
        assert process.stdout is not None
        url = ""
        for line in process.stdout:
            if line.startswith("base URL"):
                url = line.split()[-1].removesuffix("/v1")
            if line.startswith("ready"):
                break
        yield Gateway(url=url, process=process)


def serve(*words: str) -> str:
    command = [sys.executable, "-m", "serve", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_killed_and_restarted_it_knows_keys_usage_and_policies(tmp_path: Path) -> None:
    with fake() as engine:
        with gateway(tmp_path, engine) as first:
            key = serve("keys", "create", "--state", str(tmp_path), "--scope", "infer,admin")
            until(lambda: first.ask() == 401)  # it has seen that there is a key now
            assert [first.ask(key) for _ in range(5)] == [200] * 5
            until(lambda: requests_in_the_ledger(tmp_path, key) == 5)
            os.kill(first.process.pid, signal.SIGKILL)
            first.process.wait()
        with gateway(tmp_path, engine) as second:
            assert second.ask() == 401
            assert second.ask(key) == 200
            until(lambda: requests_in_the_ledger(tmp_path, key) == 6)
            with AdminClient(second.url, api_key=key) as admin:
                (policy,) = admin.policies()
            assert (policy.name, policy.latest) == ("fake", 1)


def test_a_revoked_key_is_refused_within_a_second(tmp_path: Path) -> None:
    with fake() as engine, gateway(tmp_path, engine) as up:
        key = serve("keys", "create", "--state", str(tmp_path))
        until(lambda: up.ask(key) == 200)
        serve("keys", "revoke", key, "--state", str(tmp_path))
        revoked = time.monotonic()
        until(lambda: up.ask(key) == 401)
        assert time.monotonic() - revoked < 1.0


def test_scopes_and_limits_hold(tmp_path: Path) -> None:
    state = str(tmp_path)
    infer = serve("keys", "create", "--state", state, "--rpm", "3")
    train = serve("keys", "create", "--state", state, "--scope", "train")
    with fake() as engine, gateway(tmp_path, engine) as up:
        generate = "/inference/v1/generate"
        assert up.ask(infer, generate) == 403
        assert up.ask(train, generate) != 403
        assert [up.ask(infer) for _ in range(4)] == [200, 200, 200, 429]
        assert up.ask(train) == 200
        headers = {"Authorization": f"Bearer {infer}"}
        assert httpx.get(f"{up.url}/admin/pool", headers=headers).status_code == 403
        assert httpx.get(f"{up.url}/admin/pool").status_code == 401


def test_told_to_stop_it_finishes_what_it_has(tmp_path: Path) -> None:
    with fake("--delay-ms", "1000") as engine, gateway(tmp_path, engine) as up:
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(up.ask) for _ in range(8)]
            time.sleep(0.5)  # they are in flight now: the engine takes a second
            up.process.terminate()
            assert [answer.result() for answer in asked] == [200] * 8
        assert up.process.wait(10) == 0
        with pytest.raises(httpx.ConnectError):
            up.ask()


def test_beyond_loopback_it_wants_a_key(tmp_path: Path) -> None:
    words = ["--upstream", "http://127.0.0.1:1", "--host", "0.0.0.0", "--port", "0"]
    command = [sys.executable, "-m", "serve", "up", *words, "--state", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: refusing to listen on 0.0.0.0 without a key")


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with fake() as engine:
        port = engine.rpartition(":")[2]
        command = [sys.executable, "-m", "serve", "up", "--upstream", engine, "--port", port]
        ran = subprocess.run([*command, "--state", str(tmp_path)], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr.startswith(f"error: port {port}")) == (2, True)


def test_an_engine_that_comes_later_answers_what_was_held(tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    later = f"http://127.0.0.1:{port}"
    with (
        running("serve", "up", "--upstream", later, "--port", "0", "--state", str(tmp_path)) as up,
        concurrent.futures.ThreadPoolExecutor(4) as threads,
    ):
        assert up.stdout is not None
        url = up.stdout.readline().split()[2].removesuffix("/v1;")
        waiting = Gateway(url=url, process=up)
        asked = [threads.submit(waiting.ask) for _ in range(4)]
        time.sleep(0.3)  # long enough for them to be held
        assert not any(answer.done() for answer in asked)
        with fake("--port", str(port)):
            assert [answer.result() for answer in asked] == [200] * 4


def requests_in_the_ledger(state: Path, key: str) -> int:
    store = AccountStore.open(state)
    try:
        return sum(row.requests for row in store.usage() if key.startswith(row.key_id))
    finally:
        store.close()


def until(holds: object, timeout_s: float = 5.0) -> None:
    assert callable(holds)
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
