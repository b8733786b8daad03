"""Every recorded episode of a run, played again without its models: the same to the byte, or not.

Env, history strategy and recorded answers go through the one episode loop; compared are all
observations, prompts (by digest), actions, rewards, request seeds, and how each episode ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from evalkit.debug.origin import RecordedRun
from evalkit.debug.recorded import Recording, difference, turn_difference
from evalkit.debug.session import Debugger
from evalkit.errors import RunFailed
from evalkit.play.rollout import Arm, play
from evalkit.play.runner import rare_collections
from evalkit.record.journal import read_lines
from evalkit.record.trajectory import Key, StopReason, Trajectory


@dataclass(slots=True)
class Checked:
    """What was played again, and what came out otherwise."""

    episodes: int = 0
    turns: int = 0
    differences: list[tuple[Key, str]] = field(default_factory=list)
    """Episodes that are not what was recorded, each with the first thing that differs."""


async def check_run(path: Path) -> Checked:
    """Play every episode in the run's trajectories again; raises nothing for one that differs.

    Raises:
        BadConfig: there is no run, its env is not what it was, or it has no such arm.
        DamagedRun: its trajectories cannot be read.

    """
    run = RecordedRun(path)
    checked = Checked()
    arms = {name: run.arm(name, "replay") for name in run.names}
    with rare_collections():
        for trajectory in _trajectories(run):
            arm = arms.get(trajectory.key.arm) or run.arm(trajectory.key.arm, "replay")
            found = await check_episode(run, arm, trajectory)
            checked.episodes += 1
            checked.turns += len(trajectory.turns)
            if found:
                checked.differences.append((trajectory.key, found))
    return checked


async def check_episode(run: RecordedRun, arm: Arm, trajectory: Trajectory) -> str:
    """Say in what an episode differs first when it is played again; "" where it does not."""
    arm = replace(arm, policy=Recording(trajectory.turns, trajectory))
    began, planned = run.began_as(trajectory.key)
    try:
        if run.manifest.get("fork") is None:
            replayed = await play(arm, trajectory.key)
        else:
            debugger = Debugger(arm, began, recorded=trajectory.turns, planned=planned)
            replayed = await debugger.finish()
    except RunFailed as error:
        return str(error)
    if trajectory.stop_reason is StopReason.ENV_ERROR:  # what the env raised on is not recorded
        return _first_turn(trajectory, replayed)
    return difference(trajectory, replayed)


def _first_turn(recorded: Trajectory, replayed: Trajectory) -> str:
    turns = zip(recorded.turns, replayed.turns, strict=False)
    return next((found for was, now in turns if (found := turn_difference(was, now))), "")


def _trajectories(run: RecordedRun) -> Iterator[Trajectory]:
    """Read one trajectory at a time, those that were played again later among them."""
    for _, line in read_lines(run.rundir.trajectories_path):
        yield Trajectory.from_json(line)
