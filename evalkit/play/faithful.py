"""Whether a policy's own notes hold what its episode has shown, fact by fact.

Plays the env again with the recorded actions; no policy is asked. Which facts there are, and how
notes are read, the env knows (`TextEnv.facts`, `TextEnv.claims`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from envs import NO_ACTION, TextEnv
from evalkit.play.parsing import read
from evalkit.play.policy import Completion
from evalkit.play.strategies import Strategy
from evalkit.record.trajectory import Outcome, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Faith:
    """One episode's notes against the truth, counted whenever the policy was shown its notes.

    A fact that was shown is `right`, `wrong` or `missing` in the notes; `invented` are statements
    about what was never shown.
    """

    right: int = 0
    wrong: int = 0
    missing: int = 0
    invented: int = 0

    @property
    def recall(self) -> float | None:
        """Share of the facts shown that the notes state rightly; None where nothing was shown."""
        shown = self.right + self.wrong + self.missing
        return self.right / shown if shown else None

    @property
    def precision(self) -> float | None:
        """Share of what the notes state that is right; None where they state nothing."""
        stated = self.right + self.wrong + self.invented
        return self.right / stated if stated else None


def faith(trajectory: Trajectory, env: TextEnv, strategy: Strategy) -> Faith:
    """Compare the notes at the start of every turn but the first with what was shown until then.

    `env` has the parameters of the one that was played, `strategy` is the arm's.
    """
    env.reset(seed=trajectory.key.env_seed)
    history = strategy.start(env)
    right = wrong = missing = invented = 0
    for turn in trajectory.turns[:-1]:
        facts = env.facts()
        completion = Completion(
            text=turn.completion,
            reasoning=turn.reasoning,
            finish_reason=turn.finish_reason,
            refusal=turn.outcome is Outcome.REFUSAL,
        )
        reply = read(completion, env).visible
        history = history.update(turn.observation, reply, turn.action)
        claims = env.claims(history.notes)
        stated = facts.keys() & claims.keys()
        agreed = sum(facts[name] == claims[name] for name in stated)
        right += agreed
        wrong += len(stated) - agreed
        missing += len(facts) - len(stated)
        invented += len(claims) - len(stated)
        env.step(turn.action or NO_ACTION)
    return Faith(right=right, wrong=wrong, missing=missing, invented=invented)


def faith_by_seed(
    trajectories: Iterable[Trajectory], make_env: Callable[[], TextEnv], strategy: Strategy
) -> dict[int, list[Faith]]:
    """Compare every scored episode of one arm, by env seed."""
    env = make_env()
    found: dict[int, list[Faith]] = {}
    for trajectory in trajectories:
        if trajectory.scored:
            found.setdefault(trajectory.key.env_seed, []).append(faith(trajectory, env, strategy))
    return found
