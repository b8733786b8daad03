"""A chat template as ids: the same as the template's own, and exact where it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from evalkit.play.strategies import message
from train.errors import BadModel
from train.rollouts.renderer import ChatRenderer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = (message("system", "rules"), message("user", "where?"))


def tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = template
    return made


def test_whole_prompts_are_the_templates() -> None:
    made = tokenizer()
    expected = made.apply_chat_template(
        [{"role": "system", "content": "rules"}, {"role": "user", "content": "where?"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert ChatRenderer(made).render(TALK) == expected


@pytest.mark.parametrize("ended", [True, False])
def test_going_on_closes_the_reply_once(ended: bool) -> None:
    made = tokenizer()
    renderer = ChatRenderer(made)
    reply = made("up", add_special_tokens=False)["input_ids"]
    reply = [*reply, made.eos_token_id] if ended else reply
    more = renderer.goes_on(reply, message("user", "and now? é"))
    assert more is not None
    whole = renderer.render((*TALK, message("assistant", "up"), message("user", "and now? é")))
    assert [*renderer.render(TALK), *reply, *more] == whole


def test_special_tokens_are_no_text() -> None:
    made = tokenizer()
    ids = made("<action>up</action>", add_special_tokens=False)["input_ids"]
    assert ChatRenderer(made).text([*ids, made.eos_token_id]) == "<action>up</action>"


def test_a_template_that_edits_earlier_replies_is_never_gone_on_from() -> None:
    edits = CHATML.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}"
    )
    renderer = ChatRenderer(tokenizer(edits))
    assert renderer.goes_on([5], message("user", "and now?")) is None


@pytest.mark.parametrize(
    ("template", "said"),
    [(None, "no chat template"), ("{{ raise_exception('no system') }}", "refuses our prompts")],
)
def test_templates_that_cannot_be_used_are_named(template: str | None, said: str) -> None:
    with pytest.raises(BadModel, match=said):
        ChatRenderer(tokenizer(template))


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="cannot read its tokenizer"):
        ChatRenderer.load(tmp_path)
