"""A small byte-level BPE tokenizer, learned from the texts of one game, with a ChatML template.

Words of a phrase may merge, so that a whole phrase of the game becomes one token; places, single
cells and tagged actions stay tokens of their own. Every text comes back as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import islice
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from evalkit.play.strategies import Message, Messages
from train.errors import BadConfig
from train.tiny.recipes import Recipe
from train.tiny.teacher import Lesson, episodes

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MAX_TOKENS = 2048
"""Longest context, in tokens."""
_SMALLEST = 256 + 3
_EPISODES = 300
_PLACE = r" ?\([0-9]+, [0-9]+\)"
_TAGGED_ACTION = r"<[a-z]+>[a-z0-9]+</[a-z]+>"
_TAG = r"</?[a-z]+>"
_CELL = r" ?[0-9XO](?![^ \n])"
_PHRASE = r",?[^.,:;?()<>\n]+[.,:;?]*\n*"
_PIECES = rf"{_PLACE}|{_TAGGED_ACTION}|{_TAG}|{_CELL}|{_PHRASE}|\n+|[^\n]"


def train_tokenizer(recipe: Recipe, seed: int) -> PreTrainedTokenizerFast:
    """Learn a tokenizer from the teacher's episodes of a game; equal arguments, equal tokenizer.

    Raises:
        BadConfig: the vocabulary is too small for the 256 bytes and the special tokens.

    """
    if recipe.vocabulary < _SMALLEST:
        raise BadConfig(f"vocabulary is at least {_SMALLEST}, not {recipe.vocabulary}")
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[AddedToken(name, special=True) for name in (PAD, START, END)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bare.train_from_iterator(_texts(islice(episodes(recipe, seed), _EPISODES)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_TOKENS,
    )


class Renderer:
    """Writes chats as token ids, as the chat template does, remembering what it wrote."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401 - transformers is not typed here
        self._encode = lru_cache(maxsize=65536)(
            lambda text: tuple(tokenizer.encode(text, add_special_tokens=False))
        )
        self._message = lru_cache(maxsize=65536)(self._render)
        self._opening = self._encode(f"{START}assistant\n")

    def prompt(self, messages: Messages) -> list[int]:
        """Return the prompt that asks for the next reply."""
        ids = [token for message in messages for token in self._message(message)]
        return [*ids, *self._opening]

    def system(self, messages: Messages) -> list[int]:
        """Return the beginning of the prompt that all turns of an episode share."""
        return list(self._message(messages[0]))

    def reply(self, text: str) -> list[int]:
        """Return a reply and its end."""
        return list(self._encode(f"{text}{END}"))

    def _render(self, message: Message) -> tuple[int, ...]:
        ids: tuple[int, ...] = self._encode(f"{START}{message.role}\n{message.content}{END}\n")
        return ids


def _texts(played: Iterable[tuple[Lesson, ...]]) -> Iterable[str]:
    """Yield every text once for each time that it is written."""
    for lessons in played:
        yield f"system\n{lessons[0].messages[0].content}\n"
        for lesson in lessons:
            yield f"user\n{lesson.messages[-1].content}\n"
            yield "assistant\n"
            yield lesson.reply
