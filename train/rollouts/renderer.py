"""A tokenizer's chat template as evalkit's `Renderer`: transformers' door for rollouts.

What follows a sampled reply is found by rendering a conversation with a mark in the reply's place:
the text after the mark is what the template puts there. It is tokenised by itself, once per text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from evalkit.play.strategies import Message, Messages
from train.errors import BadModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "\u0001reply\u0001"
_ASKED = (("system", "s"), ("user", "u"))


class ChatRenderer:
    """Renders by a tokenizer that has a chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise BadModel where the template cannot be used."""
        if not tokenizer.chat_template:
            raise BadModel(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template, so nobody knows "
                "how its prompts look; take an instruct model, or set one and save it"
            )
        self._tokenizer = tokenizer
        self._eos = tokenizer.eos_token_id
        self._render = lru_cache(maxsize=4096)(self._rendered)
        self._after = lru_cache(maxsize=16384)(self._after_reply)
        self._keeps_replies = self._repeats_replies()

    @classmethod
    def load(cls, checkpoint: Path) -> ChatRenderer:
        """Read a checkpoint's tokenizer; raise BadModel."""
        from transformers import AutoTokenizer  # noqa: PLC0415  # seconds

        try:
            return cls(AutoTokenizer.from_pretrained(checkpoint))
        except (OSError, ValueError, KeyError) as error:
            raise BadModel(f"{checkpoint}: cannot read its tokenizer: {error}") from error

    def render(self, messages: Messages) -> list[int]:
        """Return the ids of a whole prompt."""
        return list(self._render(messages))

    def goes_on(self, reply: Sequence[int], said: Message) -> list[int] | None:
        """Return the ids between the sampled reply and the next one; None if it would be edited."""
        if not self._keeps_replies:
            return None
        ids = self._after(said)
        ended = bool(reply) and reply[-1] == self._eos and ids[:1] == (self._eos,)
        return list(ids[1:] if ended else ids)

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of sampled ids, without special tokens."""
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _rendered(self, messages: Messages) -> tuple[int, ...]:
        return self._ids(self._template([(m.role, m.content) for m in messages], speaks=True))

    def _after_reply(self, said: Message) -> tuple[int, ...]:
        turns = [*_ASKED, ("assistant", _MARK), (said.role, said.content)]
        return self._ids(self._template(turns, speaks=True).partition(_MARK)[2])

    def _repeats_replies(self) -> bool:
        """Whether a reply stands in later prompts just where, and as, it was sampled."""
        asked = self._template(_ASKED, speaks=True)
        again = self._template([*_ASKED, ("assistant", _MARK), ("user", "u")], speaks=True)
        before, mark, _ = again.partition(_MARK)
        return bool(mark) and before == asked

    def _template(self, turns: Sequence[tuple[str, str]], *, speaks: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=speaks
            )
        except TemplateError as error:
            name = self._tokenizer.name_or_path
            raise BadModel(f"{name}: its chat template refuses our prompts: {error}") from error
        return text

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
