"""What a tiny policy is made for: the game, its memory, how well its teacher plays. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from envs import BadEnvParams, TextEnv, UnknownEnv, make
from evalkit.play.strategies import Scratchpad, Strategy, parse_strategy
from train.errors import BadConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One tiny policy: a game, a history strategy and a warm start by imitation."""

    env: str
    """A shipped env, or FILE.py:Class."""
    args: dict[str, Any] = field(default_factory=dict)
    """The env's constructor arguments."""
    strategy: str = "FULL_HISTORY"
    """The history strategy that it is trained and played with."""
    noise: float
    """The share of its teacher's actions that are random instead of right: slips."""
    taught: float = 0.0
    """The share of slips that are taught too, so that the pupil makes them as well."""
    rounds: float = 0.0
    """The share of slips that go clockwise round the grid, instead of anywhere. Without a memory a
    round trip is the best way to search, and so is its mirror image: a pupil that leans to neither
    stays between the two, on some seeds for longer than it is trained."""
    forgetful: float = 0.0
    """The share of the teacher's notes that are empty or out of date; it goes on from those."""
    steps: int
    """Optimizer steps of the warm start."""
    batch: int = 32
    """Episodes per step where a row is an episode, rows per step where a row is a turn."""
    learning_rate: float = 1.5e-3
    """The highest of the warm start."""
    vocabulary: int = 1024
    """The most tokens, the 256 bytes and the special ones included."""

    def __post_init__(self) -> None:
        for name in ("noise", "taught", "rounds", "forgetful"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadConfig(f"{name} is a share from 0 to 1, not {getattr(self, name)}")
        if min(self.steps, self.batch) < 1:
            raise BadConfig(f"steps and batch are at least 1, not {self.steps} and {self.batch}")

    def make_env(self) -> TextEnv:
        """Make one env to play in.

        Raises:
            BadConfig: there is no such env, or it does not take these arguments.

        """
        try:
            return make(self.env, **self.args)
        except (UnknownEnv, BadEnvParams) as error:
            raise BadConfig(str(error)) from None

    def parsed_strategy(self) -> Strategy:
        """Return the strategy itself.

        Raises:
            BadConfig: there is no such strategy.

        """
        try:
            return parse_strategy(self.strategy)
        except ValueError as error:
            raise BadConfig(str(error)) from None

    @property
    def keeps_notes(self) -> bool:
        """Whether replies carry notes."""
        return isinstance(self.parsed_strategy(), Scratchpad)


RECIPES = MappingProxyType(
    {
        "key_door": Recipe(
            env="key_door",
            args={"size": 3, "max_turns": 16},
            strategy="NO_HISTORY",
            noise=0.4,
            taught=1.0,
            rounds=0.5,
            batch=32,
            steps=150,
        ),
        "tic_tac_toe": Recipe(
            env="tic_tac_toe",
            strategy="NO_HISTORY",
            noise=0.7,
            taught=1.0,
            batch=48,
            steps=150,
        ),
        "key_door_memory": Recipe(
            env="key_door",
            args={"size": 3, "max_turns": 18, "show_position": False, "show_moves": False},
            strategy="SCRATCHPAD",
            noise=0.3,
            taught=1.0,
            forgetful=0.04,
            batch=48,
            steps=400,
        ),
    }
)
"""The shipped ones, by name."""


def recipe(name: str) -> Recipe:
    """Return the shipped recipe called `name`.

    Raises:
        BadConfig: there is none.

    """
    if name not in RECIPES:
        raise BadConfig(f"no recipe is called {name!r}: known are {', '.join(RECIPES)}")
    return RECIPES[name]
