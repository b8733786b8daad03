"""Several futures of one episode on one bench: what a terminal and a page are two edges of.

Lives here: the verbs, and what each does. Knows neither a terminal nor HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from evalkit.debug.forks import save
from evalkit.debug.futures import Future, parting
from evalkit.debug.interventions import InterventionKind
from evalkit.debug.origin import Episode, Models, OnDemand
from evalkit.debug.session import Debugger
from evalkit.debug.view import view
from evalkit.errors import BadConfig
from evalkit.record.trajectory import Turn

FIRST = "main"
MAX_FUTURES = 100
MAX_DIGITS = 18


class Verb(StrEnum):
    """What can be done to the episode at hand; the text that each takes in brackets."""

    STEP = "step"
    """Play one turn, or [number] turns."""
    ASK = "ask"
    """Get the model's reply, and wait before it is taken."""
    RUN = "run"
    """Play to the end, or until [turn] is to be played."""
    BACK = "back"
    """Return to the beginning of [turn], as it was before any change."""
    OBSERVATION = "obs"
    """Show the model [text] instead."""
    NOTES = "pad"
    """Write [text] into the scratchpad."""
    REPLY = "reply"
    """Put [text] in the model's mouth."""
    ACTION = "do"
    """Force [action]."""
    MODEL = "model"
    """Let another [model] play from here."""
    STRATEGY = "strategy"
    """Let another history [strategy] keep the past from here."""
    LIVE = "live"
    """Ask the model from here on, also where replies are recorded."""
    FORK = "fork"
    """Begin another future at [turn], or here, and switch to it; it may be given a [name]."""
    SWITCH = "switch"
    """Go on with the future called [name]."""
    SAVE = "save"
    """Write this future as a run."""


@dataclass(slots=True)
class Branch:
    """One future."""

    debugger: Debugger
    model: str
    """Who plays live, as `--model` has it."""


