"""What the real openai SDK gets from an engine: one suite for FakeEngine and for real vLLM.

Both are asked directly and through the gateway; what only a gateway does is in test_gateway.py.
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from serve.engine.base import Engine
from serve.testing import FakeEngine

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You walk in a grid."},
    {"role": "user", "content": "The key is north of you. What now?"},
]


def chat(client: openai.OpenAI, engine: Engine, **fields: Any) -> ChatCompletion:
    request = {"model": engine.model, "messages": MESSAGES, "max_tokens": 12, "seed": 1} | fields
    create: Callable[..., ChatCompletion] = client.chat.completions.create
    return create(**request)


def test_chat(client: openai.OpenAI, engine: Engine) -> None:
    answer = chat(client, engine)
    choice = answer.choices[0]
    assert (answer.object, answer.model) == ("chat.completion", engine.model)
    assert answer.id.startswith("chatcmpl-")
    assert (len(answer.choices), choice.index, choice.message.role) == (1, 0, "assistant")
    assert choice.message.content
    assert choice.finish_reason in {"stop", "length"}
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > len(MESSAGES)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_max_tokens_cuts_the_reply(client: openai.OpenAI, engine: Engine) -> None:
    answer = chat(client, engine, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_stop_string_ends_the_reply(client: openai.OpenAI, engine: Engine) -> None:
    whole = chat(client, engine).choices[0].message.content
    assert whole is not None
    stop = whole.split()[1]
    choice = chat(client, engine, stop=stop).choices[0]
    assert choice.message.content == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"
    assert choice.model_extra is not None
    assert choice.model_extra["stop_reason"] == stop


def test_streamed_chat_is_the_same_reply(client: openai.OpenAI, engine: Engine) -> None:
    whole = chat(client, engine)
    with client.chat.completions.create(
        model=engine.model,
        messages=MESSAGES,
        max_tokens=12,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *chunks, last = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert _counts(last.usage) == _counts(whole.usage)


def test_stream_without_usage_has_none(client: openai.OpenAI, engine: Engine) -> None:
    with client.chat.completions.create(
        model=engine.model, messages=MESSAGES, max_tokens=3, stream=True
    ) as stream:
        assert [chunk.usage for chunk in stream if chunk.usage or not chunk.choices] == []


def test_completions(client: openai.OpenAI, engine: Engine) -> None:
    create: Callable[..., Any] = client.completions.create
    request = {"model": engine.model, "prompt": "Once upon a", "max_tokens": 4, "seed": 3}
    whole = create(**request)
    assert (whole.object, whole.model) == ("text_completion", engine.model)
    assert whole.id.startswith("cmpl-")
    assert whole.usage.completion_tokens <= 4
    with create(**request, stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_models(client: openai.OpenAI, engine: Engine) -> None:
    card = client.models.list().data[0]
    assert (card.id, card.object) == (engine.model, "model")
    assert card.model_extra is not None
    assert card.model_extra["max_model_len"] == 4096


def test_health_and_version(direct: Engine) -> None:
    with httpx.Client(base_url=direct.root_url) as plain:
        health, version = plain.get("/health"), plain.get("/version")
    assert (health.status_code, health.content) == (200, b"")
    assert list(version.json()) == ["version"]


def test_equal_seeds_give_equal_replies_at_any_concurrency(engine: Engine) -> None:
    async def ask(client: openai.AsyncOpenAI, seed: int) -> str | None:
        answer = await client.chat.completions.create(
            model=engine.model, messages=MESSAGES, max_tokens=8, seed=seed, temperature=1.0
        )
        return answer.choices[0].message.content

    async def both() -> tuple[list[str | None], list[str | None]]:
        async with openai.AsyncOpenAI(base_url=engine.base_url, api_key="none") as client:
            alone = [await ask(client, seed) for seed in range(12)]
            together = await asyncio.gather(*(ask(client, seed) for seed in range(12)))
        return alone, list(together)

    alone, together = asyncio.run(both())
    assert alone == together
    assert len(set(alone)) > 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 5000}, "max_tokens=5000 cannot be greater than max_model_len=4096"),
        ({"temperature": -1}, "temperature must be non-negative, got -1.0"),
        ({"messages": []}, "Cannot apply chat template to an empty conversation"),
        (
            {"messages": [{"role": "user", "content": "word " * 6000}]},
            (
                "This model's maximum context length is 4096 tokens. However, your prompt contains "
                "at least 4097 input tokens"
            ),
        ),
    ],
    ids=["no_tokens", "too_many_tokens", "temperature", "no_messages", "too_long"],
)
def test_bad_request(
    client: openai.OpenAI, engine: Engine, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, engine, **fields)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"].startswith(message)
    assert (caught.value.body["type"], caught.value.body["code"]) == ("BadRequestError", 400)


def test_unknown_model(direct: Engine) -> None:
    with (
        openai.OpenAI(base_url=direct.base_url, api_key="none", max_retries=0) as client,
        pytest.raises(openai.NotFoundError) as caught,
    ):
        chat(client, direct, model="nope")
    assert caught.value.body == {
        "message": f"The model `nope` does not exist. Valid aliases: {direct.model}.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"model":', "json_invalid"),
        (b"[1]", "model_attributes_type"),
        (b"{}", "missing"),
    ],
)
def test_malformed_body(direct: Engine, body: bytes, kind: str) -> None:
    headers = {"Content-Type": "application/json"}
    with httpx.Client() as plain:
        answer = plain.post(f"{direct.base_url}/chat/completions", content=body, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (400, "Bad Request", 400)
    assert f"'type': '{kind}'" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/chat/completions", 405), ("POST", "/v1/nope", 404), ("GET", "/nope", 404)],
)
def test_wrong_route(engine: Engine, method: str, path: str, status: int) -> None:
    with httpx.Client() as plain:
        assert plain.request(method, engine.root_url + path).status_code == status


@pytest.mark.parametrize(
    ("wanted", "form"),
    [
        ({"regex": "<action>(left|right)</action>"}, "<action>(left|right)</action>"),
        ({"regex": "<s>[^<]{0,8}</s><a>(go|stay)</a>"}, "<s>[^<]{0,8}</s><a>(go|stay)</a>"),
        ({"choice": ["left", "right"]}, "left|right"),
    ],
    ids=["tag", "scratchpad", "choice"],
)
def test_structured_outputs(
    client: openai.OpenAI, engine: Engine, wanted: dict[str, Any], form: str
) -> None:
    answer = chat(client, engine, max_tokens=60, extra_body={"structured_outputs": wanted})
    content = answer.choices[0].message.content
    assert content is not None
    assert re.fullmatch(form, content)


def test_key_is_asked_for() -> None:
    async def statuses() -> list[int | str]:
        seen: list[int | str] = []
        async with FakeEngine(api_key="secret") as engine:
            for key in ("secret", "wrong"):
                async with openai.AsyncOpenAI(base_url=engine.base_url, api_key=key) as client:
                    try:
                        seen.append((await client.models.list()).data[0].id)
                    except openai.AuthenticationError as error:
                        seen.append(error.status_code)
        return seen

    assert asyncio.run(statuses()) == ["fake", 401]


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_fake_engine_has_only_fields_that_vllm_has(
    fake_engine: Engine, vllm_engine: Engine
) -> None:
    def shape(engine: Engine, path: str, body: dict[str, Any]) -> set[str]:
        answer = httpx.post(f"{engine.base_url}/{path}", json=body | {"model": engine.model})
        return set(_paths(answer.raise_for_status().json()))

    for path, body in [
        ("chat/completions", {"messages": MESSAGES, "max_tokens": 2}),
        ("completions", {"prompt": "One", "max_tokens": 2}),
    ]:
        assert shape(fake_engine, path, body) - shape(vllm_engine, path, body) == set()


def _paths(value: Any, at: str = "") -> Iterable[str]:
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _paths(below, f"{at}.{name}")
    elif isinstance(value, list):
        for below in value:
            yield from _paths(below, f"{at}[]")
    else:
        yield at


def _counts(usage: Any) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
