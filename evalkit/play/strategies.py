"""How past turns become messages: six history strategies, each an immutable value.

A strategy starts as a `Strategy` (its parameters), and becomes a `History` when an episode
starts. `History.messages` reads, `History.update` returns the next history; neither changes
anything, so equal inputs give equal bytes whatever else is going on.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from hashlib import blake2b
from typing import ClassVar, Self

import orjson

from envs import TextEnv
from evalkit.errors import RunFailed
from evalkit.record.trajectory import Memory

PAD_OPEN = re.compile("<scratchpad>", re.IGNORECASE)
PAD_CLOSE = re.compile("</scratchpad>", re.IGNORECASE)
PAD_CHARS = 2000


@dataclass(frozen=True, slots=True, init=False)
class Message:
    """One chat message. Serialised and hashed once, however often it is sent; see `message`."""

    role: str
    json: bytes
    digest: bytes

    def __init__(self, role: str, content: str) -> None:
        json = b'{"role":"%b","content":%b}' % (role.encode(), orjson.dumps(content))
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "json", json)
        object.__setattr__(self, "digest", blake2b(json, digest_size=8).digest())

    @property
    def content(self) -> str:
        """The text of the message."""
        text: str = orjson.loads(self.json)["content"]
        return text


Messages = tuple[Message, ...]


def prompt_digest(messages: Messages) -> str:
    """Name a prompt, byte for byte: 16 hexadecimal digits."""
    return blake2b(b"".join([m.digest for m in messages]), digest_size=8).hexdigest()


@lru_cache(maxsize=4096)
def message(role: str, content: str) -> Message:
    """Return the one shared `Message` of a text.

    Every text is needed twice, as what is asked now and as what was asked before; and the episodes
    of one env see many texts in common.
    """
    return Message(role, content)


class History(ABC):
    """The past of one episode, as a strategy keeps it."""

    __slots__ = ()
    keeps_replies = True
    """Whether replies are sent again as they were; then reasoning in them may be kept."""
    last_memory: Memory | None = None
    """What the last reply did to the notes, where the strategy keeps notes."""

    @abstractmethod
    def messages(self, observation: str) -> Messages:
        """Return the prompt for `observation`."""

    @abstractmethod
    def update(self, observation: str, reply: str, action: str | None) -> History:
        """Return the history after `reply` to `observation` was taken as `action`."""

    def shrink(self) -> History | None:
        """Return a shorter history when the prompt does not fit; None when the episode must end."""
        return None

    @property
    def notes(self) -> str:
        """What the policy is reminded of, for people who read a replay; "" for nothing."""
        return ""

    def with_notes(self, notes: str) -> History | None:  # noqa: ARG002 - most keep none
        """Return the history with other notes; None where the policy writes no notes itself."""
        return None


@dataclass(frozen=True, slots=True)
class Strategy(ABC):
    """A history strategy with its parameters: `start` it on an env that was just reset."""

    name: ClassVar[str]

    @abstractmethod
    def start(self, env: TextEnv) -> History:
        """Return the empty history of an episode of `env`."""

    def answer_pattern(self, env: TextEnv) -> str:
        """Return the regular expression that a guided answer must match."""
        return env.action_pattern()

    def __str__(self) -> str:
        shown = ",".join(
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        )
        return f"{self.name}({shown})" if shown else self.name


@dataclass(frozen=True, slots=True)
class NoHistory(Strategy):
    """Only the system prompt and the current observation."""

    name = "NO_HISTORY"

    def start(self, env: TextEnv) -> History:
        """Return the history, which stays empty."""
        return _Stateless(message("system", env.system_prompt))


@dataclass(frozen=True, slots=True)
class _Stateless(History):
    system: Message

    def messages(self, observation: str) -> Messages:
        return (self.system, message("user", observation))

    def update(self, observation: str, reply: str, action: str | None) -> Self:  # noqa: ARG002
        return self


@dataclass(frozen=True, slots=True)
class FullHistory(Strategy):
    """Every past observation and reply, verbatim.

    `overflow` says what happens when that no longer fits the model's context: "stop" ends the
    episode, "drop_oldest" forgets the oldest turn and asks again, "error" ends the run.
    """

    overflow: str = "stop"
    name = "FULL_HISTORY"

    def __post_init__(self) -> None:
        if self.overflow not in {"stop", "drop_oldest", "error"}:
            raise ValueError(f"overflow is stop, drop_oldest or error, not {self.overflow!r}")

    def start(self, env: TextEnv) -> History:
        """Return the history that holds the system prompt."""
        return _Transcript(message("system", env.system_prompt), (), overflow=self.overflow)


@dataclass(frozen=True, slots=True)
class Window(Strategy):
    """The last `k` turns, verbatim."""

    k: int = 4
    name = "WINDOW"

    def __post_init__(self) -> None:
        _at_least(self.k, 1, "WINDOW(k)")

    def start(self, env: TextEnv) -> History:
        """Return the history that holds the system prompt."""
        return _Transcript(message("system", env.system_prompt), (), keep=self.k)


@dataclass(frozen=True, slots=True)
class _Transcript(History):
    system: Message
    past: Messages
    keep: int | None = None
    overflow: str = "stop"

    def messages(self, observation: str) -> Messages:
        return (self.system, *self.past, message("user", observation))

    def update(self, observation: str, reply: str, action: str | None) -> History:  # noqa: ARG002
        past = (*self.past, message("user", observation), message("assistant", reply))
        kept = past if self.keep is None else past[-2 * self.keep :]
        return _Transcript(self.system, kept, self.keep, self.overflow)

    def shrink(self) -> Self | None:
        if self.overflow == "error":
            raise RunFailed("the history outgrew the model's context: FULL_HISTORY(overflow=error)")
        return (
            replace(self, past=self.past[2:])
            if self.overflow == "drop_oldest" and self.past
            else None
        )


@dataclass(frozen=True, slots=True)
class Scratchpad(Strategy):
    """Notes that the model writes itself; no other past.

    The first `<scratchpad>` of a reply replaces the notes; a reply without one keeps them. Notes
    longer than `max_chars` characters are cut, and counted as an overflow.
    """

    max_chars: int = PAD_CHARS
    name = "SCRATCHPAD"

    def __post_init__(self) -> None:
        _at_least(self.max_chars, 1, "SCRATCHPAD(max_chars)")

    def start(self, env: TextEnv) -> History:
        """Return the history with an empty scratchpad."""
        system = message("system", f"{env.system_prompt}\n\n{env.scratchpad_prompt}")
        return _Notes(system, self.max_chars)

    def answer_pattern(self, env: TextEnv) -> str:
        """Admit a scratchpad, and then the action."""
        size = min(self.max_chars, 400)
        return rf"<scratchpad>[^<]{{1,{size}}}</scratchpad>\n{env.action_pattern()}"


@dataclass(frozen=True, slots=True)
class _Notes(History):
    keeps_replies = False
    system: Message
    max_chars: int
    pad: str = ""
    last_memory: Memory | None = None

    def messages(self, observation: str) -> Messages:
        return (self.system, message("user", _with_notes("Your notes", self.pad, observation)))

    def update(self, observation: str, reply: str, action: str | None) -> Self:  # noqa: ARG002
        opened = PAD_OPEN.search(reply)
        closed = PAD_CLOSE.search(reply, opened.end()) if opened else None
        if opened is None or closed is None:
            return replace(self, last_memory=Memory.MISSING)
        pad = reply[opened.end() : closed.start()].strip()
        if len(pad) > self.max_chars:
            return replace(self, pad=pad[: self.max_chars], last_memory=Memory.OVERFLOW)
        return replace(self, pad=pad, last_memory=Memory.REPLACED)

    @property
    def notes(self) -> str:
        return self.pad

    def with_notes(self, notes: str) -> Self:
        return replace(self, pad=notes[: self.max_chars])


@dataclass(frozen=True, slots=True)
class OptimalScratchpad(Strategy):
    """Perfect notes, written by the env: tells "cannot remember" from "cannot use memory"."""

    name = "OPTIMAL_SCRATCHPAD"

    def start(self, env: TextEnv) -> History:
        """Return the history that asks the env for its notes."""
        return _EnvNotes(message("system", env.system_prompt), env.optimal_scratchpad)


@dataclass(frozen=True, slots=True)
class _EnvNotes(History):
    system: Message
    read: Callable[[], str]

    def messages(self, observation: str) -> Messages:
        return (self.system, message("user", _with_notes("Your notes", self.read(), observation)))

    def update(self, observation: str, reply: str, action: str | None) -> Self:  # noqa: ARG002
        return self

    @property
    def notes(self) -> str:
        return self.read()


@dataclass(frozen=True, slots=True)
class Summary(Strategy):
    """The last `k` turns verbatim, and one line for each turn before them.

    The lines are made by rule, not by a model: the action taken and how what was seen began. A
    run with this strategy therefore costs no extra calls and repeats exactly.
    """

    k: int = 2
    name = "SUMMARY"

    def __post_init__(self) -> None:
        _at_least(self.k, 1, "SUMMARY(k)")

    def start(self, env: TextEnv) -> History:
        """Return the history that holds the system prompt."""
        return _Digest(message("system", env.system_prompt), self.k, (), ())


@dataclass(frozen=True, slots=True)
class _Digest(History):
    system: Message
    keep: int
    lines: tuple[str, ...]
    recent: Messages

    def messages(self, observation: str) -> Messages:
        shown = _with_notes("Earlier turns", self.notes, observation)
        return (self.system, *self.recent, message("user", shown))

    def update(self, observation: str, reply: str, action: str | None) -> Self:
        line = f"{len(self.lines) + 1}. {_begin(observation)} You: {action or 'no action'}."
        recent = (*self.recent, message("user", observation), message("assistant", reply))
        return replace(self, lines=(*self.lines, line), recent=recent[-2 * self.keep :])

    @property
    def notes(self) -> str:
        return "\n".join(self.lines[: -self.keep])


STRATEGIES: dict[str, type[Strategy]] = {
    cls.name: cls
    for cls in (NoHistory, FullHistory, Scratchpad, OptimalScratchpad, Window, Summary)
}

ALL_STRATEGIES = tuple(
    cls.name for cls in (NoHistory, Window, Summary, FullHistory, Scratchpad, OptimalScratchpad)
)
"""What `all` means: each with its default parameters, from the least memory to the best notes."""


def parse_strategy(text: str) -> Strategy:
    """Read `NAME`, `NAME(value)` or `NAME(parameter=value)`.

    Raises:
        ValueError: no such strategy or parameter.

    """
    match = re.fullmatch(r"\s*([A-Za-z_]+)\s*(?:\((.*)\))?\s*", text)
    cls = STRATEGIES.get(match[1].upper()) if match else None
    if match is None or cls is None:
        raise ValueError(f"no strategy {text!r}: known are {', '.join(STRATEGIES)}")
    known = {field.name: field for field in fields(cls)}
    values: dict[str, str | int] = {}
    for part in filter(None, (match[2] or "").split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            name, value = next(iter(known), ""), part
        name, value = name.strip(), value.strip()
        if name in values:
            raise ValueError(f"{cls.name}: {name} is given twice")
        if name not in known:
            raise ValueError(
                f"{cls.name} takes {', '.join(known) or 'no parameters'}, not {part!r}"
            )
        values[name] = int(value) if re.fullmatch("-?[0-9]{1,9}", value) else value
        if isinstance(known[name].default, int) and not isinstance(values[name], int):
            raise ValueError(f"{cls.name}({name}) is a whole number, not {value!r}")
    return cls(**values)


def _with_notes(title: str, notes: str, observation: str) -> str:
    return f"## {title}\n{notes}\n\n## Now\n{observation}" if notes else observation


def _begin(text: str, limit: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}..."


def _at_least(value: int, least: int, what: str) -> None:
    if value < least:
        raise ValueError(f"{what} is at least {least}, not {value}")
