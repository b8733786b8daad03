"""B. Engines in processes of their own, killed as the kernel kills: nobody's request is lost."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import orjson
import pytest

from tests.faults.backend import Backend
from tests.faults.conftest import Worlds
from tests.faults.wire import chat, eventually
from tests.faults.world import World


@contextmanager
def engine(*options: str, port: int = 0) -> Iterator[tuple[int, int]]:
    """A FakeEngine in a process; yields its port and its pid."""
    command = [sys.executable, "-m", "serve.testing", "--model", "m", "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield int(line.rpartition(":")[2].partition("/")[0]), process.pid
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def behind(worlds: Worlds, ports: list[int]) -> World:
    """A gateway in front of these ports instead of the suite's own backends."""
    world = worlds(*(Backend() for _ in ports), probe_s=0.05, probe_timeout_s=0.7)
    for replica, port in zip(world.pool.replicas, ports, strict=True):
        replica.port = port
        replica.host_line = b"host: 127.0.0.1:%d\r\n" % port
    return world


def answered(port: int) -> dict[str, int]:
    """How many good answers a FakeEngine gave to each X-Request-ID."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/requests") as answer:
        found: dict[str, int] = orjson.loads(answer.read())
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_case_17_one_of_two_replicas_is_lost_under_32_connections(
    worlds: Worlds, number: signal.Signals
) -> None:
    """0 of 1,500 requests fail, by SIGKILL or by a process that just stops."""
    with engine("--delay-ms", "5") as (first, pid), engine("--delay-ms", "5") as (second, _):
        world = behind(worlds, [first, second])
        done: list[tuple[str, int, bytes]] = []
        lock = threading.Lock()

        def load(worker: int) -> None:
            with world.client() as client:
                for turn in range(47):
                    name = f"{worker}-{turn}"
                    answer = client.ask(
                        chat(name, max_tokens=3), headers=b"X-Request-ID: %b\r\n" % name.encode()
                    )
                    with lock:
                        done.append((name, answer.status, answer.headers(b"x-replica")[0]))

        threads = [threading.Thread(target=load, args=(worker,)) for worker in range(32)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(done) > 300, "it runs", within_s=20)
        os.kill(pid, number)
        lost_at = len(done)
        for thread in threads:
            thread.join(30)
        assert len(done) == 32 * 47 == 1504
        assert {status for _, status, _ in done} == {200}
        after = [replica for _, _, replica in done[lost_at + 64 :]]
        print(f"{number.name}: 0 of {len(done)} failed, {world.gateway.meters.retries} retried")
        assert set(after[len(after) // 2 :]) == {b"r1"}
        assert world.gateway.meters.retries > 0
        counts = answered(second)
        assert all(counts[name] == 1 for name, _, replica in done if replica == b"r1")
        assert not world.pool.replicas[0].is_ready


def test_case_18_a_restarted_engine_is_back_within_a_second(worlds: Worlds) -> None:
    with engine() as (port, pid):
        world = behind(worlds, [port])
        with world.client() as client:
            assert client.ask().status == 200
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: not world.replica.is_ready, "it is down", within_s=5)
            with engine(port=port):
                start = time.perf_counter()
                assert client.ask().status == 200
                took_s = time.perf_counter() - start
    print(f"usable {took_s:.3f} s after it listens")
    assert took_s < 1
