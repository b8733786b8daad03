"""The only episode loop: observation, prompt, completion, action, until the episode ends.

Evaluation and training both play through `play`, the debugger through the same `Rollout`, half a
turn at a time. It knows no HTTP, no files and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from envs import NO_ACTION, TextEnv, env_id
from envs.base import Info
from evalkit.errors import CallFailed, ContextOverflow, Failure
from evalkit.play.contract import EnvRaised, env_contract
from evalkit.play.parsing import Reading, read
from evalkit.play.policy import Ask, Completion, Policy, request_seed
from evalkit.play.strategies import History, Messages, Strategy, prompt_digest
from evalkit.record.trajectory import Key, Outcome, StopReason, Trajectory, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of a comparison: who plays, what it remembers, how it may answer."""

    name: str
    policy: Policy
    strategy: Strategy
    make_env: Callable[[], TextEnv]
    run_id: str
    run_seed: int = 0
    guided: bool = False
    """Whether the server may only answer in the env's action format."""
    keep_reasoning: bool = False
    """Whether the history keeps a reply's reasoning."""


def session_id(run_id: str, key: Key) -> str:
    """Name an episode to servers: X-Session-ID, and the stem of its calls' X-Request-ID."""
    return f"{run_id}-{key.arm}-{key.env_seed}-{key.repetition}"


async def play(arm: Arm, key: Key) -> Trajectory:
    """Play one episode and return its record; failures of calls or of the env are part of it."""
    return await Rollout(arm, key).play()


