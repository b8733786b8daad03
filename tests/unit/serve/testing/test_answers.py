import re
from typing import Any

import orjson
import pytest

from serve.testing.answers import Answerer, Reply
from serve.testing.refusals import Refusal

MESSAGES = [{"role": "user", "content": "one two\nthree"}]


def ask(reply: Reply = "a b c", *, chat: bool = True, **fields: Any) -> dict[str, Any]:
    subject: dict[str, Any] = {"messages": MESSAGES} if chat else {"prompt": "one two\nthree"}
    body, streamed = Answerer(reply, model="m", max_model_len=100).answer(
        orjson.dumps(subject | fields), chat=chat
    )
    assert not streamed
    answer: dict[str, Any] = orjson.loads(body)
    return answer


def test_whole_chat_answer() -> None:
    answer = ask()
    assert re.fullmatch("chatcmpl-[0-9a-f]{16}", answer.pop("id"))
    assert answer == {
        "object": "chat.completion",
        "created": 1_767_225_600,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "a b c",
                    "refusal": None,
                    "reasoning": None,
                },
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "system_fingerprint": "fake-engine",
        "usage": {"prompt_tokens": 4, "total_tokens": 7, "completion_tokens": 3},
    }


def test_whole_text_answer() -> None:
    answer = ask(chat=False, max_tokens=2)
    assert re.fullmatch("cmpl-[0-9a-f]{16}", answer.pop("id"))
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "a b",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2}


def test_equal_requests_get_equal_bytes_and_only_seed_and_messages_choose() -> None:
    replies = [str(number) for number in range(50)]
    same = [ask(replies, seed=7), ask(replies, seed=7), ask(replies, seed=7, temperature=0.5)]
    assert same[0] == same[1] == same[2]
    assert len({ask(replies, seed=seed)["id"] for seed in range(50)}) == 50
    contents = {ask(replies, seed=seed)["choices"][0]["message"]["content"] for seed in range(50)}
    assert len(contents) > 20


def test_a_function_makes_the_reply() -> None:
    answer = ask(lambda request: request["messages"][-1]["content"].upper())
    assert answer["choices"][0]["message"]["content"] == "ONE TWO\nTHREE"


@pytest.mark.parametrize(
    ("reply", "fields", "content", "finish_reason", "stop_reason"),
    [
        ("a b c", {"max_tokens": 3}, "a b c", "stop", None),
        (" a  b c ", {"max_tokens": 2}, " a  b", "length", None),
        ("a b c ", {}, "a b c ", "stop", None),
        ("a b c", {"max_completion_tokens": 1}, "a", "length", None),
        ("a b c", {"stop": ["c", "b"]}, "a ", "stop", "b"),
        ("a b c", {"stop": "b", "include_stop_str_in_output": True}, "a b", "stop", "b"),
        ("a b c", {"stop": "c", "max_tokens": 1}, "a", "length", None),
        ("", {}, "", "stop", None),
        ('é "\\\n\U0001f600', {}, 'é "\\\n\U0001f600', "stop", None),
    ],
)
def test_where_a_reply_ends(
    reply: str, fields: dict[str, Any], content: str, finish_reason: str, stop_reason: str | None
) -> None:
    choice = ask(reply, **fields)["choices"][0]
    assert choice["message"]["content"] == content
    assert (choice["finish_reason"], choice["stop_reason"]) == (finish_reason, stop_reason)


@pytest.mark.parametrize("chat", [True, False])
def test_stream_says_the_same_as_the_whole(chat: bool) -> None:
    whole = ask(" a  b c ", chat=chat, max_tokens=3)
    subject: dict[str, Any] = {"messages": MESSAGES} if chat else {"prompt": "one two\nthree"}
    fields = {"max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    body, streamed = Answerer(" a  b c ", model="m", max_model_len=100).answer(
        orjson.dumps(subject | fields), chat=chat
    )
    assert streamed
    *events, last, done = [event.removeprefix(b"data: ") for event in body.split(b"\n\n")[:-1]]
    chunks = [orjson.loads(event) for event in events]
    assert done == b"[DONE]"
    assert orjson.loads(last)["usage"] == whole["usage"]
    choices = [chunk["choices"][0] for chunk in chunks]
    said = [choice["delta"]["content"] if chat else choice["text"] for choice in choices]
    choice = whole["choices"][0]
    assert "".join(said) == (choice["message"]["content"] if chat else choice["text"])
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == "stop"
    assert {chunk["id"] for chunk in chunks} == {whole["id"]}


@pytest.mark.parametrize(
    ("reply", "wanted", "content"),
    [
        ("free", {"regex": "<a>(up)</a>"}, "<a>up</a>"),
        ("<a>down</a>", {"regex": "<a>(up|down)</a>"}, "<a>down</a>"),
        ("free", {"choice": ["yes"]}, "yes"),
        ("no", {"choice": ["yes", "no"]}, "no"),
    ],
)
def test_structured_outputs(reply: str, wanted: dict[str, Any], content: str) -> None:
    answer = ask(reply, structured_outputs=wanted)
    assert answer["choices"][0]["message"]["content"] == content


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, "body.1"),
        (b"[]", 400, "body"),
        (b"{}", 400, "body.messages"),
        (b'{"messages":3}', 400, "body.messages"),
        (b'{"messages":[]}', 400, None),
        (b'{"messages":[{}],"model":"x"}', 404, "model"),
        (b'{"messages":[{}],"max_tokens":0}', 400, "max_tokens"),
        (b'{"messages":[{}],"max_tokens":"1"}', 400, "body.max_tokens"),
        (b'{"messages":[{}],"max_tokens":101}', 400, "max_tokens"),
        (b'{"messages":[{}],"temperature":-1}', 400, "temperature"),
        (b'{"messages":[{}],"temperature":"hot"}', 400, "body.temperature"),
        (b'{"messages":[{}],"seed":"x"}', 400, "body.seed"),
        (b'{"messages":[{}],"n":2}', 400, "n"),
        (b'{"messages":[{}],"structured_outputs":{"regex":"("}}', 400, None),
        (b'{"messages":[{}],"structured_outputs":{"grammar":"x"}}', 400, None),
        (b'{"messages":["' + b"w " * 100 + b'"]}', 400, "input_tokens"),
    ],
)
def test_refusals(body: bytes, status: int, param: str | None) -> None:
    with pytest.raises(Refusal) as caught:
        Answerer("x", model="m", max_model_len=100).answer(body, chat=True)
    error = orjson.loads(caught.value.body())["error"]
    assert (caught.value.status, error["code"], error["param"]) == (status, status, param)


def test_a_fake_engine_without_a_reply_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one reply"):
        Answerer([], model="m", max_model_len=100)
