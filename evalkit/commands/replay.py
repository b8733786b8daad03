"""`evalkit replay`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalkit.arguments import Parser
from evalkit.errors import BadConfig


def command(words: Sequence[str]) -> int:
    """Show a run's episodes turn by turn."""
    parser = Parser(prog="evalkit replay", description=command.__doc__)
    parser.add_argument("run", type=Path, help="the run's directory")
    parser.add_argument("--seed", type=int, required=True, help="env seed")
    parser.add_argument("--arm", help="only this arm")
    parser.add_argument("--repetition", type=int, default=0)
    typed = parser.parse_args(words)
    from evalkit.record.rundir import RunDir, TrajectoryFile  # noqa: PLC0415
    from evalkit.show.replay import replay_lines  # noqa: PLC0415

    rundir = RunDir.open(typed.run)
    wanted = [
        trajectory
        for trajectory in TrajectoryFile(rundir.trajectories_path)
        if trajectory.key.env_seed == typed.seed
        and trajectory.key.repetition == typed.repetition
        and typed.arm in (None, trajectory.key.arm)
    ]
    if not wanted:
        arms = ", ".join(arm["name"] for arm in rundir.manifest()["arms"])
        raise BadConfig(
            f"{typed.run} has no finished episode of seed {typed.seed}, "
            f"repetition {typed.repetition}; its arms are {arms}"
        )
    print("\n\n".join("\n".join(replay_lines(trajectory)) for trajectory in wanted))
    return 0
