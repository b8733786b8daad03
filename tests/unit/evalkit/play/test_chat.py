"""A served model as a policy: what is asked byte for byte, and what is made of any answer."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.games.key_door import KeyDoor
from evalkit.errors import CallFailed, ContextOverflow, Failure, Unauthorized, UnknownModel
from evalkit.play.calls import error_message, refusal
from evalkit.play.chat import ChatPolicy, Sampling, read_completion
from evalkit.play.limits import Patience, RetryLimits
from evalkit.play.policy import Ask, Completion, request_seed
from evalkit.play.strategies import Message
from evalkit.play.transport import (
    ConnectFailed,
    ConnectionLost,
    ProtocolViolation,
    Response,
    ResponseTimeout,
)
from evalkit.testing import FakeClock, FakeTransport, response


def ask(pattern: str | None = None, turn: int = 3, content: str = 'a "quoted" é\n') -> Ask:
    return Ask(
        session_id="run-A-7-0",
        turn=turn,
        seed=42,
        messages=(Message("system", "RULES"), Message("user", content)),
        prompt="",
        env=KeyDoor(),
        pattern=pattern,
    )


def chat_body(message: Any, **others: Any) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"model": "m", "choices": [choice], **others}).encode()


def policy(transport: FakeTransport, sampling: Sampling | None = None) -> ChatPolicy:
    clock = FakeClock()
    patience = Patience(RetryLimits(attempts=3), clock=clock, sleep=clock.sleep)
    return ChatPolicy(transport, model='m"1', sampling=sampling or Sampling(), patience=patience)


SAID = {"role": "assistant", "content": "hello"}
MESSAGES = [
    {"role": "system", "content": "RULES"},
    {"role": "user", "content": 'a "quoted" é\n'},
]


@pytest.mark.parametrize(
    ("sampling", "pattern", "fields"),
    [
        (Sampling(), None, {"temperature": 0.1, "max_tokens": 256}),
        (Sampling(temperature=None, max_tokens=None), None, {}),
        (
            Sampling(temperature=0.0, top_p=0.9, max_tokens=5, extra_body={"min_p": 0.1}),
            None,
            {"temperature": 0.0, "top_p": 0.9, "max_tokens": 5, "min_p": 0.1},
        ),
        (
            Sampling(extra_body={"temperature": 0.7}),
            "<a>(b)</a>",
            {
                "temperature": 0.7,
                "max_tokens": 256,
                "structured_outputs": {"regex": "<a>(b)</a>"},
            },
        ),
        (
            Sampling(temperature=None, max_tokens=None),
            "x",
            {"structured_outputs": {"regex": "x"}},
        ),
    ],
)
def test_the_body_is_what_was_asked(
    sampling: Sampling, pattern: str | None, fields: dict[str, Any]
) -> None:
    body = policy(FakeTransport(lambda _: response(b"")), sampling).body(ask(pattern))
    assert json.loads(body) == {"model": 'm"1', "messages": MESSAGES, "seed": 42, **fields}


@given(contents=st.lists(st.text(max_size=30), min_size=1, max_size=5), seed=st.integers(0, 2**31))
def test_the_body_is_a_pure_function_of_the_ask(contents: list[str], seed: int) -> None:
    asked = Ask(
        session_id="s",
        turn=0,
        seed=seed,
        messages=tuple(Message("user", content) for content in contents),
        prompt="",
        env=KeyDoor(),
    )
    one, other = (policy(FakeTransport(lambda _: response(b""))) for _ in range(2))
    other.body(ask("another pattern"))
    assert one.body(asked) == one.body(asked) == other.body(asked)
    parsed = json.loads(one.body(asked))
    assert [message["content"] for message in parsed["messages"]] == contents


COMPLETIONS: list[tuple[bytes, Completion]] = [
    (chat_body(SAID), Completion(text="hello", model="m", attempts=2)),
    (chat_body({"content": None}), Completion(text="", model="m", attempts=2)),
    (chat_body({}), Completion(text="", model="m", attempts=2)),
    (
        chat_body({"content": [{"type": "text", "text": "a"}, {"text": "b"}, "c", {"image": 1}]}),
        Completion(text="ab", model="m", attempts=2),
    ),
    (
        chat_body({"content": "x", "reasoning": "r", "reasoning_content": "rc"}),
        Completion(text="x", reasoning="r", model="m", attempts=2),
    ),
    (
        chat_body({"content": "x", "reasoning_content": "rc"}),
        Completion(text="x", reasoning="rc", model="m", attempts=2),
    ),
    (
        chat_body({"content": "x", "reasoning_content": ""}),
        Completion(text="x", model="m", attempts=2),
    ),
    (
        chat_body({"content": None, "refusal": "I will not"}),
        Completion(text="", refusal=True, model="m", attempts=2),
    ),
    (
        chat_body(
            SAID,
            usage={
                "prompt_tokens": 5,
                "completion_tokens": 6,
                "prompt_tokens_details": {"cached_tokens": 4},
            },
        ),
        Completion(
            text="hello",
            prompt_tokens=5,
            completion_tokens=6,
            cached_tokens=4,
            model="m",
            attempts=2,
        ),
    ),
    (
        chat_body(SAID, usage={"prompt_tokens": "5", "prompt_tokens_details": None}),
        Completion(text="hello", model="m", attempts=2),
    ),
    (
        b'{"choices":[{"message":{"content":"x"},"finish_reason":7}],"model":1,"usage":null}',
        Completion(text="x", finish_reason=None, attempts=2),
    ),
    (
        b'{"choices":[{"message":{"content":"x"},"finish_reason":"length"},{"message":{}}]}',
        Completion(text="x", finish_reason="length", attempts=2),
    ),
]


@pytest.mark.parametrize(("body", "expected"), COMPLETIONS)
def test_completions_are_read(body: bytes, expected: Completion) -> None:
    assert read_completion(response(body), 2) == expected


def test_the_policy_version_and_the_time_come_from_the_response() -> None:
    answer = response(chat_body(SAID), headers={"x-policy-version": "7"}, elapsed_s=1.5)
    expected = Completion(text="hello", model="m", policy_version="7", elapsed_s=1.5)
    assert read_completion(answer, 1) == expected


BAD_BODIES = [
    b"",
    b"null",
    b"[]",
    b"7",
    b'"hello"',
    b"<html><body>502</body></html>",
    b"\xff\xfe\x00",
    b"{}",
    b'{"choices":null}',
    b'{"choices":[]}',
    b'{"choices":{}}',
    b'{"choices":[null]}',
    b'{"choices":[{}]}',
    b'{"choices":[{"message":null}]}',
    b'{"choices":[{"message":"hello"}]}',
    b'{"choices":[{"message":{"content":7}}]}',
    b'{"choices":[{"message":{"content":{"text":"a"}}}]}',
    b'{"choices":[{"message":{"content":[{"text":null}]}}]}',
    b'{"choices":[{"message":{"content":"x","reasoning":7}}]}',
    b'{"choices":[{"message":{"content":"x"}}],"usage":[1]}',
    b'{"error":{"message":"no"}}',
    b'data: {"choices":[]}\n\n',
    chat_body(SAID)[:-10],
]


@pytest.mark.parametrize("body", BAD_BODIES)
def test_what_is_no_completion_is_a_bad_reply(body: bytes) -> None:
    with pytest.raises(CallFailed, match="not a chat completion") as failed:
        read_completion(response(body), 1)
    assert failed.value.failure is Failure.BAD_REPLY


@given(
    body=st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["choices", "message", "content", "usage", "reasoning"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_body_is_read_or_refused_by_name(body: bytes) -> None:
    with suppress(CallFailed):
        assert isinstance(read_completion(response(body), 1).text, str)
    assert isinstance(error_message(body), str)


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (400, b'{"error":{"message":"bad field"}}', Failure.REFUSED),
        (408, b"", Failure.TIMEOUT),
        (409, b"{}", Failure.CONFLICT),
        (413, b"too large", Failure.REFUSED),
        (422, b'{"detail":"no"}', Failure.REFUSED),
        (429, b"slow down", Failure.RATE_LIMITED),
        (500, b"<html>oops</html>", Failure.SERVER_ERROR),
        (502, b"", Failure.SERVER_ERROR),
        (503, b"", Failure.UNAVAILABLE),
        (504, b"", Failure.SERVER_ERROR),
        (204, b"", Failure.REFUSED),
        (302, b"", Failure.REFUSED),
    ],
)
def test_a_status_is_named(status: int, body: bytes, failure: Failure) -> None:
    refused = refusal(response(body, status), "m")
    assert isinstance(refused, CallFailed)
    assert (refused.failure, refused.status, refused.retry_after_s) == (failure, status, None)
    assert str(refused) == f"HTTP {status}: {error_message(body)}"


@pytest.mark.parametrize(("status", "kind"), [(401, Unauthorized), (403, Unauthorized)])
def test_a_refused_key_concerns_the_run(status: int, kind: type[Exception]) -> None:
    refused = refusal(response(b'{"error":{"message":"bad key"}}', status), "m")
    assert type(refused) is kind
    assert "bad key" in str(refused)


def test_a_missing_model_concerns_the_run() -> None:
    refused = refusal(response(b'{"error":{"message":"no such model"}}', 404), "m")
    assert type(refused) is UnknownModel
    assert str(refused) == "model 'm': HTTP 404: no such model"


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 64 tokens. However, you requested 70 tokens.",
        "context_length_exceeded",
        "Input is longer than the maximum model length of 64",
    ],
)
def test_a_prompt_that_does_not_fit_is_an_overflow(message: str) -> None:
    body = json.dumps({"error": {"message": message, "code": 400}}).encode()
    refused = refusal(response(body, 400), "m")
    assert isinstance(refused, ContextOverflow)
    assert refused.failure is Failure.CONTEXT_OVERFLOW


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *(("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("", None)),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read(header: str, seconds: float | None) -> None:
    refused = refusal(response(b"", 429, {"retry-after": header}), "m")
    assert isinstance(refused, CallFailed)
    assert refused.retry_after_s == seconds


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"a\\n  b"}}', "a b"),
        (b'{"error":"plain"}', "plain"),
        (b'{"message":"top"}', "top"),
        (b'{"detail":"Not Found"}', "{'detail': 'Not Found'}"),
        (b'{"error":null}', "{'error': None}"),
        (b"[1]", "[1]"),
        (b"<h1>no\nway</h1>", "<h1>no way</h1>"),
        (b"\xff", "�"),
        (b"", ""),
        (b"x" * 400, "x" * 300 + "..."),
    ],
)
def test_error_messages_are_one_short_line(body: bytes, message: str) -> None:
    assert error_message(body) == message


@pytest.mark.parametrize(
    ("error", "failure", "tries"),
    [
        (ConnectionLost("gone"), Failure.CONNECT, 3),
        (ResponseTimeout("slow"), Failure.TIMEOUT, 3),
        (ProtocolViolation("garbage"), Failure.BAD_REPLY, 3),
    ],
)
def test_transport_errors_are_failed_calls(error: Exception, failure: Failure, tries: int) -> None:
    transport = FakeTransport(lambda _: error)
    with pytest.raises(CallFailed) as failed:
        asyncio.run(policy(transport).complete(ask()))
    assert (failed.value.failure, len(transport.posted)) == (failure, tries)


def test_a_call_is_tried_again_with_the_same_body_and_a_request_id_of_its_own() -> None:
    answers: list[Response | Exception] = [
        ConnectFailed("refused"),
        response(b"", 500),
        response(chat_body(SAID)),
    ]
    transport = FakeTransport(lambda _: answers.pop(0))
    completion = asyncio.run(policy(transport).complete(ask()))
    assert completion == Completion(text="hello", model="m", attempts=3)
    assert len({body for body, _ in transport.posted}) == 1
    assert [headers for _, headers in transport.posted] == [
        f"X-Session-ID: run-A-7-0\r\nX-Request-ID: run-A-7-0-3{suffix}\r\n".encode()
        for suffix in ("", "-try2", "-try3")
    ]


def test_closing_the_policy_closes_its_transport() -> None:
    transport = FakeTransport(lambda _: response(b""))

    async def open_and_close() -> None:
        async with policy(transport):
            assert not transport.closed

    asyncio.run(open_and_close())
    assert transport.closed


def test_request_seeds_are_31_bits_and_differ_in_every_part() -> None:
    parts: list[tuple[int, str, int, int, int]] = [
        (0, "env", 0, 0, 0),
        (1, "env", 0, 0, 0),
        (0, "other", 0, 0, 0),
        (0, "env", 1, 0, 0),
        (0, "env", 0, 1, 0),
        (0, "env", 0, 0, 1),
    ]
    seeds = [request_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert request_seed(0, "env", 0, 0, 0) == seeds[0]
