from hypothesis import given
from hypothesis import strategies as st

from serve.testing import tokens
from serve.testing.tokens import decode, encode, encode_chat


@given(st.text())
def test_a_text_comes_back(text: str) -> None:
    assert decode(encode(text)) == text


@given(st.integers(0, 2**31 - 1))
def test_an_id_comes_back_even_if_nobody_has_met_it(token_id: int) -> None:
    vocabulary = tokens.Vocabulary()
    assert vocabulary.ids([vocabulary.word(token_id)]) == [token_id]


def test_ids_are_the_same_in_every_process() -> None:
    assert encode("a b") == [1243827285, 445846304]
    assert tokens.Vocabulary().ids(["one"]) == encode("one")
    assert encode("one two") == encode("one") + encode(" two")


def test_a_turn_begins_with_the_turn_before_and_its_answer() -> None:
    said = [{"role": "system", "content": "Walk."}, {"role": "user", "content": "a  b\n\nc"}]
    answer = " up  and\n\ndown "
    first = encode_chat(said) + tokens.WORDS.ids([" up", "  and", "\n\ndown", " "])
    said += [{"role": "assistant", "content": answer}, {"role": "user", "content": "d"}]
    second = encode_chat(said)
    assert second[: len(first)] == first
    assert decode(second).endswith("<|assistant|> up  and\n\ndown <|user|>d<|assistant|>")


def test_parts_and_calls_of_tools_are_text_too() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "image_url"}, {"type": "text", "text": "b"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}
    text = decode(encode_chat([{"role": "user", "content": parts}, call], answer=False))
    assert text == '<|user|>a b<|assistant|>[{"id":"x"}]'


def test_the_oldest_words_are_forgotten() -> None:
    vocabulary = tokens.Vocabulary(most_words=2)
    first, second, third = vocabulary.ids(["a", "b", "c"])
    assert [vocabulary.word(each) for each in (first, second, third)] == [f"<|{first}|>", "b", "c"]
