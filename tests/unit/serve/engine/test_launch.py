"""The launcher with a fake engine's process in vLLM's place: start, stop, death, leftovers."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from serve.engine.command import Command
from serve.engine.launch import LaunchedEngine, ensure_free, free_port, reachable, tail
from serve.errors import ConfigError, EngineDied, EngineNotReady, PortInUse

HERE = Path(__file__).parent
DEADLINE_S = 20.0


def engine_of(
    tmp_path: Path, *argv: str, port: int | None = None, model: str = "fake", **options: float
) -> LaunchedEngine:
    port = port or free_port("127.0.0.1")
    command = Command(argv=(sys.executable, *(arg.format(port=port) for arg in argv)))
    return LaunchedEngine(command, model=model, port=port, log=tmp_path / "log", **options)  # type: ignore[arg-type]


def until(holds: Callable[[], bool]) -> None:
    """Poll another process's doing, for which there is nothing to wait on."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def pids_in(path: Path) -> list[int]:
    until(path.exists)
    return [int(pid) for pid in path.read_text().split()]


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A launcher whose stubborn engine is ready; its engine's pids are in tmp_path/pids."""
    port = free_port("127.0.0.1")
    argv = [sys.executable, str(HERE / "launcher.py"), str(tmp_path / "pids"), str(port)]
    with subprocess.Popen(
        [*argv, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        if process.poll() is None:
            process.kill()


def test_serves_between_entering_and_leaving(tmp_path: Path) -> None:
    async def run() -> tuple[int, bool]:
        async with engine_of(tmp_path, "-m", "serve.testing", "--port", "{port}") as engine:
            await engine.wait_ready(DEADLINE_S)
            async with httpx.AsyncClient() as client:
                status = (await client.get(f"{engine.base_url}/models")).status_code
            died = engine.died.done()
        ensure_free("127.0.0.1", int(engine.root_url.rpartition(":")[2]))
        return status, died or engine.died.done()

    assert asyncio.run(run()) == (200, False)
    assert (tmp_path / "log").read_text().startswith("http://127.0.0.1:")


def test_key_goes_with_every_probe(tmp_path: Path) -> None:
    async def run() -> None:
        port = free_port("127.0.0.1")
        argv = (sys.executable, "-m", "serve.testing", "--port", str(port))
        async with LaunchedEngine(
            Command(argv=argv, env={"VLLM_API_KEY": "secret"}),
            model="fake",
            port=port,
            log=tmp_path / "log",
            api_key="secret",
        ) as engine:
            await engine.wait_ready(DEADLINE_S)

    asyncio.run(run())


def test_stop_is_harmless_the_second_time(tmp_path: Path) -> None:
    async def run() -> None:
        engine = engine_of(tmp_path, "-m", "serve.testing", "--port", "{port}")
        await engine.stop()
        await engine.start()
        await engine.stop()
        await engine.stop()

    asyncio.run(run())


def test_waits_while_health_is_not_200(tmp_path: Path) -> None:
    async def run() -> None:
        fault = "cold_requests=2"
        argv = ("-m", "serve.testing", "--port", "{port}", "--fault", fault)
        async with engine_of(tmp_path, *argv) as engine:
            await engine.wait_ready(DEADLINE_S)
            async with httpx.AsyncClient() as client:
                stats = (await client.get(f"{engine.root_url}/stats")).json()
        assert stats["statuses"] == {"200": 1, "503": 2}

    asyncio.run(run())


def test_not_ready_while_the_model_is_another(tmp_path: Path) -> None:
    async def run() -> None:
        argv = ("-m", "serve.testing", "--port", "{port}")
        async with engine_of(tmp_path, *argv, model="other") as engine:
            await engine.wait_ready(1.5)

    with pytest.raises(EngineNotReady, match=r"other did not answer at http.* within 2 s"):
        asyncio.run(run())


def test_death_before_ready_carries_the_tail(tmp_path: Path) -> None:
    async def run() -> None:
        script = "import sys; print('line one'); print('no such device'); sys.exit(3)"
        async with engine_of(tmp_path, "-c", script) as engine:
            await engine.wait_ready(DEADLINE_S)

    with pytest.raises(EngineDied) as caught:
        asyncio.run(run())
    assert str(caught.value) == (
        f"the engine of fake ended by itself (exit code 3); the end of {tmp_path / 'log'}:\n"
        "  line one\n  no such device"
    )


def test_death_while_serving_is_told(tmp_path: Path) -> None:
    async def run() -> EngineDied:
        argv = (str(HERE / "stubborn.py"), str(tmp_path / "pids"), "{port}")
        async with engine_of(tmp_path, *argv) as engine:
            await engine.wait_ready(DEADLINE_S)
            os.kill(pids_in(tmp_path / "pids")[0], signal.SIGKILL)
            return await asyncio.wait_for(engine.died, DEADLINE_S)

    assert "ended by itself (killed by signal 9)" in str(asyncio.run(run()))
    assert not any(map(alive, pids_in(tmp_path / "pids")))


def test_an_engine_deaf_to_sigterm_is_killed_with_all_it_started(tmp_path: Path) -> None:
    async def run() -> None:
        argv = (str(HERE / "stubborn.py"), str(tmp_path / "pids"), "{port}", "deaf")
        async with engine_of(tmp_path, *argv, grace_s=0.2):
            await asyncio.to_thread(pids_in, tmp_path / "pids")

    asyncio.run(run())
    assert not any(map(alive, pids_in(tmp_path / "pids")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_it_cleanly(
    launcher: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    pids = pids_in(tmp_path / "pids")
    assert all(map(alive, pids))
    launcher.send_signal(number)
    assert launcher.wait(DEADLINE_S) == 0
    assert not any(map(alive, pids))


def test_kill_9_of_the_launcher_leaves_nothing(
    launcher: subprocess.Popen[str], tmp_path: Path
) -> None:
    pids = pids_in(tmp_path / "pids")
    keepers = [parent_of(pids[0])]
    launcher.kill()
    until(lambda: not any(map(alive, [*pids, *keepers])))


def test_kill_9_of_the_keeper_is_a_death_and_ends_the_engine(
    launcher: subprocess.Popen[str], tmp_path: Path
) -> None:
    engine = pids_in(tmp_path / "pids")[0]
    os.kill(parent_of(engine), signal.SIGKILL)
    assert launcher.wait(DEADLINE_S) == 1
    assert launcher.stdout is not None
    assert "its keeper was killed by signal 9" in launcher.stdout.read()
    until(lambda: not alive(engine))
    for pid in pids_in(tmp_path / "pids")[1:]:
        os.kill(pid, signal.SIGKILL)


def test_death_of_the_engine_ends_the_launcher(
    launcher: subprocess.Popen[str], tmp_path: Path
) -> None:
    pids = pids_in(tmp_path / "pids")
    os.kill(pids[0], signal.SIGKILL)
    assert launcher.wait(DEADLINE_S) == 1
    assert not any(map(alive, pids))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        engine = engine_of(tmp_path, "-c", "", port=port)
        with pytest.raises(PortInUse, match=f"port {port} of 127.0.0.1 is taken"):
            asyncio.run(engine.start())
    assert not (tmp_path / "log").exists()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.77:"):
        ensure_free("192.0.2.77", 0)


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(ConfigError, match="cannot write the log"):
        asyncio.run(engine_of(tmp_path, "-c", "").start())


@pytest.mark.parametrize(
    ("host", "named"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")],
)
def test_hosts_in_urls(host: str, named: str) -> None:
    assert reachable(host) == named


def test_tail(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == "  (no log: No such file or directory)"
    log.write_bytes(b"")
    assert tail(log) == "  (nothing)"
    log.write_bytes(b"a\nb\xff\nINFO x\n" + b"c" * 300)
    assert tail(log, noise="^INFO", lines=2) == "  b\ufffd\n  " + "c" * 200
