"""What answers hold beyond plain text: ids, logprobs, labels, calls, events."""

import base64
import struct
from typing import Any

import orjson
import pytest

from serve.testing.answers import Answerer, Reply
from serve.testing.forms import CHAT, TEXT, Form
from serve.testing.generate import GENERATE
from serve.testing.lookups import detokenize, embeddings, tokenize
from serve.testing.prefix_cache import PrefixCache
from serve.testing.refusals import Refusal
from serve.testing.responses import RESPONSES
from serve.testing.tokens import WORDS, decode, encode, encode_chat

SAID = [{"role": "user", "content": "one two"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "walk",
            "parameters": {
                "type": "object",
                "properties": {
                    "way": {"type": "string", "enum": ["up", "down"]},
                    "steps": {"type": "integer"},
                    "why": {"type": "string"},
                },
                "required": ["way", "steps"],
            },
        },
    }
]


def answerer(reply: Reply = "a b c", **how: Any) -> Answerer:
    return Answerer(reply, model="m", max_model_len=100, **how)


def ask(form: Form, request: dict[str, Any], reply: Reply = "a b c", **how: Any) -> dict[str, Any]:
    body, streamed = answerer(reply, **how).complete(form, request)
    assert not streamed
    answer: dict[str, Any] = orjson.loads(body)
    return answer


def events(form: Form, request: dict[str, Any], reply: Reply = "a b c") -> list[dict[str, Any]]:
    body, streamed = answerer(reply).complete(form, request | {"stream": True})
    assert streamed
    lines = [line for line in body.split(b"\n") if line.startswith(b"data: {")]
    return [orjson.loads(line.removeprefix(b"data: ")) for line in lines]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reply", ["", "a", " a  b\n\nc "])
@pytest.mark.parametrize("options", [None, {"include_usage": True}])
@pytest.mark.parametrize("form", [CHAT, TEXT], ids=["chat", "text"])
def test_plain_answers_are_those_made_token_by_token(
    form: Form, options: Any, reply: str, stream: bool
) -> None:
    request = {"messages": [*SAID, {"role": "assistant", "content": "x y"}, *SAID]}
    body: dict[str, Any] = request if form is CHAT else {"prompt": "one two"}
    body |= {"stream": stream, "stream_options": options, "stop": "c"}
    plain = answerer(reply).answer(orjson.dumps(body), chat=form is CHAT)
    assert plain == answerer(reply).complete(form, body)


def test_ids_and_logprobs_of_a_chat() -> None:
    request = {"messages": SAID, "return_token_ids": True, "logprobs": True, "top_logprobs": 2}
    answer = ask(CHAT, request)
    choice = answer["choices"][0]
    content = choice["logprobs"]["content"]
    assert answer["prompt_token_ids"] == encode_chat(SAID)
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    assert decode(choice["token_ids"]) == "a b c" == "".join(each["token"] for each in content)
    assert content[1]["bytes"] == list(b" b")
    assert [each["token"] for each in content[1]["top_logprobs"]] == [" b", " other1"]
    assert all(each["logprob"] < 0 for each in content)
    assert ask(CHAT, request | {"top_logprobs": 0})["choices"][0]["logprobs"]["content"][0] == (
        content[0] | {"top_logprobs": []}
    )
    named = ask(CHAT, request | {"return_tokens_as_token_ids": True})["choices"][0]
    assert named["logprobs"]["content"][0]["token"] == f"token_id:{choice['token_ids'][0]}"


