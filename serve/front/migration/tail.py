"""What a client has of a stream so far: its token ids, its text, and where it was cut. Pure.

Bytes are taken as they pass and read only now and then, or when somebody asks.
"""

from array import array
from collections import deque
from typing import Any, Final

import msgspec

from serve.front.migration.ask import Ask
from serve.front.migration.framing import Framing, Unjoinable

_UNREAD_BYTES = 32_768
"""So much is kept before it is read: a short stream that is never cut is never read."""
DATA: Final = b"data: "
END: Final = b"\n\n"
DONE: Final = b"[DONE]"


class Delta(msgspec.Struct):
    """A piece of a chat message."""

    content: str | None = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None

    @property
    def is_text_only(self) -> bool:
        """Whether no parser took anything out of the text."""
        return not (self.reasoning or self.reasoning_content or self.tool_calls)


class Choice(msgspec.Struct):
    """What an event says of the one completion."""

    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class Event(msgspec.Struct):
    """An event of a chat's or a completion's stream."""

    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[Choice] = []
    usage: Any = None
    system_fingerprint: str | None = None
    prompt_token_ids: list[int] | None = None
    error: Any = None


decode: Final = msgspec.json.Decoder(Event).decode


class Tail:
    """Follows the body of one stream. `broken` says why nobody else could go on with it."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.framing = Framing()
        self.partial = b""
        """An event that has begun."""
        self.first: Event | None = None
        self.prompt_ids: list[int] | None = None
        self.ids = array("q")
        self.text = ""
        self.continuous = False
        """Whether every event has the usage so far."""
        self.finished = self.usage_sent = self.done = False
        self.broken = ""
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._read_bytes = 0
        self._lookback = ask.lookback_chars
        self._anchors: deque[tuple[int, int]] = deque()
        """The newest point that is safely before the end, and those after it."""

    def feed(self, data: bytes) -> None:
        """Take what went to the client."""
        self._unread.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > _UNREAD_BYTES:
            self.digest()

    def digest(self) -> None:
        """Read what was taken since the last time."""
        data = b"".join(self._unread)
        self._read_bytes += len(data)
        self._unread = []
        self._unread_bytes = 0
        if self.broken:
            return
        try:
            *events, self.partial = (self.partial + self.framing.payload(data)).split(END)
            for event in events:
                self._take(event)
        except (Unjoinable, msgspec.DecodeError, UnicodeDecodeError) as error:
            self.broken = str(error)

    @property
    def is_empty(self) -> bool:
        """Whether not one byte went out."""
        return not self._read_bytes and not self._unread_bytes

    @property
    def is_clean(self) -> bool:
        """Whether a whole event could follow."""
        return not self.broken and not self.partial and self.framing.at_boundary

    @property
    def anchor(self) -> tuple[int, int]:
        """The tokens after which another engine may begin, and the characters that they make.

        An engine that begins in the middle of a character repeats its prompt, and one that begins
        in the middle of a stop string does not know it: both need a token that is safely before.
        """
        if not self._anchors or self._anchors[0][1] > len(self.text) - self._lookback:
            return 0, 0
        tokens, chars = self._anchors[0]
        return tokens, chars + self.ask.held_chars

    def _take(self, raw: bytes) -> None:
        if not raw.startswith(DATA):
            raise Unjoinable(f"expected an event, got {raw[:40]!r}")
        data = raw[len(DATA) :]
        if data == DONE:
            self.done = True
            return
        event = decode(data)
        if event.error is not None:
            raise Unjoinable("the engine reported an error")
        if self.first is None:
            self.first = event
            self.continuous = event.usage is not None
        if event.prompt_token_ids is not None:
            self.prompt_ids = event.prompt_token_ids
        if event.choices:
            self._take_choice(event.choices)
        else:
            self.usage_sent = True

    def _take_choice(self, choices: list[Choice]) -> None:
        choice = choices[0]
        text = choice.text
        if choice.delta is not None:
            text = choice.delta.content if choice.delta.is_text_only else None
        if text is None or len(choices) > 1 or choice.index or self.finished:
            raise Unjoinable("there is more in the stream than one text")
        if choice.prompt_token_ids is not None:
            self.prompt_ids = choice.prompt_token_ids
        if choice.token_ids is None and text:
            raise Unjoinable("there is text without its token ids")
        self.ids.extend(choice.token_ids or [])
        self.text += text
        self.finished = choice.finish_reason is not None
        # Of several tokens in one event, the last may be a character's first piece.
        if text and choice.token_ids is not None and len(choice.token_ids) == 1:
            self._anchors.append((len(self.ids), len(self.text)))
        safe = len(self.text) - self._lookback
        while len(self._anchors) > 1 and self._anchors[1][1] <= safe:
            self._anchors.popleft()
