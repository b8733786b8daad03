"""A run as exporters see it: its manifest, its episodes in order, and the exact prompts.

Trajectories keep what was shown and said, and a digest of every prompt, not the prompts: these are
made again by the history strategy on the env, and each must have the digest on record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from envs import NO_ACTION, TextEnv, digest
from evalkit.arms import env_factory
from evalkit.config import RunConfig
from evalkit.errors import BadConfig, DamagedRun, RunFailed
from evalkit.play.parsing import split_reasoning
from evalkit.play.strategies import History, Messages, Strategy, parse_strategy, prompt_digest
from evalkit.record.rundir import RunDir, TrajectoryFile
from evalkit.record.trajectory import Trajectory, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A run that was played to its end."""

    rundir: RunDir
    manifest: dict[str, Any]
    make_env: Callable[[], TextEnv]
    strategies: dict[str, Strategy]
    """By arm."""
    keep_reasoning: bool

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a run to export it.

        Raises:
            BadConfig: no finished run there, one that was imported, or its env is not what it was.

        """
        rundir = RunDir.open(path)
        manifest = rundir.manifest()
        if manifest.get("imported") is not None:
            raise BadConfig(
                f"{path} was imported from {manifest['imported']['file']}: export takes runs that "
                f"evalkit played, whose prompts it can make again"
            )
        if manifest["finished_at"] is None:
            raise BadConfig(f"{path} is not finished: python -m evalkit resume {path}")
        config = RunConfig.read(manifest["config"], str(rundir.manifest_path))
        make_env = env_factory(config)
        if digest(make_env()) != manifest["env"]["digest"]:
            raise BadConfig(
                f"the env {config.env} is not what it was when {path} was played: its prompts "
                f"cannot be made again"
            )
        return cls(
            rundir=rundir,
            manifest=manifest,
            make_env=make_env,
            strategies={arm["name"]: parse_strategy(arm["strategy"]) for arm in manifest["arms"]},
            keep_reasoning=config.keep_reasoning,
        )

    @property
    def run_id(self) -> str:
        """The run's name."""
        return str(self.manifest["run_id"])

    def trajectories(self) -> Iterator[Trajectory]:
        """Read all episodes in the order of `Key`, one at a time."""
        return iter(TrajectoryFile(self.rundir.trajectories_path))

    def prompts(self, trajectory: Trajectory) -> list[Messages]:
        """Make the prompts of an episode again, one per turn.

        Raises:
            DamagedRun: one of them is not what was sent.

        """
        env = self.make_env()
        env.reset(seed=trajectory.key.env_seed)
        history = self.strategies[trajectory.key.arm].start(env)
        made = []
        for turn in trajectory.turns:
            history, messages = self._sent(history, turn, trajectory)
            made.append(messages)
            history = history.update(turn.observation, self._kept(history, turn), turn.action)
            env.step(turn.action or NO_ACTION)
        return made

    def _sent(
        self, history: History, turn: Turn, trajectory: Trajectory
    ) -> tuple[History, Messages]:
        """Return the history and the prompt that were sent: a history may have had to shrink."""
        shorter: History | None = history
        while shorter is not None:
            messages = shorter.messages(turn.observation)
            if prompt_digest(messages) == turn.prompt_digest:
                return shorter, messages
            shorter = _shrunk(shorter)
        raise DamagedRun(
            f"{self.rundir.trajectories_path}: the prompt of {trajectory.key}, turn {turn.turn}, "
            f"cannot be made again: expected digest {turn.prompt_digest}"
        )

    def _kept(self, history: History, turn: Turn) -> str:
        """Return what the history kept of a reply."""
        visible, _ = split_reasoning(turn.completion)
        if self.keep_reasoning and history.keeps_replies and turn.reasoning:
            return f"<think>{turn.reasoning}</think>{visible}"
        return visible


def _shrunk(history: History) -> History | None:
    try:
        return history.shrink()
    except RunFailed:  # FULL_HISTORY(overflow=error): it was never sent any shorter
        return None


def as_dicts(messages: Messages) -> list[dict[str, str]]:
    """Return messages as OpenAI writes them."""
    return [{"role": each.role, "content": each.content} for each in messages]