@pytest.mark.parametrize("form", [CHAT, TEXT, GENERATE], ids=["chat", "text", "generate"])
def test_streams_have_the_same_ids_and_logprobs(form: Form) -> None:
    sampling = {"logprobs": True if form is CHAT else 1}
    asked: dict[Form, dict[str, Any]] = {
        CHAT: {"messages": SAID, **sampling},
        TEXT: {"prompt": "one two", **sampling},
        GENERATE: {"token_ids": [1, 2], "sampling_params": sampling},
    }
    request = asked[form] | {"return_token_ids": True}
    whole = ask(form, request)
    chunks = events(form, request)
    choices = [chunk["choices"][0] for chunk in chunks]
    ids = [each for choice in choices for each in choice.get("token_ids") or []]
    assert ids == whole["choices"][0]["token_ids"]
    prompts = [chunk.get("prompt_token_ids") for chunk in [*chunks, *choices]]
    prompt_ids = whole.get("prompt_token_ids") or whole["choices"][0]["prompt_token_ids"]
    assert [prompt for prompt in prompts if prompt] == [prompt_ids]
    key = "token_logprobs" if form is TEXT else "content"
    told = [each for choice in choices for each in (choice["logprobs"] or {key: []})[key]]
    assert told == whole["choices"][0]["logprobs"][key]


def test_logprobs_of_a_completion_are_columns() -> None:
    logprobs = ask(TEXT, {"prompt": "x", "logprobs": 2})["choices"][0]["logprobs"]
    assert (logprobs["tokens"], logprobs["text_offset"]) == (["a", " b", " c"], [0, 1, 3])
    assert [list(top) for top in logprobs["top_logprobs"]] == [
        [token, " other1"] for token in ("a", " b", " c")
    ]


def test_tokens_in_tokens_out() -> None:
    request = {"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 2, "logprobs": 2}}
    choice = ask(GENERATE, request)["choices"][0]
    assert choice["token_ids"] == WORDS.ids(["a", " b"])
    assert choice["weight_versions"] == [{"version": "default", "start": 0, "end": 2}]
    first = choice["logprobs"]["content"][0]
    assert first["token_id"] == choice["token_ids"][0]
    assert [each["rank"] for each in first["top_logprobs"]] == [1, 2]
    assert first["top_logprobs"][0] == {key: first[key] for key in ("token_id", "logprob", "rank")}
    text = ask(GENERATE, request | {"output_mode": "text"})["choices"][0]
    assert (text["text"], text["logprobs"]["content"][0]["token"]) == ("a b", "a")


def test_the_last_event_has_the_labels_of_all_tokens() -> None:
    choices = [
        chunk["choices"][0]["weight_versions"]
        for chunk in events(GENERATE, {"token_ids": [1], "sampling_params": {}})
    ]
    assert choices == [None, None, [{"version": "default", "start": 0, "end": 3}]]


@pytest.mark.parametrize("made", [1, 2, 3])
def test_a_prompt_that_ends_with_a_replys_beginning_is_gone_on_with(made: int) -> None:
    prompt = encode("one two") + WORDS.ids(["x", " y", " z"][:made])
    rest = ask(TEXT, {"prompt": prompt, "seed": 4}, ["a b c", "x y z"])["choices"][0]
    assert (rest["text"], rest["finish_reason"]) == ("".join([" y", " z"][made - 1 :]), "stop")


def test_prompt_tokens_that_are_known_are_told() -> None:
    request = {"messages": [{"role": "user", "content": "w " * 40}]}
    one = answerer("a " * 20, cache=PrefixCache(blocks=20))
    first, second = (orjson.loads(one.complete(CHAT, request)[0])["usage"] for _ in range(2))
    told = [usage["prompt_tokens_details"]["cached_tokens"] for usage in (first, second)]
    assert told == [0, 32]
    said = [*request["messages"], {"role": "assistant", "content": "a " * 20}, *SAID]
    third = orjson.loads(one.complete(CHAT, {"messages": said})[0])["usage"]
    assert third["prompt_tokens_details"]["cached_tokens"] == 48
    salted = orjson.loads(one.complete(CHAT, request | {"cache_salt": "x"})[0])["usage"]
    assert salted["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("choice", "reply", "arguments", "why"),
    [
        ("required", "no JSON", '{"way":"up","steps":1}', "tool_calls"),
        ("required", '{"way": "down"}', '{"way": "down"}', "tool_calls"),
        ({"type": "function", "function": {"name": "walk"}}, "x", '{"way":"up","steps":1}', "stop"),
    ],
)
def test_a_call_that_is_insisted_on(choice: Any, reply: str, arguments: str, why: str) -> None:
    request = {"messages": SAID, "tools": TOOLS, "tool_choice": choice}
    whole = ask(CHAT, request, reply)["choices"][0]
    call = whole["message"]["tool_calls"][0]
    assert call["function"] == {"name": "walk", "arguments": arguments}
    assert (whole["finish_reason"], whole["message"]["content"]) == (why, "")
    chunks = [chunk["choices"][0] for chunk in events(CHAT, request, reply)]
    calls = [each for chunk in chunks for each in chunk["delta"].get("tool_calls", [])]
    assert calls[0]["function"] == {"name": "walk"}
    assert calls[0]["id"] == call["id"]
    assert "".join(each["function"]["arguments"] for each in calls[1:]) == arguments
    assert (chunks[-1]["delta"], chunks[-1]["finish_reason"]) == ({}, why)


def test_no_call_unless_it_is_insisted_on() -> None:
    for choice in (None, "auto", "none"):
        answer = ask(CHAT, {"messages": SAID, "tools": TOOLS, "tool_choice": choice})
        assert answer["choices"][0]["message"]["content"] == "a b c"


def test_a_response_and_its_events() -> None:
    request = {"input": "hi", "instructions": "Be kind.", "max_output_tokens": 2}
    whole = ask(RESPONSES, request)
    assert whole["output"][0]["content"][0]["text"] == "a b"
    assert (whole["status"], whole["incomplete_details"]["reason"]) == (
        ("incomplete", "max_output_tokens")
    )
    told = events(RESPONSES, request)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [event["type"].removeprefix("response.") for event in told] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done", "content_part.done"),
        *("output_item.done", "completed"),
    ]
    assert told[-1]["response"] == whole


