"""What runs in a container, without Modal: `serve up` with a FakeEngine, between enter and exit."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import httpx
import pytest

from serve.deploy.config import ServingConfig, load
from serve.deploy.container import GatewayContainer, PolicyContainer
from serve.deploy.prefetch import prefetch
from serve.errors import ContainerFailed, PullFailed, StateError, UnknownModel
from tests.unit.serve.deploy.configs import SHIPPED

CHECKPOINT = Path("train/tiny/shipped/key_door_before").resolve()
FAKE = "python -m serve.testing --host {host} --port {port} --model {model} --root {checkpoint}"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServingConfig:
    monkeypatch.setenv("PALAESTRA_PORT", "0")
    return configured(tmp_path)


def configured(tmp_path: Path, *sets: str) -> ServingConfig:
    own = [
        f"model={CHECKPOINT}",
        "name=tiny",
        f"deploy.volumes.root={tmp_path / 'volumes'}",
        f"engine.program={json.dumps([*FAKE.split(), '--dev-mode'])}",
    ]
    return load(SHIPPED / "modal_cpu.yaml", sets=[*own, *sets], environ={})


def uploaded(config: ServingConfig) -> None:
    folder = Path(str(config.deploy.volumes.root / "cache" / config.folder))
    shutil.copytree(CHECKPOINT, folder)
    prefetch(config, lambda line: None)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> int:
    from serve.engine.launch import free_port

    port = free_port("127.0.0.1")
    monkeypatch.setenv("PALAESTRA_PORT", str(port))
    return port


def test_a_model_that_was_not_prefetched_says_what_to_run(config: ServingConfig) -> None:
    with pytest.raises(UnknownModel, match="python -m serve prefetch --target modal"):
        PolicyContainer(config).start()


def test_a_gateway_without_its_secret_says_which(
    config: ServingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PALAESTRA_ADMIN_KEY", raising=False)
    with pytest.raises(StateError, match="PALAESTRA_ADMIN_KEY is not set"):
        GatewayContainer(config, commit_state=lambda: None).start()


def test_a_folder_that_was_not_uploaded_is_not_looked_for_on_the_hub(
    config: ServingConfig,
) -> None:
    with pytest.raises(PullFailed, match="upload the model"):
        prefetch(config, lambda line: None)


def test_prefetch_registers_the_model_once(config: ServingConfig) -> None:
    uploaded(config)
    said: list[str] = []
    assert prefetch(config, said.append).startswith("tiny@1 is ")
    assert "already" in said[0]


def test_an_engine_that_cannot_start_is_said_with_its_own_words(tmp_path: Path, free: int) -> None:
    broken = configured(tmp_path, "engine.program=[python, -m, nonsense, '{model}', '{port}']")
    uploaded(broken)
    with pytest.raises(ContainerFailed, match="No module named nonsense"):
        PolicyContainer(broken).start()


@pytest.mark.slow
def test_a_replica_starts_answers_watches_and_stops(
    config: ServingConfig, free: int, capsys: pytest.CaptureFixture[str]
) -> None:
    uploaded(config)
    reloads, given_up = threading.Event(), threading.Event()
    container = PolicyContainer(config, reload={"all": reloads.set}, give_up=given_up.set)
    container.start()
    container.wake()
    try:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
        answer = httpx.post(f"http://127.0.0.1:{free}/v1/chat/completions", json=body)
        assert (answer.status_code, answer.headers["x-policy-version"]) == (200, "1")
        assert reloads.wait(30)
        child = container._process._child
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        assert given_up.wait(30)
    finally:
        container.stop()
    shown = capsys.readouterr().out
    assert f"[palaestra] starting, config {config.digest[:12]}" in shown
    assert "[palaestra] ready after" in shown
    assert "killed by signal 9" in shown


@pytest.mark.slow
def test_what_comes_out_of_a_snapshot_and_does_not_answer_is_started_anew(
    tmp_path: Path, free: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, "deploy.snapshot=cpu")
    uploaded(config)
    container = PolicyContainer(config)
    container.start()
    container.sleep()
    child = container._process._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    container.wake()
    try:
        assert httpx.get(f"http://127.0.0.1:{free}/ready").json()["replicas_ready"] == 1
    finally:
        container.stop()
    assert "the snapshot does not answer: starting anew" in capsys.readouterr().out
