"""tool_test: call the named ones of four dummy tools, with the arguments that a request states.

Lives here: the tools, the requests and the env. Nothing must be found out, only done exactly; from
the second round on an argument may be what a tool gave in an earlier one.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from envs.base import EpisodeOver, Info, Parsed, StepResult, TextEnv
from envs.tasks import call_checker, calls
from envs.tasks.call_checker import Expected, fits, why_wrong
from envs.tasks.calls import Call, Function, NotCalls
from envs.tasks.rows import digest_of, source_of

_UNGUESSABLE = ("shift", "label")
_WORDS = "lamp river stone cloud paper garden window copper winter bridge candle forest".split()


@dataclass(frozen=True, slots=True)
class _Tool:
    """One tool: its only parameter, and what it says that it does."""

    name: str
    parameter: str
    kind: str
    description: str

    @property
    def function(self) -> Function:
        """The tool, as functions are described."""
        argument = {"type": self.kind, "description": "What to work on."}
        parameters = {
            "type": "dict",
            "properties": {self.parameter: argument},
            "required": [self.parameter],
        }
        return Function(name=self.name, description=self.description, parameters=parameters)


_TOOLS = (
    _Tool("shift", "number", "integer", "Moves a whole number by a distance that only it knows."),
    _Tool("label", "text", "string", "Adds a letter to a text that only it knows."),
    _Tool("scale", "amount", "float", "Multiplies a number by a factor that only it knows."),
    _Tool("flip", "state", "boolean", "Gives true or false back, perhaps turned round."),
)
TOOLS = {tool.name: tool for tool in _TOOLS}
FUNCTIONS = tuple(tool.function for tool in _TOOLS)


@dataclass(frozen=True, slots=True)
class _Ask:
    """One call that is asked for. `of_round`: whose result is the argument; None for `value`."""

    tool: str
    value: Any
    of_round: int | None


class ToolTest(TextEnv):
    """Do what each round's request says: a round done right earns its share of 1.0.

    A round is one turn: all calls of its request in one reply, in any order, and no other. There
    is no second try, and success is every round done right. What the tools give depends on secrets
    drawn with the episode and is shown once, after the round. `rounds`: 1 to 10.

    As in other tasks with open-ended actions, `legal_actions` is a sample: the right calls, nearly
    right ones, none.
    """

    id = "tool_test"
    action_tag = calls.TAG

    def __init__(self, *, rounds: int = 3) -> None:
        if not 1 <= rounds <= 10:
            raise ValueError(f"rounds must be between 1 and 10, got {rounds}")
        self.rounds = self.max_turns = rounds
        self._seed = self._turn = self._right = 0
        self._asks: tuple[tuple[_Ask, ...], ...] = ()
        self._secrets: Mapping[str, Any] = {}
        self._shown: tuple[str, ...] = ()
        self._over = True

    @property
    def params(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"rounds": self.rounds}

    def data_digest(self) -> str:
        """Name the rules of reading and checking calls; see `envs.registry.digest`."""
        return digest_of(source_of(calls), source_of(call_checker))

    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        """Draw the requests and what the tools do.

        Raises:
            ValueError: `options` are given: this env has none.

        """
        if options:
            raise ValueError(f"tool_test takes no options, got {dict(options)}")
        rng = random.Random(seed)
        self._seed = seed
        self._asks = _requests(rng, self.rounds)
        self._secrets = {
            "shift": rng.choice([-1, 1]) * rng.randint(11, 99),
            "label": rng.choice("abcdefghijklmnopqrstuvwxyz"),
            "scale": rng.choice([0.5, 1.5, 2.5, 3.5, 4.5]),
            "flip": rng.random() < 0.5,
        }
        self._turn = self._right = 0
        self._shown = ()
        self._over = False
        return self._request(), {}

    def step(self, action: str) -> StepResult:
        """Make the calls of a round; see `TextEnv.step`.

        `info["event"]`: right, wrong, no_calls.
        """
        if self._over:
            raise EpisodeOver("the episode is over or was never reset: call reset first")
        reward, info = 0.0, Info()
        try:
            made = calls.offered(action, FUNCTIONS)
        except NotCalls as error:
            info = {"illegal": True, "error": str(error), "event": "no_calls"}
            shown = f"That was not valid: {error}."
        else:
            shown = "; ".join(self._result(call) for call in made) or "No tool was called."
            right = not why_wrong(made, self._wanted(self._turn), FUNCTIONS)
            info["event"] = "right" if right else "wrong"
            reward = float(right) / self.rounds
            self._right += right
        self._turn += 1
        self._shown = (*self._shown, shown)
        self._over = self._turn == self.rounds
        after = "That was the last round." if self._over else self._request()
        return f"{shown}\n{after}", reward, self._over, False, info

    @property
    def success(self) -> bool:
        """Whether every round was done right."""
        return self._right == self.rounds

    def legal_actions(self) -> tuple[str, ...]:
        """Return a sample: the right calls first, then nearly right ones, and none."""
        return call_checker.sample_actions(self._wanted(self._turn), FUNCTIONS)

    def action_pattern(self) -> str:
        """Return a regular expression that admits a list in one line."""
        return calls.ACTION_PATTERN

    def parse(self, completion: str) -> Parsed:
        """Read the calls as function_calling does."""
        return calls.parse_calls(completion)

    def oracle(self) -> str:
        """Return the round's calls."""
        return calls.write_calls(call_checker.best_calls(self._wanted(self._turn), FUNCTIONS))

    def state(self) -> dict[str, Any]:
        """Return the episode, the tools' secrets included."""
        return {
            "seed": self._seed,
            "secrets": dict(self._secrets),
            "turn": self._turn,
            "right": self._right,
            "shown": list(self._shown),
            "over": self._over,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._seed = state["seed"]
        self._asks = _requests(random.Random(self._seed), self.rounds)
        self._secrets = dict(state["secrets"])
        self._turn, self._right = state["turn"], state["right"]
        self._shown, self._over = tuple(state["shown"]), state["over"]

    def clone(self) -> Self:
        """Return an independent copy: no field is ever changed in place."""
        return copy.copy(self)

    @property
    def system_prompt(self) -> str:
        """The tools and the answer's format."""
        return (
            f"{calls.offer(FUNCTIONS)}\n"
            f"There are {self.rounds} rounds. Each asks for certain calls: make exactly these, all "
            "in one answer. What the functions give is shown to you afterwards, once; a later "
            "round may ask for it."
        )

    @property
    def scratchpad_prompt(self) -> str:
        """What is worth noting here."""
        return (
            "You do not see earlier turns. Before your calls, write your notes between "
            "<scratchpad> and </scratchpad>. They replace your old notes and are all you will "
            "remember, so repeat what still matters: what each function gave in each round.\n"
            "Example: <scratchpad>Round 1: shift gave 12, label gave lampk.</scratchpad>"
        )

    def optimal_scratchpad(self) -> str:
        """Return what each round has shown."""
        rounds = [f"Round {number}: {shown}" for number, shown in enumerate(self._shown, 1)]
        return "\n".join(rounds) or "Nothing was called yet."

    def render(self) -> str:
        """Show the secrets, the rounds so far and the request."""
        status = "over" if self._over else self._request()
        return "\n".join([f"secrets {dict(self._secrets)}", *self._shown, status])

    def tools(self) -> list[dict[str, Any]]:
        """Return the tools as OpenAI tools."""
        return [function.as_tool() for function in FUNCTIONS]

    def _request(self) -> str:
        asked = [
            f"{ask.tool} with {TOOLS[ask.tool].parameter} = {_said(ask)}"
            for ask in self._asks[self._turn]
        ]
        return f"Round {self._turn + 1} of {self.rounds}. Call {'; and '.join(asked)}."

    def _wanted(self, turn: int) -> list[Expected]:
        """Return the calls of a round."""
        return [
            Expected(ask.tool, {TOOLS[ask.tool].parameter: [self._argument(ask)]})
            for ask in self._asks[turn]
        ]

    def _argument(self, ask: _Ask) -> Any:  # noqa: ANN401 - of the tool's type
        if ask.of_round is None:
            return ask.value
        earlier = next(one for one in self._asks[ask.of_round] if one.tool == ask.tool)
        return _applied(ask.tool, self._argument(earlier), self._secrets)

    def _result(self, call: Call) -> str:
        """Return what a tool gives, in words, whether or not it was asked for."""
        tool = TOOLS[call.name]
        value = call.arguments.get(tool.parameter)
        whole = isinstance(value, (int, float)) and abs(value) > 1e15
        if set(call.arguments) != {tool.parameter} or not fits(value, {"type": tool.kind}) or whole:
            return f"{tool.name} failed: it takes {tool.parameter}, of type {tool.kind}"
        return f"{tool.name} gave {_shown(_applied(tool.name, value, self._secrets))}"


def _requests(rng: random.Random, rounds: int) -> tuple[tuple[_Ask, ...], ...]:
    """Draw what every round asks for: one to three calls.

    The last round needs what a tool gave in the first, one whose result cannot be guessed.
    """
    asked: list[tuple[_Ask, ...]] = []
    recalled = rng.choice(_UNGUESSABLE)
    for number in range(rounds):
        names = rng.sample(list(TOOLS), rng.randint(1, 3))
        last = 0 < number == rounds - 1
        if (last or number == 0) and recalled not in names:
            names[0] = recalled
        asked.append(
            tuple(
                _Ask(name, None, 0) if last and name == recalled else _draw(rng, name, asked)
                for name in names
            )
        )
    return tuple(asked)


def _draw(rng: random.Random, name: str, asked: Sequence[tuple[_Ask, ...]]) -> _Ask:
    """Draw one argument: a value, or as likely what the tool gave in an earlier round."""
    rounds = [at for at, asks in enumerate(asked) if any(ask.tool == name for ask in asks)]
    if rounds and rng.random() < 0.5:
        return _Ask(name, None, rng.choice(rounds))
    values = {
        "shift": rng.randint(100, 999),
        "label": rng.choice(_WORDS),
        "scale": rng.randint(1, 40) / 4,
        "flip": rng.random() < 0.5,
    }
    return _Ask(name, values[name], None)


def _applied(name: str, value: Any, secrets: Mapping[str, Any]) -> Any:  # noqa: ANN401 - its type
    if name == "flip":
        return value is not secrets["flip"]
    return value * secrets["scale"] if name == "scale" else value + secrets[name]


def _said(ask: _Ask) -> str:
    if ask.of_round is None:
        return _shown(ask.value)
    return f"what {ask.tool} gave in round {ask.of_round + 1}"


def _shown(value: object) -> str:
    """Write a value as JSON does, a long text cut."""
    return json.dumps(value[:60] if isinstance(value, str) else value)