def test_texts_and_tokens() -> None:
    told = tokenize({"prompt": "one two", "return_token_strs": True})
    assert (told["count"], told["token_strs"]) == (2, ["one", " two"])
    assert detokenize({"tokens": told["tokens"]}) == {"prompt": "one two"}
    assert tokenize({"messages": SAID})["tokens"] == encode_chat(SAID)
    left = tokenize({"messages": SAID, "add_generation_prompt": False})["tokens"]
    assert left == encode_chat(SAID)[:-1]


def test_embeddings_are_of_length_one_and_depend_on_the_text_only() -> None:
    told = embeddings({"input": ["a", "b", encode("a")], "dimensions": 8})
    first, second, third = (each["embedding"] for each in told["data"])
    assert sum(number**2 for number in first) == pytest.approx(1)
    assert (len(first), first) == (8, third)
    assert first != second
    packed = embeddings({"input": "a", "dimensions": 8, "encoding_format": "base64"})
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert struct.unpack("<8f", raw) == pytest.approx(first)


@pytest.mark.parametrize(
    ("form", "request_", "param"),
    [
        (CHAT, {"messages": SAID, "top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"messages": SAID, "tool_choice": "required"}, "tool_choice"),
        (GENERATE, {"sampling_params": {}}, "body.token_ids"),
        (GENERATE, {"token_ids": [], "sampling_params": {}}, "body.token_ids"),
        (GENERATE, {"token_ids": "x", "sampling_params": {}}, "body.token_ids"),
        (GENERATE, {"token_ids": [1]}, "body.sampling_params"),
        (GENERATE, {"token_ids": [1], "sampling_params": {"max_tokens": 0}}, "max_tokens"),
        (GENERATE, {"token_ids": [1] * 100, "sampling_params": {}}, "input_tokens"),
        (RESPONSES, {}, "body.input"),
        (TEXT, {"prompt": [1], "model": "other"}, "model"),
    ],
)
def test_refusals(form: Form, request_: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as caught:
        ask(form, request_)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("look_up", "request_"),
    [
        (tokenize, {}),
        (detokenize, {}),
        (detokenize, {"tokens": ["x"]}),
        (detokenize, {"tokens": [-1]}),
        (embeddings, {}),
        (embeddings, {"input": "x", "dimensions": -1}),
    ],
)
def test_lookups_refuse(look_up: Any, request_: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        look_up(request_)
