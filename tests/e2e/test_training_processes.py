"""A run of two trainer processes: one of them is killed, it is asked to stop, it goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_training_crash import EVERY, STEPS, after, check_whole, kill, words
from tests.e2e.training import World, cleared, make_policy, steps_of
from train.run import State

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LAUNCHER = "torch.distributed.run"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture
def world(policy: Path, tmp_path: Path) -> Iterator[World]:
    with cleared(World.make(tmp_path, policy, delay_ms=30)) as made:
        yield made


def learners(world: World, rank: int) -> list[int]:
    """Return the process of a rank."""
    wanted = f"RANK={rank}".encode()
    return [
        pid
        for pid in set(world.processes("train.learner")) - set(world.processes(LAUNCHER))
        if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    ]


def begun(world: World) -> None:
    after(world, lambda: max(steps_of(world), default=0) > EVERY, 0)


@pytest.mark.parametrize("victim", ["the main one", "the other one", "the launcher"])
def test_one_that_is_killed_ends_all_and_the_run_goes_on(world: World, victim: str) -> None:
    run = world.start(*words(world, staleness=1), "--set", "learn.processes=2")
    begun(world)
    kill(
        world.processes(LAUNCHER)
        if victim == "the launcher"
        else learners(world, rank=int(victim == "the other one"))
    )
    ended = run.end()
    assert ended.code == 0, ended.said
    assert ended.said.count("once more from the last checkpoint") == 1
    check_whole(world, orphans=1)


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(world: World) -> None:
    run = world.start(*words(world, staleness=1), "--set", "learn.processes=2")
    begun(world)
    run.process.send_signal(signal.SIGTERM)
    ended = run.end()
    assert ended.code == 128 + signal.SIGTERM, ended.said
    world.until_nothing_is_left()
    status = world.run.status()
    assert status.state is State.INTERRUPTED
    assert world.run.checkpoint_path(status.step).is_dir()
    ended = world.go("--resume", str(world.run.path))
    assert ended.code == 0, ended.said
    assert steps_of(world) == list(range(1, STEPS + 1))
    world.until_nothing_is_left()


def test_what_ends_the_main_one_is_said_once(world: World) -> None:
    breaks = world.path / "breaks"
    settings = {"env.args": f"{{breaks: {breaks}}}", "learn.processes": 2, "rollouts.attempts": 1}
    more = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    run = world.start(*words(world, staleness=1), *more)
    begun(world)
    breaks.touch()
    ended = run.end()
    assert ended.code == 1, ended.said
    assert "the floor gives way" in ended.errors[-1]
    assert len(ended.errors) == 1
    world.until_nothing_is_left()
