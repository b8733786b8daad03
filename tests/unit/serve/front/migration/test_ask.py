"""Which requests another engine could go on with: the fields that are let in, and those not."""

import json
from typing import Any

import pytest

from serve.front.migration import ask as continuation_ask

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hello"}],
    "stream": True,
    "temperature": 0,
    "max_tokens": 40,
    "return_token_ids": True,
}
TEXT: dict[str, Any] = {k: v for k, v in CHAT.items() if k != "messages"} | {"prompt": [1, 2, 3]}


def _ask(body: dict[str, Any]) -> continuation_ask.Ask | None:
    path = continuation_ask.CHAT if "messages" in body else continuation_ask.TEXT
    return continuation_ask.read(path, json.dumps(body).encode())


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0.0, "n": 1, "seed": 3, "top_p": 0.5, "user": "u"},
        {"stop": "x", "stop_token_ids": [4], "include_stop_str_in_output": True},
        {"min_tokens": 3, "ignore_eos": True, "repetition_penalty": 1.2},
        {"tools": None, "logprobs": None, "response_format": {"type": "text"}},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "tool_choice": "none"},
        {"stream_options": {"include_usage": True}},
    ],
)
@pytest.mark.parametrize("body", [CHAT, TEXT], ids=["chat", "text"])
def test_what_can_go_on(body: dict[str, Any], more: dict[str, Any]) -> None:
    assert _ask(body | more) is not None


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.1},
        {"temperature": None},
        {"temperature": False},
        {"stream": False},
        {"return_token_ids": False},
        {"return_token_ids": None},
        {"n": 2},
        {"logprobs": 0},
        {"logprobs": True},
        {"echo": True},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"logit_bias": {"5": 1}},
        {"bad_words": ["x"]},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "auto"},
        {"structured_outputs": {"choice": ["a"]}},
        {"guided_regex": "a"},
        {"response_format": {"type": "json_object"}},
        {"use_beam_search": True},
        {"vllm_xargs": {"a": 1}},
        {"a_new_field": 1},
        {"stop": [""]},
        {"stop": 5},
        {"max_tokens": "many"},
        {"prompt": None, "messages": None},
        {"prompt": ["one", "two"], "messages": 5},
        {"prompt": [], "messages": [{"content": [{"type": "image_url", "image_url": {}}]}]},
    ],
)
@pytest.mark.parametrize("body", [CHAT, TEXT], ids=["chat", "text"])
def test_what_cannot(body: dict[str, Any], more: dict[str, Any]) -> None:
    is_chat = "messages" in body
    fitting = {k: v for k, v in more.items() if k != ("prompt" if is_chat else "messages")}
    if is_chat and more.get("messages", 0) is None:
        return  # the engine refuses a chat without messages itself
    path = continuation_ask.CHAT if is_chat else continuation_ask.TEXT
    assert continuation_ask.read(path, json.dumps(body | fitting).encode()) is None


def test_a_chat_must_say_how_much_and_a_completion_has_a_default() -> None:
    rest = {k: v for k, v in CHAT.items() if k != "max_tokens"}
    assert _ask(rest) is None
    ask = _ask(rest | {"max_completion_tokens": 9, "max_tokens": 99})
    assert ask is not None
    assert ask.max_tokens == 9
    ask = _ask({k: v for k, v in TEXT.items() if k != "max_tokens"})
    assert ask is not None
    assert ask.max_tokens == 16


def test_other_paths_and_no_json_are_nothing_to_go_on_with() -> None:
    body = json.dumps(CHAT).encode()
    assert continuation_ask.read(b"/v1/responses", body) is None
    assert continuation_ask.read(continuation_ask.CHAT, body[:-1]) is None
    assert continuation_ask.read(continuation_ask.CHAT, b"[1]") is None
    assert continuation_ask.read(continuation_ask.CHAT, b'{"messages": "\xff"}') is None
