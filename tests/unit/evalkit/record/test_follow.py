"""What is counted of files that others write."""

from __future__ import annotations

from pathlib import Path

from evalkit.record.follow import Follower
from evalkit.record.journal import Appender
from evalkit.record.rundir import RunDir, TrajectoryFile
from evalkit.record.tally import ArmTally, Tally
from evalkit.record.trajectory import Key, StopReason, Trajectory


def episode(seed: int, stop: StopReason = StopReason.TERMINATED) -> Trajectory:
    return Trajectory(
        key=Key(env_seed=seed, repetition=0, arm="A"),
        turns=(),
        final_observation="",
        success=stop is StopReason.TERMINATED,
        return_=0.0,
        optimal_turns=None,
        stop_reason=stop,
    )


def append(path: Path, *lines: bytes) -> None:
    with path.open("ab") as file:
        file.writelines(lines)


def test_what_was_there_counts_as_before_and_what_comes_as_new(tmp_path: Path) -> None:
    shards = [RunDir.create(tmp_path, name, {}) for name in ("1-of-2", "2-of-2")]
    append(shards[0].journal_path, b"{}\n{}\n")
    lost = episode(2, StopReason.INFRA_ERROR).to_json()
    append(shards[0].trajectories_path, episode(0).to_json(), b"\n", lost, b"\n")
    tally = Tally(total_episodes=6, arms={"A": ArmTally()})
    follower = Follower(shards, tally)
    assert (tally.episodes, tally.episodes_before, tally.turns) == (1, 1, 0)

    append(shards[1].journal_path, b"{}\n{}\n{}\n{")
    append(shards[0].trajectories_path, episode(2).to_json() + b"\n")
    append(shards[1].trajectories_path, episode(1, StopReason.ENV_ERROR).to_json() + b"\n", b'{"a')
    follower.look()
    assert (tally.episodes, tally.turns) == (3, 3)
    arm = tally.arms["A"]
    assert (arm.scored, arm.successes, arm.errors) == (2, 2, 1)


def test_a_file_that_is_put_into_order_counts_nothing_twice(tmp_path: Path) -> None:
    shard = RunDir.create(tmp_path, "1-of-1", {})
    tally = Tally(total_episodes=3, arms={"A": ArmTally()})
    follower = Follower([shard], tally)
    file = TrajectoryFile(shard.trajectories_path)
    with Appender(shard.trajectories_path) as appender:
        for seed in (2, 0, 1):
            file.append(appender, episode(seed))
    follower.look()
    file.arrange()
    follower.look()
    assert tally.episodes == 3


def test_a_damaged_line_is_left_to_the_merge(tmp_path: Path) -> None:
    shard = RunDir.create(tmp_path, "1-of-1", {})
    tally = Tally(total_episodes=3, arms={"A": ArmTally()})
    follower = Follower([shard], tally)
    append(shard.trajectories_path, b"what?\n", episode(0).to_json() + b"\n")
    follower.look()
    assert tally.episodes == 1
