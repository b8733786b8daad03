"""The port through which every policy is asked: a served model, a baseline, a human, a script.

Knows no HTTP. A policy raises `CallFailed` for what is not the model's doing, and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

from envs import TextEnv
from evalkit.play.gate import Gate
from evalkit.play.strategies import Messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question to a policy."""

    session_id: str
    """One per episode; a gateway keeps a session on one replica."""
    turn: int
    seed: int
    """Of this request: equal for equal (run seed, env, env seed, repetition, turn) in all arms."""
    messages: Messages
    prompt: str
    """Digest of the messages: names them byte for byte."""
    env: TextEnv
    """For baselines that look at the rules or the state; a served model never sees it."""
    pattern: str | None = None
    """Regular expression that a guided answer must match; None for a free answer."""

    @property
    def request_id(self) -> str:
        """One per call."""
        return f"{self.session_id}-{self.turn}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer. What a server does not say is None."""

    text: str
    reasoning: str | None = None
    finish_reason: str | None = "stop"
    refusal: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    model: str | None = None
    """The model's name as the server gives it back."""
    policy_version: str | None = None
    """X-Policy-Version: the weights that answered."""
    elapsed_s: float = 0.0
    """From the first byte sent to the last received, of the attempt that succeeded."""
    attempts: int = 1


class Policy(ABC):
    """What acts."""

    gate: Gate | None = None
    """Where its calls wait, if how many there may be at once adapts to its server."""

    @abstractmethod
    async def complete(self, ask: Ask) -> Completion:
        """Answer `ask`.

        Raises:
            CallFailed: there is no answer, and it is not the model's doing.

        """

    async def aclose(self) -> None:  # noqa: B027 - most policies hold nothing
        """Let go of connections. A policy is not asked again afterwards."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def request_seed(run_seed: int, env: str, env_seed: int, repetition: int, turn: int) -> int:
    """Derive the seed of one request: 31 bits, the same for every arm (common random numbers)."""
    key = f"{run_seed}|{env}|{env_seed}|{repetition}|{turn}".encode()
    return int.from_bytes(blake2b(key, digest_size=4).digest(), "big") >> 1
