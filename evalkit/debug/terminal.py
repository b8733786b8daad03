"""The debugger at a terminal: one command a line, typed or piped, until `quit` or the end of input.

An edge: everything that is done to the episode is `Workbench.do`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import TextIO

from evalkit.debug.futures import side_by_side
from evalkit.debug.session import Debugger, Phase
from evalkit.debug.view import view
from evalkit.debug.workbench import FIRST, Verb, Workbench
from evalkit.errors import BadConfig, EvalkitError
from evalkit.play.contract import EnvRaised
from evalkit.show.replay import printable, turn_lines

SHOWN_TURNS = 8
"""Turns that `compare` prints from the parting on; `turns` has them all."""
_VERBS = {
    Verb.STEP: "[N]  play one turn, or N",
    Verb.ASK: "get the reply, and wait before it is taken: look, change it, step",
    Verb.RUN: "[T]  play to the end, or until turn T is to be played; Ctrl-C pauses",
    Verb.BACK: "T  return to the beginning of turn T, as it was before any change",
    Verb.OBSERVATION: "TEXT  show the model this instead",
    Verb.NOTES: "TEXT  write this into the scratchpad",
    Verb.REPLY: "TEXT  put this in the model's mouth",
    Verb.ACTION: "ACTION  force an action",
    Verb.MODEL: "MODEL  another model plays from here: URL[#NAME], random, oracle, script:FILE",
    Verb.STRATEGY: "NAME  another history strategy keeps the past from here",
    Verb.LIVE: "ask the model from here on, also where replies are recorded",
    Verb.FORK: "[T [NAME]]  begin another future at turn T, or here, and switch to it",
    Verb.SWITCH: "NAME  go on with another future",
    Verb.SAVE: "write this future as a run, for replay, report and view",
}
_LOOKS = {
    "show": "where the episode stands",
    "prompt": "[raw]  the exact messages of this turn; raw: the bytes that are sent",
    "state": "the env's whole state, and what is hidden from the model",
    "turns": "what was played so far",
    "futures": "the futures on the bench",
    "compare": "[A [B]]  two futures side by side, from the turn on in which they part",
    "help": "this",
    "quit": "leave; what was not saved is lost",
}
_SHORT = {
    "s": "step",
    "n": "step",
    "r": "run",
    "b": "back",
    "p": "prompt",
    "q": "quit",
    "?": "help",
}


class Terminal:
    """A command loop over a bench."""

    def __init__(
        self, bench: Workbench, runner: asyncio.Runner, out: TextIO, *, echo: bool = False
    ) -> None:
        """`echo` prints each command, for input that nobody types."""
        self._bench = bench
        bench.tell = lambda turn: self._say(*turn_lines(turn))
        self._runner = runner
        self._out = out
        self._echo = echo
        self.failed = False
        """Whether a command could not be carried out."""

    def loop(self, read: Callable[[str], str]) -> None:
        """Carry out lines until `quit` or `EOFError`; Ctrl-C stops what runs, not the loop."""
        self._say(*_standing(self._bench))
        while True:
            try:
                line = read(f"({self._bench.current} {self._bench.debugger.turn}) ")
            except EOFError:
                return
            except KeyboardInterrupt:
                self._say("", "quit leaves")
                continue
            if self._echo:
                self._say(f"> {line}")
            if line.strip() in {"quit", "q"}:
                return
            self._carry_out(line.strip())

    def _carry_out(self, line: str) -> None:
        try:
            self._say(*self._done(line))
        except KeyboardInterrupt:
            self._say("paused", *_standing(self._bench))
        except (EvalkitError, EnvRaised) as error:
            self.failed = True
            said = str(error) or f"the env raised {error.__cause__!r}"
            self._say(f"error: {printable(' '.join(said.split()))}")

    def _done(self, line: str) -> Iterator[str]:
        """Carry out one line and yield what it has to say."""
        word, _, text = line.partition(" ")
        word, text = _SHORT.get(word, word), _text(text.strip())
        if not word:
            return
        if word in _LOOKS:
            yield from self._look(word, text)
            return
        if word not in set(Verb):
            raise BadConfig(f"no command {word!r}: help lists them")
        self._runner.run(self._bench.do(Verb(word), text))
        if word == Verb.SAVE:
            yield f"saved as {self._bench.saved}"
        else:
            yield from _standing(self._bench)

    def _look(self, word: str, text: str) -> Iterator[str]:
        debugger = self._bench.debugger
        if word == "show":
            yield from _standing(self._bench)
        elif word == "help":
            yield from _help()
        elif word == "prompt":
            yield from _prompt(debugger, raw=text == "raw")
        elif word == "state":
            seen = view(debugger)
            yield printable(json.dumps(seen["state"], indent=2, ensure_ascii=False))
            yield printable(seen["picture"] or "")
        elif word == "turns":
            yield from (line for turn in debugger.turns for line in turn_lines(turn))
        elif word == "futures":
            for branch in self._bench.view()["branches"]:
                mark = "*" if branch["name"] == self._bench.current else " "
                yield f"{mark} {branch['name']}: {branch['ending']}; {branch['model']}"
        else:
            yield from self._compared(text.split())

    def _compared(self, names: list[str]) -> Iterator[str]:
        current = self._bench.current
        if len(names) > 2:
            raise BadConfig("compare takes two futures at most")
        if not names:
            names = [FIRST if current != FIRST else "recorded", current]
        left, right = names if len(names) == 2 else (names[0], current)
        yield from side_by_side(*self._bench.futures(left, right), most_turns=SHOWN_TURNS)

    def _say(self, *lines: str) -> None:
        for line in lines:
            self._out.write(f"{line}\n")
        self._out.flush()


def _standing(bench: Workbench) -> Iterator[str]:
    """Yield where the future at hand stands, in a few lines."""
    seen = view(bench.debugger)
    asked = "replies as recorded" if seen["follows_record"] else bench.branch.model
    yield ""
    yield f"turn {seen['turn']} of at most {seen['max_turns']}; {seen['strategy']}, {asked}"
    yield _under("sees", seen["observation"])
    if seen["notes"]:
        yield _under("notes", seen["notes"])
    for made in seen["interventions"]:
        if made["turn"] == seen["turn"]:
            yield _under("changed", f"{made['kind']}: {made['value']}")
    if seen["phase"] == Phase.OVER:
        verdict = "success" if seen["success"] else "no success"
        why = f": {printable(seen['failure_message'])}" if seen["failure_message"] else ""
        yield f"over, {seen['stop_reason']}, {verdict}, return {seen['return']:.2f}{why}"
        return
    yield _under("can", f"{', '.join(seen['legal_actions'])}; best: {seen['oracle']}")
    if seen["reply"] is not None:
        yield _under("reply", seen["reply"] or "(nothing)")


def _under(word: str, text: str) -> str:
    return f"{word:>8}: " + printable(text.strip()).replace("\n", f"\n{'':>10}")


def _prompt(debugger: Debugger, *, raw: bool) -> Iterator[str]:
    seen = view(debugger)["prompt"]
    if seen["digest"] is None:
        yield "the episode is over: nothing is asked any more"
    elif raw:
        yield "[" + ",".join(message.json.decode() for message in debugger.prompt()) + "]"
    else:
        for message in seen["messages"]:
            yield f"--- {message['role']}"
            yield printable(message["content"])
    yield f"--- digest {seen['digest']}"


def _help() -> Iterator[str]:
    for word, meaning in [*_VERBS.items(), *_LOOKS.items()]:
        yield f"  {word:<9} {meaning}"
    yield '  TEXT of several lines is written as a JSON string: reply "a\\nb"'
    yield "  s, n: step; r: run; b: back; p: prompt; q: quit"


def _text(text: str) -> str:
    """Read a text, or a JSON string where it begins with a quotation mark."""
    if not text.startswith('"'):
        return text
    try:
        read = json.loads(text)
    except ValueError as error:
        raise BadConfig(
            f"a text that begins with a quotation mark is a JSON string: {error}"
        ) from error
    return str(read)