class Workbench:
    """One episode in several futures, one of them at hand."""

    def __init__(self, episode: Episode, models: Models) -> None:
        self._episode = episode
        self._models = models
        self.tell: Callable[[Turn], None] = _nobody
        """Is told every turn that is stepped or run through, as it is played."""
        self.saved: Path | None = None
        """Where the last saved future lies."""
        debugger = episode.debugger(OnDemand(models, models.first))
        self.branches = {FIRST: Branch(debugger, models.first)}
        self.current = FIRST

    @property
    def branch(self) -> Branch:
        """The future at hand."""
        return self.branches[self.current]

    @property
    def debugger(self) -> Debugger:
        """The future at hand, to look into."""
        return self.branch.debugger

    async def do(self, verb: Verb, text: str = "") -> None:
        """Do one thing to the future at hand; cancelled, it stops between two turns.

        Raises:
            BadConfig: that cannot be done now, or not with this text.
            CallFailed: a call failed; nothing was played.
            ReplayDiffers: the recorded episode does not play the same again.

        """
        if verb in _CHANGES:
            self.debugger.intervene(_CHANGES[verb], text)
            return
        verbs: Mapping[Verb, Callable[[str], Awaitable[None]]] = {
            Verb.STEP: self._step,
            Verb.ASK: self._ask,
            Verb.RUN: self._run,
            Verb.BACK: self._back,
            Verb.MODEL: self._model,
            Verb.LIVE: self._live,
            Verb.FORK: self._fork,
            Verb.SWITCH: self._switch,
            Verb.SAVE: self._save,
        }
        await verbs[verb](text.strip())

    def view(self) -> dict[str, Any]:
        """Return everything there is to see, as JSON types."""
        at_hand = self._future(self.current)
        branches = [
            {
                "name": name,
                "model": branch.model,
                "strategy": str(branch.debugger.arm.strategy),
                "ending": (future := self._future(name)).ending,
                "parts_at": parting(at_hand, future),
            }
            for name, branch in self.branches.items()
        ]
        return {
            **view(self.debugger),
            "name": self.current,
            "model": self.branch.model,
            "branches": branches,
            "saved": None if self.saved is None else str(self.saved),
        }

    def futures(self, left: str, right: str) -> tuple[Future, Future]:
        """Return two futures by name; `recorded` is the episode as it was recorded.

        Raises:
            BadConfig: there is none of that name.

        """
        return self._future(left), self._future(right)

    def _future(self, name: str) -> Future:
        recorded = self._episode.recorded
        if name == "recorded" and recorded is not None:
            return Future.of(name, recorded)
        if name not in self.branches:
            known = [*self.branches, *(["recorded"] if recorded else [])]
            raise BadConfig(f"no future {name!r}: there are {', '.join(known)}")
        return Future.of_debugger(name, self.branches[name].debugger)

    async def _step(self, text: str) -> None:
        count = _number(text, 1, "turns")
        await self._one()
        await self._until(self.debugger.turn + count - 1)

    async def _ask(self, _: str) -> None:
        await self.debugger.ask()

    async def _run(self, text: str) -> None:
        await self._until(_number(text, 0, "a turn") if text else None)

    async def _until(self, turn: int | None) -> None:
        while self.debugger.end is None and (turn is None or self.debugger.turn < turn):
            await self._one()
            await asyncio.sleep(0)  # lets a pause in, also where no answer takes time

    async def _one(self) -> None:
        before = self.debugger.turn
        await self.debugger.step()
        for turn in self.debugger.turns[before:]:
            self.tell(turn)

    async def _back(self, text: str) -> None:
        if not text:
            raise BadConfig("back needs a turn")
        self.debugger.back(_number(text, 0, "a turn"))
        self.branch.model = _model_of(self.debugger, self.branch.model)

    async def _model(self, text: str) -> None:
        await self._models.open(text)
        self.debugger.use(OnDemand(self._models, text), text)
        self.branch.model = text

    async def _live(self, _: str) -> None:
        self.debugger.leave_record()

    async def _fork(self, text: str) -> None:
        words = text.split()
        turn = _number(words[0], 0, "a turn") if words else self.debugger.turn
        name = words[1] if len(words) > 1 else self._free_name()
        if name in self.branches or name == "recorded":
            raise BadConfig(f"there is a future {name!r} already")
        if len(self.branches) >= MAX_FUTURES:
            raise BadConfig(f"there are {MAX_FUTURES} futures already: go back in one of them")
        other = await self.debugger.fork(turn)
        self.branches[name] = Branch(other, _model_of(other, self.branch.model))
        self.current = name

    async def _switch(self, text: str) -> None:
        if text not in self.branches:
            raise BadConfig(f"no future {text!r}: there are {', '.join(self.branches)}")
        self.current = text

    async def _save(self, _: str) -> None:
        self.saved = await save(self._episode, self.debugger, self._models, self.branch.model)

    def _free_name(self) -> str:
        number = 1
        while f"fork{number}" in self.branches:
            number += 1
        return f"fork{number}"


_CHANGES = {
    Verb.OBSERVATION: InterventionKind.OBSERVATION,
    Verb.NOTES: InterventionKind.NOTES,
    Verb.REPLY: InterventionKind.REPLY,
    Verb.ACTION: InterventionKind.ACTION,
    Verb.STRATEGY: InterventionKind.STRATEGY,
}


def _nobody(_: Turn) -> None:
    """Hear nothing."""


def _model_of(debugger: Debugger, otherwise: str) -> str:
    return debugger.live.text if isinstance(debugger.live, OnDemand) else otherwise


def _number(text: str, least: int, what: str) -> int:
    if not text:
        return least
    if not text.isdecimal() or len(text) > MAX_DIGITS or int(text) < least:
        raise BadConfig(f"expected {what} as a number from {least} on, not {text[:40]!r}")
    return int(text)
