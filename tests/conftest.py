"""Fixtures for the whole test session: one real vLLM, started by the first test that asks."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.config import EngineConfig
from serve.engine.command import Command, detect, vllm_command
from serve.engine.launch import LaunchedEngine, free_port
from serve.models import pull

VLLM_MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def pulled_model() -> Path:
    """The folder of a real checkpoint, made on the first use on this machine."""
    return pull(VLLM_MODEL, lambda step: print(step, file=sys.stderr))


@pytest.fixture(scope="session")
def vllm_engine(
    pulled_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LaunchedEngine]:
    """Real vLLM serving the pulled checkpoint, for the whole session."""
    config = EngineConfig(
        checkpoint=pulled_model, model=VLLM_MODEL, port=free_port("127.0.0.1"), max_model_len=4096
    )
    engine = LaunchedEngine(
        vllm_command(config, detect()),
        model=VLLM_MODEL,
        port=config.port,
        log=tmp_path_factory.mktemp("vllm") / "vllm.log",
    )
    with asyncio.Runner() as runner:
        yield from _running(runner, engine)


@pytest.fixture(scope="session")
def vllm_url(vllm_engine: LaunchedEngine) -> str:
    """OpenAI base URL of the session's vLLM, `http://HOST:PORT/v1`."""
    return vllm_engine.base_url


@pytest.fixture(scope="session")
def fake_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchedEngine]:
    """A FakeEngine in a process of its own, for the whole session."""
    port = free_port("127.0.0.1")
    replies = [f"--reply=<action>move {way}</action> for reason {way}" for way in ("up", "down")]
    argv = [sys.executable, "-m", "serve.testing", "--port", str(port), "--max-model-len", "4096"]
    engine = LaunchedEngine(
        Command(argv=(*argv, *replies)),
        model="fake",
        port=port,
        log=tmp_path_factory.mktemp("fake") / "fake.log",
    )
    with asyncio.Runner() as runner:
        yield from _running(runner, engine)


@pytest.fixture(scope="session")
def fake_gateway(
    fake_engine: LaunchedEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LaunchedEngine]:
    """A gateway in front of the session's FakeEngine."""
    yield from _behind_a_gateway(fake_engine, tmp_path_factory.mktemp("fake-gateway"))


@pytest.fixture(scope="session")
def vllm_gateway(
    vllm_engine: LaunchedEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LaunchedEngine]:
    """A gateway in front of the session's vLLM."""
    yield from _behind_a_gateway(vllm_engine, tmp_path_factory.mktemp("vllm-gateway"))


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """The shipped policy that plays key_door now and then."""
    return Path(__file__).parent.parent / "train/tiny/shipped/key_door_before"


@pytest.fixture(scope="session")
def tiny_gateway(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LaunchedEngine]:
    """A gateway with an engine of its own that serves the tiny policy, whose weights may change."""
    folder, port = tmp_path_factory.mktemp("tiny"), free_port("127.0.0.1")
    argv = [sys.executable, "-m", "serve", "up", "--model", str(tiny_checkpoint), "--name", "tiny"]
    argv += ["--port", str(port), "--state", str(folder)]
    gateway = LaunchedEngine(
        Command(argv=tuple(argv)), model="tiny", port=port, log=folder / "gateway.log"
    )
    with asyncio.Runner() as runner:
        yield from _running(runner, gateway)


def _behind_a_gateway(engine: LaunchedEngine, folder: Path) -> Iterator[LaunchedEngine]:
    port = free_port("127.0.0.1")
    argv = [sys.executable, "-m", "serve", "up", "--upstream", engine.root_url]
    argv += ["--port", str(port), "--state", str(folder)]
    gateway = LaunchedEngine(
        Command(argv=tuple(argv)), model=engine.model, port=port, log=folder / "gateway.log"
    )
    with asyncio.Runner() as runner:
        yield from _running(runner, gateway)


def _running(runner: asyncio.Runner, engine: LaunchedEngine) -> Iterator[LaunchedEngine]:
    runner.run(engine.start())
    try:
        runner.run(engine.wait_ready(timeout_s=300))
        yield engine
    finally:
        runner.run(engine.stop())
