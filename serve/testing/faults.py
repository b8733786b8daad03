"""What a FakeEngine does wrong, and when: by count and by clock, never by chance."""

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Self


class Fault(StrEnum):
    """One way in which a request can fail; the value is the field of Faults that asks for it."""

    RESET = "reset_every"
    """The connection is reset before any byte."""
    SILENT = "silent_every"
    """No answer ever comes; the connection stays open."""
    TOO_MANY = "too_many_every"
    """429 with Retry-After."""
    HTML = "html_500_every"
    """500 with an HTML page, as proxies send."""
    HALF_JSON = "half_json_every"
    """200 with a complete body that is the first half of the JSON."""
    OVERSIZED = "oversized_every"
    """200 with a reply of 1 MB."""
    NO_CHOICES = "no_choices_every"
    """200 with an empty list of choices."""
    CUT = "cut_every"
    """200 whose connection closes in the middle of the body."""
    CUT_STREAM = "cut_stream_every"
    """A stream whose connection closes after half its tokens, between two events."""
    CUT_MID_EVENT = "cut_mid_event_every"
    """A stream whose connection closes after half its tokens, in the middle of an event."""
    ERROR_EVENT = "error_event_every"
    """A stream that ends after half its tokens with an error, as vLLM's do when its core dies."""
    GARBAGE = "garbage_every"
    """Bytes that are no HTTP."""
    HUGE_HEADER = "huge_header_every"
    """200 with a header of 100 kB."""
    NEGATIVE_CHUNK = "negative_chunk_every"
    """200 whose first chunk has a size below zero."""
    SLOW = "slow_every"
    """All the waiting is ten times as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Faults of a FakeEngine. `x_every=N` strikes every Nth completion request; 0 is never.

    Where several strike the same request, the first in the order of `Fault` does.
    """

    reset_every: int = 0
    silent_every: int = 0
    too_many_every: int = 0
    html_500_every: int = 0
    half_json_every: int = 0
    oversized_every: int = 0
    no_choices_every: int = 0
    cut_every: int = 0
    cut_stream_every: int = 0
    cut_mid_event_every: int = 0
    error_event_every: int = 0
    garbage_every: int = 0
    huge_header_every: int = 0
    negative_chunk_every: int = 0
    slow_every: int = 0
    cold_requests: int = 0
    """The first so many completion requests get 503 with Retry-After."""
    cold_s: float = 0.0
    """Completions get 503 with Retry-After, and /health 503, for so long after the start."""
    retry_after_s: int = 0
    """What Retry-After says in a 429 and a 503."""
    delay_s: float = 0.0
    """Every completion waits so long for its first token."""
    keepalive_s: float = 0.0
    """A connection on which nothing comes for so long is closed; 0 is never."""
    close_idle_after_requests: int = 0
    """A connection is closed right after so many answers, without a word of that in them."""
    stale_weights: bool = False
    """New weights and adapters are taken and labelled, and the old weights go on answering."""
    chunked: bool = False
    """Bodies go in chunks instead of under a Content-Length."""
    _asked: tuple[tuple[Fault, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        asked = ((fault, getattr(self, fault.value)) for fault in Fault)
        object.__setattr__(self, "_asked", tuple((fault, n) for fault, n in asked if n))

    @classmethod
    def parse(cls, assignments: list[str]) -> Self:
        """Read `name=value` pairs, as the command line has them; ValueError names a bad one."""
        types = {each.name: each.type for each in fields(cls) if each.init}
        values: dict[str, int | float | bool] = {}
        for assignment in assignments:
            name, _, value = assignment.partition("=")
            if name not in types:
                raise ValueError(f"no fault {name!r}; there are: {', '.join(types)}")
            values[name] = float(value) if types[name] is float else int(value)
        return cls(**values)  # type: ignore[arg-type]  # each value was read as its field's type

    def strikes(self, count: int) -> Fault | None:
        """Which fault strikes the completion request number `count`, the first being 1."""
        for fault, every in self._asked:
            if count % every == 0:
                return fault
        return None
