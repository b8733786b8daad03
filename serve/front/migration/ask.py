"""Which streams another replica could go on with, and what it must then be asked. Pure.

Only what is known to be safe is let in: one greedy stream of text, whose token ids pass by, and
whose every parameter either shaped the prompt, or can be asked for again, or changes nothing.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

CHAT: Final = b"/v1/chat/completions"
TEXT: Final = b"/v1/completions"

_DEFAULT_MAX_TOKENS = 16
"""What /v1/completions makes when it is not told."""

_SHAPED_THE_PROMPT = frozenset(
    "model messages prompt chat_template chat_template_kwargs add_generation_prompt documents "
    "continue_final_message add_special_tokens truncate_prompt_tokens truncation_side".split()
)
_WITHOUT_EFFECT = frozenset("user seed top_p top_k min_p request_id length_penalty".split())
"""Of a greedy answer, no token depends on these."""
_CHECKED = frozenset(
    "stream temperature n return_token_ids max_tokens max_completion_tokens min_tokens".split()
)
_CARRIED = frozenset(
    # A repetition penalty weighs what was asked and what was answered alike; the other penalties
    # count only what was answered, so that an answer in two parts would be another one.
    "stop stop_token_ids include_stop_str_in_output ignore_eos skip_special_tokens priority "
    "cache_salt session_id stream_options repetition_penalty".split()
)
_KNOWN = _SHAPED_THE_PROMPT | _WITHOUT_EFFECT | _CHECKED | _CARRIED
_HARMLESS: Final[dict[str, Any]] = {
    "bad_words": [],
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "include_reasoning": True,
    "logit_bias": {},
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "spaces_between_special_tokens": True,
    "tool_choice": "none",
    "tools": [],
    "use_beam_search": False,
}
"""Fields that are let in with this value only."""


class _Part(msgspec.Struct):
    type: str = "text"


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_messages = msgspec.json.Decoder(list[_Message]).decode
_prompt = msgspec.json.Decoder(str | list[int]).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a client asked for, as far as the rest of its answer depends on it."""

    is_chat: bool
    max_tokens: int
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    include_usage: bool = False
    carried: dict[str, Any]
    """Fields that go into the request for the rest as they were."""

    @property
    def lookback_chars(self) -> int:
        """How many characters before the end may be the beginning of a stop string."""
        return max(map(len, self.stop), default=1) - 1

    @property
    def held_chars(self) -> int:
        """How many characters the engine keeps back because of that."""
        return 0 if self.include_stop else self.lookback_chars


def read(path: bytes, body: bytes) -> Ask | None:
    """Return what is asked, or None where another engine could not go on bit for bit."""
    if path not in (CHAT, TEXT):
        return None
    try:
        raw = {name: value for name, value in _fields(body).items() if bytes(value) != b"null"}
        if not _is_text(raw, is_chat=path == CHAT):
            return None
        rest = {
            name: msgspec.json.decode(value)
            for name, value in raw.items()
            if name not in _SHAPED_THE_PROMPT
        }
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not _is_greedy(rest) or not all(map(_is_harmless, rest.items())):
        return None
    return _ask(rest, is_chat=path == CHAT)


def _is_text(raw: dict[str, msgspec.Raw], *, is_chat: bool) -> bool:
    """Whether there is one prompt and it is text: what is in images is not in the token ids."""
    if is_chat:
        messages = _messages(raw["messages"]) if "messages" in raw else []
        parts = [part for m in messages if isinstance(m.content, list) for part in m.content]
        return all(part.type == "text" for part in parts)
    return "prompt" in raw and bool(_prompt(raw["prompt"]))


def _is_greedy(rest: dict[str, Any]) -> bool:
    temperature = rest.get("temperature")
    return (
        rest.get("stream") is True
        and rest.get("return_token_ids") is True
        and isinstance(temperature, int | float)
        and temperature is not False
        and temperature == 0
        and rest.get("n", 1) == 1
    )


def _is_harmless(field: tuple[str, Any]) -> bool:
    name, value = field
    if name in _KNOWN:
        return True
    # JSON knows true from 1: `logprobs: 0` asks for some.
    harmless = _HARMLESS.get(name)
    alike = isinstance(value, bool) == isinstance(harmless, bool)
    return name in _HARMLESS and alike and bool(value == harmless)


def _ask(rest: dict[str, Any], *, is_chat: bool) -> Ask | None:
    default = None if is_chat else _DEFAULT_MAX_TOKENS
    max_tokens = rest.get("max_completion_tokens" if is_chat else "max_tokens")
    max_tokens = rest.get("max_tokens", default) if max_tokens is None else max_tokens
    min_tokens = rest.get("min_tokens", 0)
    stop = rest.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    options = rest.get("stream_options", {})
    if (
        not isinstance(max_tokens, int)
        or not isinstance(min_tokens, int)
        or not isinstance(stop, list)
        or not all(isinstance(text, str) and text for text in stop)
        or not isinstance(options, dict)
    ):
        return None
    return Ask(
        is_chat=is_chat,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=tuple(stop),
        include_stop=rest.get("include_stop_str_in_output") is True,
        include_usage=options.get("include_usage") is True,
        carried={name: value for name, value in rest.items() if name in _CARRIED},
    )
