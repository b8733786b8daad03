"""The one interface of a text environment, and what a reply parses into.

Lives here: `TextEnv` (gymnasium's five-tuple on strings) and its defaults. Knows nothing of
models, messages or files; standard library only.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, ClassVar, Self

Info = dict[str, Any]
StepResult = tuple[str, float, bool, bool, Info]

NO_ACTION = ""
"""What the episode loop passes to `TextEnv.step` for a reply that names no action."""


class ParseKind(StrEnum):
    """How a completion read as an answer."""

    OK = "ok"
    """Exactly one action was named."""
    MULTI_ACTION = "multi_action"
    """Several actions were named: the first one counts."""
    UNCLOSED = "unclosed"
    """The last tag was opened and never closed: what follows it counts as the action."""
    NO_ACTION = "no_action"
    """There was text, but no action in it."""
    EMPTY = "empty"
    """There was no text."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a completion asks the env to do: `action` is None when it names none."""

    action: str | None
    kind: ParseKind


class EpisodeOver(RuntimeError):
    """`step` was called before `reset` or after the episode's end."""


class TextEnv(ABC):
    """A simulator of one task family, on strings.

    A subclass writes `reset`, `step`, `success`, `legal_actions`, `oracle`, `state`, `load` and
    `system_prompt`; everything else has a default. Its constructor takes keyword arguments only,
    and each one is a parameter of the env (`envs.make(id, **params)`).

    Rules, each enforced by `envs.testing.check_env`: all chance comes from a `random.Random(seed)`
    of the object's own; equal seeds give equal bytes; episodes do not depend on how they
    interleave; the state round-trips through JSON; the oracle succeeds; a policy that never acts
    does not; `step` after the end raises `EpisodeOver`; an action that is not legal never raises.
    """

    id: ClassVar[str]
    """The name under which `envs.make` knows it."""
    version: ClassVar[str] = "1"
    """Raised whenever prompts, rules or rewards change: results of two versions do not compare."""
    action_tag: ClassVar[str] = "action"
    """Name of the tag that carries the action in a reply: `<action>up</action>`."""
    max_turns: int
    """Turns after which an episode is truncated."""
    solvable: ClassVar[bool] = True
    """Whether the oracle always succeeds. False where chance can deny even perfect play."""

    @abstractmethod
    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        """Start the episode of `seed`; return the first observation and its info."""

    @abstractmethod
    def step(self, action: str) -> StepResult:
        """Take one turn.

        `action` is one of `legal_actions()`; anything else (`NO_ACTION` included) costs the turn,
        earns nothing and sets `info["illegal"]` to True and `info["error"]` to the reason. Only a
        known action that is useless now may pass unflagged, where the rules say so (a bump).

        Returns (observation, reward, terminated, truncated, info). `terminated`: the task ended.
        `truncated`: it was cut off. Never both. `info["event"]`, where present, names what
        happened in one word.

        Raises:
            EpisodeOver: before `reset` or after the end.

        """

    @property
    @abstractmethod
    def success(self) -> bool:
        """The env's own verdict on the episode so far; never derived from the return."""

    @abstractmethod
    def legal_actions(self) -> tuple[str, ...]:
        """Return the actions that the rules allow now, in a fixed order."""

    @abstractmethod
    def oracle(self) -> str:
        """Return the best next action, with full knowledge of the hidden state."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return everything needed to go on from here, as JSON types."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, which `state()` of an env with equal parameters returned."""

    @property
    @abstractmethod
    def system_prompt(self) -> str:
        """The rules and the answer's format, in words. Read after `reset`."""

    @property
    def scratchpad_prompt(self) -> str:
        """How to keep notes in this env; added to the system prompt by SCRATCHPAD."""
        return (
            "You do not see earlier turns. Before your action, write every fact you will need "
            "later between <scratchpad> and </scratchpad>. The text there replaces your earlier "
            "notes completely and is shown to you on the next turn."
        )

    @property
    def params(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON types; part of the env's digest."""
        return {"max_turns": self.max_turns}

    def all_actions(self) -> tuple[str, ...]:
        """Return every action that may be legal at some time; the guided answer's alternatives."""
        return self.legal_actions()

    def format_action(self, action: str) -> str:
        """Write `action` the way a reply must carry it."""
        return f"<{self.action_tag}>{action}</{self.action_tag}>"

    def action_pattern(self) -> str:
        """Return a regular expression that admits exactly the replies carrying one known action."""
        choices = "|".join(re.escape(action) for action in self.all_actions())
        return f"<{self.action_tag}>({choices})</{self.action_tag}>"

    def parse(self, completion: str) -> Parsed:
        """Read the first action out of a reply; case and surrounding space do not matter."""
        return parse_tag(completion, self.action_tag)

    def optimal_turns(self) -> int | None:
        """Return how many turns the oracle needs from here; None when it never gets there."""
        env = self.clone()
        for turn in range(1, env.max_turns + 1):
            _, _, terminated, truncated, _ = env.step(env.oracle())
            if terminated or truncated:
                return turn if env.success else None
        return None

    def optimal_scratchpad(self) -> str:
        """Return the best notes for this moment, from what was really seen; "" for none."""
        return ""

    def facts(self) -> dict[str, str]:
        """Return by name what the episode has shown so far and a player does well to note.

        Only what was really seen, nothing hidden; {} where nothing needs remembering.
        """
        return {}

    def claims(self, notes: str) -> dict[str, str]:
        """Read which facts a player's notes state, by the names and in the words of `facts`.

        What is not stated is absent; what was never seen may be among them.
        """
        del notes
        return {}

    def clone(self) -> Self:
        """Return an independent copy that plays on from here."""
        return copy.deepcopy(self)

    def render(self) -> str:
        """Return a picture of the full state for a human, hidden things included."""
        return repr(self.state())

    def tools(self) -> list[dict[str, Any]]:
        """Return the actions as OpenAI tool definitions; empty where the env has no tool form."""
        return []


def choice_tool(name: str, description: str, actions: Sequence[str]) -> dict[str, Any]:
    """Return the OpenAI definition of a tool whose one argument, `action`, is one of `actions`."""
    parameters = {
        "type": "object",
        "properties": {"action": {"type": "string", "enum": list(actions)}},
        "required": ["action"],
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


@lru_cache(maxsize=64)
def _tag_pattern(tag: str) -> re.Pattern[str]:
    name = re.escape(tag)
    return re.compile(rf"<{name}>(.*?)(</{name}>|\Z)", re.DOTALL | re.IGNORECASE)


def parse_tag(completion: str, tag: str) -> Parsed:
    """Read the first `<tag>..</tag>` of a reply, lower-cased and stripped.

    A tag that is opened and never closed counts too, as `ParseKind.UNCLOSED`.
    """
    matches = _tag_pattern(tag).finditer(completion)
    first = next(matches, None)
    if first is None:
        kind = ParseKind.NO_ACTION if completion.strip() else ParseKind.EMPTY
        return Parsed(None, kind)
    action = first[1].strip().lower()
    if not action:
        return Parsed(None, ParseKind.NO_ACTION)
    if not first[2]:
        return Parsed(action, ParseKind.UNCLOSED)
    several = next(matches, None) is not None
    return Parsed(action, ParseKind.MULTI_ACTION if several else ParseKind.OK)
