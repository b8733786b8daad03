"""kill -9 of each part of a training run: it goes on by itself, or with --resume, and ends whole.

With staleness 0 a run that was killed ends with the very bytes of one that was not.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from serve.policies.store import PolicyStore
from tests.e2e.training import (
    NAME,
    World,
    cleared,
    make_policy,
    published,
    rows_in,
    steps_in,
    steps_of,
    until,
)
from train.learner.checkpoints import SavedCheckpoints, TrainState, load_groups
from train.rollouts.seeds import group_seed
from train.run import State

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 12
EVERY = 3
GROUPS_PER_STEP = 2
KEEP = 3
KEEP_VERSIONS = 3
TOLD = (
    "return_mean reward_mean turns_mean rows tokens_trained loss grad_norm entropy ratio_mean kl"
).split()
"""Columns that say what was learned from what, and not when."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture
def world(policy: Path, tmp_path: Path) -> Iterator[World]:
    with cleared(World.make(tmp_path, policy, delay_ms=30)) as made:
        yield made


@pytest.fixture(scope="module")
def unbroken(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A run that nobody killed, with staleness 0."""
    made = World.make(tmp_path_factory.mktemp("unbroken"), policy, delay_ms=30)
    with cleared(made):
        ended = made.go(*words(made, staleness=0))
        assert ended.code == 0, ended.said
        yield made


def test_a_learner_that_is_killed_goes_on(world: World, unbroken: World) -> None:
    run = world.start(*words(world, staleness=0))
    for moment in moments(world, random.Random("learner")):
        moment()
        kill(world.processes("train.learner"))
    ended = run.end()
    assert ended.code == 0, ended.said
    assert ended.said.count("the learner died (killed by SIGKILL)") == 3
    check_whole(world, orphans=3)
    check_equal(world, unbroken)


def test_a_run_whose_parent_is_killed_goes_on_with_resume(world: World) -> None:
    run = world.start(*words(world, staleness=1))
    for moment in moments(world, random.Random("parent")):
        moment()
        left = world.processes()
        assert len(left) > 3  # its learner, its gateway, an engine and its keeper
        kill([run.process.pid])
        run.process.wait()
        run = world.start("--resume", str(world.run.path))
        until_gone(world, left)
    ended = run.end()
    assert ended.code == 0, ended.said
    check_whole(world, orphans=3)


@pytest.mark.parametrize("victim", ["engine", "gateway"])
def test_what_serves_a_run_is_killed_and_the_run_goes_on(
    world: World, unbroken: World, victim: str
) -> None:
    run = world.start(*words(world, staleness=0))
    for moment in moments(world, random.Random(victim)):
        moment()
        kill(world.engines() if victim == "engine" else world.processes("serve up"))
    ended = run.end()
    assert ended.code == 0, ended.said
    assert "the learner died" not in ended.said
    assert ended.said.count("the gateway died (killed by SIGKILL)") == 3 * (victim == "gateway")
    check_whole(world)
    check_equal(world, unbroken)


@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_real_vllm_is_killed_and_the_run_goes_on(tmp_path: Path) -> None:
    policy = make_policy(tmp_path / "tiny", head_dim=64)
    with cleared(World.make(tmp_path, policy, stand_in=False)) as world:
        run = world.start(*words(world, staleness=1), "--set", "publish.probes=4")
        after(world, lambda: max(steps_of(world), default=0) > EVERY, 0)
        kill(world.engines())
        ended = run.end(900)
        assert ended.code == 0, ended.said
        assert "the learner died" not in ended.said
        check_whole(world)


def words(world: World, *, staleness: int) -> list[str]:
    return world.words(
        learn__steps=STEPS,
        learn__max_staleness=staleness,
        rollouts__groups_per_step=GROUPS_PER_STEP,
        checkpoints__every=EVERY,
        checkpoints__keep=KEEP,
        publish__keep_versions=KEEP_VERSIONS,
    )


def moments(world: World, chance: random.Random) -> list[Callable[[], None]]:
    """Return what waits for each moment: no checkpoint yet, some, and one being written."""
    return [
        lambda: after(world, lambda: bool(steps_of(world)), chance.uniform(0, 0.2)),
        lambda: after(
            world, lambda: max(steps_of(world), default=0) > EVERY, chance.uniform(0, 0.6)
        ),
        lambda: after(world, lambda: is_writing(world, 3 * EVERY), chance.uniform(0, 0.05)),
    ]


def after(world: World, holds: Callable[[], bool], pause_s: float) -> None:
    until(holds, 600, found=lambda: f"processes: {world.processes()}, steps: {steps_of(world)}")
    time.sleep(pause_s)


def is_writing(world: World, step: int) -> bool:
    """Whether the checkpoint of a step is being written, or there."""
    path = world.run.checkpoint_path(step)
    return path.with_name(f".{path.name}.tmp").exists() or path.exists()


def kill(pids: list[int]) -> None:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def until_gone(world: World, pids: list[int]) -> None:
    until(lambda: not set(pids) & set(world.processes()))


def check_whole(world: World, *, orphans: int = 0) -> None:
    """Look at all that a run leaves.

    A learner that is killed between a version's publishing and its noting may leave an orphan.
    """
    world.until_nothing_is_left()
    run = world.run
    status = run.status()
    assert (status.state, status.step) == (State.FINISHED, STEPS)
    assert steps_in(run.metrics_path) == list(range(1, STEPS + 1))
    assert [path.name for path in run.versions_path.iterdir()] == ["sent.json"]
    check_checkpoints(world)
    check_published(world, orphans)


def check_checkpoints(world: World) -> None:
    run = world.run
    saved = SavedCheckpoints(run.checkpoints_path)
    steps = [STEPS - EVERY * back for back in reversed(range(KEEP))]
    assert list(saved.list()) == steps
    assert len(list(run.checkpoints_path.iterdir())) == KEEP  # no half-written one either
    for step in steps:
        saved.verify(step)
        folder = saved.path(step)
        assert TrainState.read(folder).next_group == step * GROUPS_PER_STEP
        waiting = load_groups(folder / "groups.npz")
        indexes = [group.index for group in waiting]
        assert indexes == sorted(set(indexes))
        assert all(step * GROUPS_PER_STEP <= at < STEPS * GROUPS_PER_STEP for at in indexes)
        seed = run.config().learn.seed
        assert [g.env_seed for g in waiting] == [group_seed(seed, g.index) for g in waiting]


def check_published(world: World, orphans: int) -> None:
    """The last step's weights are live, and older versions were let go of."""
    run = world.run
    versions = published(run)
    store = PolicyStore(run.serve_path / "policies")
    last = versions[-1]
    assert last.metrics == {"step": float(STEPS)}
    assert store.latest(NAME) == last.version == run.status().version
    store.verify(last)
    assert last.path is not None
    live = load_file(last.path / "model.safetensors")
    saved = load_file(run.checkpoint_path(STEPS) / "model.safetensors")
    assert live.keys() == saved.keys()
    assert all((live[name] == saved[name]).all() for name in live)
    checkpoints = SavedCheckpoints(run.checkpoints_path)
    kept = {checkpoints.load_state(step).published_version for step in checkpoints.list()}
    there = {info.version for info in versions if info.path is not None}
    assert kept < there
    newest = {info.version for info in versions[-KEEP_VERSIONS:]}
    assert len(there - kept - newest - {1}) <= orphans


def check_equal(world: World, other: World) -> None:
    """Two runs learned the same from the same."""
    rows, others = (rows_in(each.run.metrics_path) for each in (world, other))
    assert [[row[name] for name in TOLD] for row in rows] == [
        [row[name] for name in TOLD] for row in others
    ]
    weights, expected = (
        (each.run.checkpoint_path(STEPS) / "model.safetensors").read_bytes()
        for each in (world, other)
    )
    assert weights == expected