class Rollout:
    """One episode being played: `start`, then `ask` and `act` until `act` says why it ends."""

    def __init__(self, arm: Arm, key: Key) -> None:
        self.arm = arm
        self.key = key
        self.env = arm.make_env()
        self.turns: list[Turn] = []
        self.observation = ""
        self.optimal_turns: int | None = None
        self.pattern: str | None = None
        self.history: History
        self.session_id = session_id(arm.run_id, key)

    async def play(self) -> Trajectory:
        """Play the episode to its end."""
        try:
            self.start()
            stop = None
            while stop is None:
                ask, completion = await self.ask()
                stop = self.act(ask, completion)
        except (CallFailed, EnvRaised) as error:
            return self.failed(error)
        return self.judged(stop)

    def failed(self, error: CallFailed | EnvRaised) -> Trajectory:
        """Return the record of an episode that a call or its env brought to an end."""
        if isinstance(error, EnvRaised):
            return self.broken(error)
        if isinstance(error, ContextOverflow):
            return self.overflowed(error)
        return self.ended(StopReason.INFRA_ERROR, error.failure, str(error))

    def overflowed(self, overflow: ContextOverflow) -> Trajectory:
        """Return the record of an episode whose history outgrew the model's context."""
        try:
            left = self.forfeit()
        except EnvRaised as raised:
            return self.broken(raised)
        return self.ended(
            StopReason.CONTEXT_OVERFLOW, overflow.failure, str(overflow), forfeited=left
        )

    def broken(self, raised: EnvRaised) -> Trajectory:
        """Return the record of an episode whose env broke its contract."""
        return self.ended(StopReason.ENV_ERROR, Failure.ENV_BUG, repr(raised.__cause__))

    def judged(self, stop: StopReason) -> Trajectory:
        """Return the record of an episode that came to its end, with the env's verdict."""
        try:
            with env_contract:
                success = bool(self.env.success)
        except EnvRaised as raised:
            return self.broken(raised)
        return self.ended(stop, success=success)

    def start(self) -> None:
        """Reset the env and begin its history."""
        with env_contract:
            self.observation, _ = self.env.reset(seed=self.key.env_seed)
            self.optimal_turns = self.env.optimal_turns()
            self.history = self.arm.strategy.start(self.env)
            if self.arm.guided:
                self.pattern = self.arm.strategy.answer_pattern(self.env)

    async def ask(self) -> tuple[Ask, Completion]:
        """Put the observation to the policy; a history that does not fit may shrink."""
        while True:
            with env_contract:
                messages = self.history.messages(self.observation)
            ask = self.question(messages)
            try:
                return ask, await self.arm.policy.complete(ask)
            except ContextOverflow:
                shorter = self.history.shrink()
                if shorter is None:
                    raise
                self.history = shorter

    def question(self, messages: Messages) -> Ask:
        """Return the `Ask` of this turn."""
        turn = len(self.turns)
        seed = request_seed(
            self.arm.run_seed, env_id(self.env), self.key.env_seed, self.key.repetition, turn
        )
        return Ask(
            session_id=self.session_id,
            turn=turn,
            seed=seed,
            messages=messages,
            prompt=prompt_digest(messages),
            env=self.env,
            pattern=self.pattern,
        )

    def act(self, ask: Ask, completion: Completion) -> StopReason | None:
        """Read the completion, take the env's step, remember both."""
        with env_contract:
            reading = read(completion, self.env)
            shown, reward, terminated, truncated, info = self.env.step(reading.action)
            reward, event, error = _checked(shown, reward, info)
            over = terminated or truncated
            if not over and ask.turn + 1 >= self.env.max_turns:
                raise RuntimeError(f"not over after max_turns = {self.env.max_turns} turns")
        reply = self.kept(reading)
        self.history = self.history.update(self.observation, reply, reading.action or None)
        illegal = bool(info.get("illegal")) or not reading.action
        self.turns.append(
            Turn(
                turn=ask.turn,
                observation=self.observation,
                completion=completion.text,
                reasoning=reading.reasoning,
                action=reading.action or None,
                outcome=_outcome(reading, illegal=illegal),
                valid=not illegal,
                reward=reward,
                event=event,
                error=error,
                memory=self.history.last_memory,
                finish_reason=completion.finish_reason,
                prompt_tokens=completion.prompt_tokens,
                completion_tokens=completion.completion_tokens,
                request_seed=ask.seed,
                prompt_digest=ask.prompt,
                policy_version=completion.policy_version,
            )
        )
        self.observation = shown
        if terminated:
            return StopReason.TERMINATED
        return StopReason.TRUNCATED if truncated else None

    def kept(self, reading: Reading) -> str:
        """Return what the history keeps of a reply: reasoning only where that is wanted."""
        if self.arm.keep_reasoning and self.history.keeps_replies and reading.reasoning:
            return f"<think>{reading.reasoning}</think>{reading.visible}"
        return reading.visible

    def ended(
        self,
        stop: StopReason,
        failure: Failure | None = None,
        message: str | None = None,
        *,
        success: bool = False,
        forfeited: float = 0.0,
    ) -> Trajectory:
        """Return the record."""
        return Trajectory(
            key=self.key,
            turns=tuple(self.turns),
            final_observation=self.observation,
            success=success,
            return_=sum(turn.reward for turn in self.turns) + forfeited,
            optimal_turns=self.optimal_turns,
            stop_reason=stop,
            failure=failure,
            failure_message=message,
        )

    def forfeit(self) -> float:
        """Let the turns that are left pass without action; return what the env gives for them.

        So an episode that outgrew the context returns what any other unfinished one returns.
        """
        total = 0.0
        with env_contract:
            for _ in range(len(self.turns), self.env.max_turns):
                shown, reward, terminated, truncated, info = self.env.step(NO_ACTION)
                total += _checked(shown, reward, info)[0]
                if terminated or truncated:
                    return total
            raise RuntimeError(f"not over after max_turns = {self.env.max_turns} turns")


def _checked(shown: object, reward: object, info: Info) -> tuple[float, str | None, str | None]:
    """Return (reward, event, error) as the record keeps them; raise for what it cannot keep."""
    if not isinstance(shown, str):
        raise TypeError(f"expected a text as observation, not {shown!r}")
    value = float(reward)  # type: ignore[arg-type]  # it raises for what is no number
    if not math.isfinite(value):
        raise ValueError(f"expected a finite reward, not {reward!r}")
    event, error = info.get("event"), info.get("error")
    return value, event and str(event), error and str(error)


def _outcome(reading: Reading, *, illegal: bool) -> Outcome:
    """Complete the text's outcome with what the env said of the action."""
    if illegal and reading.outcome in {Outcome.OK, Outcome.MULTI_ACTION, Outcome.UNCLOSED}:
        return Outcome.ILLEGAL
    return reading.outcome
