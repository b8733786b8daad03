"""What a run cannot do: one line says so, nothing complete is lost, nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve.engine.launch import free_port
from tests.e2e.training import (
    Ended,
    World,
    cleared,
    make_policy,
    steps_in,
    steps_of,
    until,
)
from train.learner.checkpoints import SavedCheckpoints
from train.run import State

ROOM_BYTES = 200_000
"""Enough for weights on their way to the gateway, not for a checkpoint."""
REWARD = """\
from pathlib import Path

from train.rewards.base import Reward, Scored


class Moody(Reward):
    def __init__(self, breaks):
        self.breaks = Path(breaks)

    async def score(self, episodes):
        if self.breaks.exists():
            raise RuntimeError("no mood")
        return [Scored(reward=episode.return_) for episode in episodes]
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture
def world(policy: Path, tmp_path: Path) -> Iterator[World]:
    with cleared(World.make(tmp_path, policy)) as made:
        yield made


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def cut_off(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def changed_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 8}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "there is no folder"),
        (without_weights, "has no weights: expected model.safetensors"),
        (without_template, "has no chat template"),
        (cut_off, "is no safetensors file, or is cut off"),
        (changed_config, "rollouts.max_tokens (8) leaves no room for a prompt"),
    ],
)
def test_a_model_that_cannot_be_trained(
    world: World, spoil: Callable[[Path], object], said: str
) -> None:
    folder = world.path / "spoilt"
    shutil.copytree(world.policy, folder)
    spoil(folder)
    refused(world, world.go(*world.words("--model", str(folder))), said)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"learn.step": 3}, "learn.step: no such key"),
        ({"rollouts.group_size": 1}, "rollouts.group_size: "),
        ({"reward.name": "no.such:Reward"}, "no.such"),
        ({"rollouts.strategy": "NO_SUCH"}, "rollouts.strategy: "),
        ({"env.args.turnz": 3}, "env: "),
        ({"env.name": "nowhere.py:Ways"}, "env: "),
        ({"gateway.max_model_len": 4096}, "gateway.max_model_len is 4096"),
        ({"learn.max_row_tokens": 16, "rollouts.max_tokens": 16}, "learn.max_row_tokens (16)"),
        ({"gateway.url": f"http://127.0.0.1:{free_port('127.0.0.1')}/v1"}, "no gateway answers"),
    ],
)
def test_a_setting_that_cannot_be_meant(
    world: World, setting: dict[str, object], said: str
) -> None:
    refused(world, world.go(*world.words(**setting)), said)
    assert not list((world.path / "runs").glob("*"))


def test_the_first_prompt_does_not_fit(world: World) -> None:
    ended = world.go(*world.words(learn__max_row_tokens=40))
    assert ended.code == 1, ended.said
    assert "the first prompt does not fit: " in ended.error
    assert "raise learn.max_row_tokens" in ended.error
    world.until_nothing_is_left()


def test_an_env_that_raises_can_be_mended(world: World) -> None:
    broken = world.path / "broken"
    run = world.start(*world.words(env__args__breaks=broken))
    until(lambda: len(steps_of(world)) >= 3)
    broken.touch()
    ended = run.end()
    assert ended.code == 1, ended.said
    assert "error: the env raised in seed " in ended.error
    assert "the floor gives way" in ended.error
    stopped(world)
    source = world.path / "ways.py"
    source.write_text(source.read_text().replace("Path(self.breaks).exists()", "False"))
    resumed = goes_on(world)
    assert "the env is another one than when the run began" in resumed.said


def test_only_one_process_trains_a_run_and_a_reward_that_raises_ends_it(world: World) -> None:
    broken = world.path / "broken"
    (world.path / "rewarding.py").write_text(REWARD)
    settings = {"reward.name": "rewarding:Moody", "reward.args.breaks": broken}
    run = world.start(*world.words(**settings))
    until(lambda: steps_of(world))
    second = world.go("--resume", str(world.run.path))
    assert second.code == 2
    assert f"is being trained by another process, {pid_of_parent(world)}" in second.error
    until(lambda: len(steps_of(world)) >= 3)
    broken.touch()
    ended = run.end()
    assert ended.code == 1, ended.said
    assert "reward rewarding:Moody raised RuntimeError: no mood" in ended.said
    stopped(world)
    broken.unlink()
    goes_on(world)


def test_a_gateway_that_goes_and_does_not_come_back(world: World) -> None:
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}/v1"
    with world.gateway(port) as gateway:
        run = world.start(*world.words(gateway__url=url, gateway__wait_s=2))
        until(lambda: len(steps_of(world)) >= 3)
        gateway.kill()
        ended = run.end(60)
    assert ended.code == 1, ended.said
    assert url.removesuffix("/v1") in ended.error
    stopped(world)
    again = world.go("--resume", str(world.run.path))
    assert again.code == 2
    assert f"no gateway answers at {url}" in again.error
    with world.gateway(port):
        goes_on(world, left=False)


def test_a_full_disk(world: World) -> None:
    port = free_port("127.0.0.1")
    words = world.words(gateway__url=f"http://127.0.0.1:{port}/v1", learn__steps=12)
    with small_disk(world.path / "runs") as disk, world.gateway(port):
        run = world.start(*words)
        until(lambda: len(steps_of(world)) >= 3)
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - ROOM_BYTES)
        ended = run.end()
        assert ended.code == 1, ended.said
        assert "cannot write the checkpoint of step " in ended.error
        assert "the disk is full" in ended.error
        stopped(world, left=False)
        ballast.unlink()
        goes_on(world, 12, left=False)


def refused(world: World, ended: Ended, said: str) -> None:
    """It is wrong usage, said in one line, and nothing was begun."""
    assert ended.code == 2, ended.said
    assert said in ended.error
    world.until_nothing_is_left()
    for path in (world.path / "runs").glob("*"):
        assert not list((path / "checkpoints").iterdir())


def stopped(world: World, *, left: bool = True) -> None:
    """It says that it failed, and has complete checkpoints."""
    if left:
        world.until_nothing_is_left()
    status = world.run.status()
    assert status.state is State.FAILED
    assert status.message
    saved = SavedCheckpoints(world.run.checkpoints_path)
    assert saved.list()
    for step in saved.list():
        saved.verify(step)
    hidden = [path.name for path in saved.root.iterdir() if path.name.startswith(".")]
    assert hidden == []


def goes_on(world: World, steps: int = 8, *, left: bool = True) -> Ended:
    """It ends well after all."""
    ended = world.go("--resume", str(world.run.path))
    assert ended.code == 0, ended.said
    assert world.run.status().state is State.FINISHED
    assert steps_in(world.run.metrics_path) == list(range(1, steps + 1))
    if left:
        world.until_nothing_is_left()
    return ended


def pid_of_parent(world: World) -> int:
    """Return the process that holds the run's lock."""
    return int(world.run.lock_path.read_text())


@contextlib.contextmanager
def small_disk(at: Path) -> Iterator[Path]:
    """A file system of its own with 3 MB of room; skips the test where none can be made."""
    at.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(at)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no file system of one's own: {made.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)
