"""What an engine answers on each of its routes: one suite over FakeEngine and real vLLM.

Shapes are compared, not values. Each engine is asked directly; what the openai SDK makes of it is
in test_openai_sdk.py.
"""

import json
from collections.abc import Iterable
from typing import Any

import httpx
import openai
import pytest

from serve.engine.base import Engine

SAID = [
    {"role": "system", "content": "You walk in a grid."},
    {"role": "user", "content": "The key is north of you. What now?"},
]
CHAT = {"messages": SAID, "max_tokens": 3, "temperature": 0}
TEXT = {"prompt": "The key is north", "max_tokens": 3, "temperature": 0}


def post(engine: Engine, path: str, body: dict[str, Any], status: int = 200) -> httpx.Response:
    answer = httpx.post(f"{engine.root_url}{path}", json={"model": engine.model} | body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer


def ask(engine: Engine, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = post(engine, path, body).json()
    return answer


def events(engine: Engine, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = post(engine, path, body | {"stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *lines, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def generate(engine: Engine, **sampling: Any) -> dict[str, Any]:
    ids = ask(engine, "/tokenize", {"prompt": "The key is north"})["tokens"]
    sampling = {"max_tokens": 3, "temperature": 0} | sampling
    return {"token_ids": ids, "sampling_params": sampling}


def test_models(direct: Engine) -> None:
    listed = httpx.get(f"{direct.base_url}/models").json()
    assert (listed["object"], [card["id"] for card in listed["data"]]) == ("list", [direct.model])
    card = listed["data"][0]
    assert (card["parent"], card["max_model_len"]) == (None, 4096)
    assert {"object", "created", "owned_by", "root"} < set(card)


def test_a_text_survives_its_tokens(direct: Engine) -> None:
    text = "Once upon a time, 北 of  here:\n\n  naïve 😀 <tag>"
    told = ask(direct, "/tokenize", {"prompt": text})
    assert set(told) == {"count", "max_model_len", "tokens", "token_strs"}
    assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), 4096)
    assert told["token_strs"] is None
    assert ask(direct, "/detokenize", {"tokens": told["tokens"]}) == {"prompt": text}
    strings = ask(direct, "/tokenize", {"prompt": text, "return_token_strs": True})["token_strs"]
    assert len(strings) == told["count"]


def test_the_tokens_of_a_chat_are_those_that_tokenize_tells(direct: Engine) -> None:
    told = ask(direct, "/tokenize", {"messages": SAID})["tokens"]
    answer = ask(direct, "/v1/chat/completions", CHAT | {"return_token_ids": True})
    assert answer["prompt_token_ids"] == told
    assert answer["usage"]["prompt_tokens"] == len(told)
    without = ask(direct, "/tokenize", {"messages": SAID, "add_generation_prompt": False})
    assert told[: len(without["tokens"])] == without["tokens"] != told


@pytest.mark.parametrize("top", [None, 0, 2])
def test_ids_and_logprobs_of_a_chat(direct: Engine, top: int | None) -> None:
    fields = {"return_token_ids": True, "logprobs": True, "top_logprobs": top}
    choice = ask(direct, "/v1/chat/completions", CHAT | fields)["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(choice["token_ids"]) == len(content) == 3
    for each in content:
        assert set(each) == {"token", "logprob", "bytes", "top_logprobs"}
        assert [set(other) for other in each["top_logprobs"]] == (
            [{"token", "logprob", "bytes"}] * (top or 0)
        )
        assert bytes(each["bytes"]).decode() == each["token"]
        assert each["logprob"] < 0
    text = "".join(each["token"] for each in content)
    assert text == choice["message"]["content"]
    assert ask(direct, "/detokenize", {"tokens": choice["token_ids"]}) == {"prompt": text}


@pytest.mark.parametrize("top", [0, 1, 3])
def test_ids_and_logprobs_of_a_completion(direct: Engine, top: int) -> None:
    answer = ask(direct, "/v1/completions", TEXT | {"return_token_ids": True, "logprobs": top})
    choice = answer["choices"][0]
    assert choice["prompt_token_ids"] == ask(direct, "/tokenize", TEXT)["tokens"]
    assert len(choice["token_ids"]) == 3
    logprobs = choice["logprobs"]
    assert set(logprobs) == {"text_offset", "token_logprobs", "tokens", "top_logprobs"}
    assert "".join(logprobs["tokens"]) == choice["text"]
    ends = [start + len(token) for start, token in _pairs(logprobs)]
    assert logprobs["text_offset"] == [0, *ends[:-1]]
    assert [len(others) for others in logprobs["top_logprobs"]] == [max(top, 1)] * 3


def _pairs(logprobs: dict[str, Any]) -> Iterable[tuple[int, str]]:
    return zip(logprobs["text_offset"], logprobs["tokens"], strict=True)


def test_a_prompt_of_ids_is_a_prompt(direct: Engine) -> None:
    ids = ask(direct, "/tokenize", TEXT)["tokens"]
    fields = {"prompt": ids, "return_token_ids": True}
    answer = ask(direct, "/v1/completions", TEXT | fields)
    assert answer["choices"][0]["prompt_token_ids"] == ids
    assert answer["usage"]["prompt_tokens"] == len(ids)


def test_a_cut_answer_goes_on_from_its_ids(direct: Engine) -> None:
    fields = {"return_token_ids": True, "max_tokens": 4}
    whole = ask(direct, "/v1/completions", TEXT | fields)["choices"][0]
    prompt = whole["prompt_token_ids"] + whole["token_ids"][:2]
    rest = ask(direct, "/v1/completions", TEXT | fields | {"prompt": prompt, "max_tokens": 2})
    assert rest["choices"][0]["token_ids"] == whole["token_ids"][2:]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("continuous", [False, True])
def test_streams_tell_ids_logprobs_and_usage(direct: Engine, path: str, continuous: bool) -> None:
    is_chat = "chat" in path
    fields: dict[str, Any] = {
        "return_token_ids": True,
        "logprobs": True if is_chat else 1,
        "stream_options": {"include_usage": True, "continuous_usage_stats": continuous},
    }
    body = (CHAT if is_chat else TEXT) | fields
    whole = ask(direct, path, {key: body[key] for key in body if key != "stream_options"})
    *chunks, last = events(direct, path, body)
    assert (last["choices"], set(last)) == (
        [],
        {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"},
    )
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [last["usage"][name] for name in counts] == [whole["usage"][name] for name in counts]
    made = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")]
    assert made == (([0] * is_chat + [1, 2, 3]) if continuous else [])
    choices = [chunk["choices"][0] for chunk in chunks]
    ids = [each for choice in choices for each in choice.get("token_ids") or []]
    assert ids == whole["choices"][0]["token_ids"]
    prompts = [place.get("prompt_token_ids") for place in [*chunks, *choices]]
    asked = (whole if is_chat else whole["choices"][0])["prompt_token_ids"]
    assert [prompt for prompt in prompts if prompt is not None] == [asked]
    assert "prompt_token_ids" in (chunks if is_chat else choices)[0]
    told = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    assert [set(each) for each in told] == [set(whole["choices"][0]["logprobs"])] * 3
    assert [choice["finish_reason"] for choice in choices[-2:]] == [None, "length"]
    assert "stop_reason" in choices[-1]


def test_a_chat_begins_with_its_role(direct: Engine) -> None:
    first, second, *_ = (
        chunk["choices"][0]["delta"] for chunk in events(direct, "/v1/chat/completions", CHAT)
    )
    assert (first, list(second)) == ({"role": "assistant", "content": ""}, ["content"])


@pytest.mark.parametrize("top", [None, 0, 2])
def test_tokens_in_tokens_out(direct: Engine, top: int | None) -> None:
    body = generate(direct, logprobs=top) | {"return_token_ids": True, "request_id": "mine"}
    answer = ask(direct, "/inference/v1/generate", body)
    assert answer["request_id"] == "generate-tokens-mine"
    assert (answer["model"], answer["output_mode"]) == (direct.model, "tokens")
    assert answer["prompt_token_ids"] == body["token_ids"]
    assert answer["usage"]["completion_tokens"] == 3
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["weight_versions"] == [{"version": "default", "start": 0, "end": 3}]
    if top is None:
        assert choice["logprobs"] is None
        return
    content = choice["logprobs"]["content"]
    assert [each["token_id"] for each in content] == choice["token_ids"]
    for each in content:
        assert set(each) == {"token_id", "logprob", "rank", "top_logprobs"}
        assert [set(other) for other in each["top_logprobs"]] == (
            [{"token_id", "logprob", "rank"}] * max(top, 1)
        )
        assert each["top_logprobs"][0]["token_id"] == each["token_id"]


def test_tokens_in_tokens_out_streamed(direct: Engine) -> None:
    body = generate(direct, logprobs=0) | {"return_token_ids": True}
    whole = ask(direct, "/inference/v1/generate", body)["choices"][0]
    options = {"stream_options": {"include_usage": True}}
    first, *_, before, last = events(direct, "/inference/v1/generate", body | options)
    assert set(before) == {"request_id", "usage", "output_mode", "choices"}
    assert set(first) - set(before) == {"prompt_token_ids"}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)
    assert first["choices"][0]["weight_versions"] is None
    assert before["choices"][0]["weight_versions"] == whole["weight_versions"]
    assert first["choices"][0]["token_ids"] == whole["token_ids"][:1]


def test_tokens_in_text_out(direct: Engine) -> None:
    body = generate(direct, logprobs=1) | {"output_mode": "text"}
    choice = ask(direct, "/inference/v1/generate", body)["choices"][0]
    assert ask(direct, "/detokenize", {"tokens": choice["token_ids"]}) == {"prompt": choice["text"]}
    assert set(choice["logprobs"]["content"][0]) == {"token", "logprob", "bytes", "top_logprobs"}


def test_responses(direct: Engine) -> None:
    with openai.OpenAI(base_url=direct.base_url, api_key="none", max_retries=0) as client:
        fields: dict[str, Any] = {"model": direct.model, "max_output_tokens": 3, "temperature": 0}
        whole = client.responses.create(input="Say hi", instructions="Be kind.", **fields)
        with client.responses.stream(input="Say hi", instructions="Be kind.", **fields) as stream:
            told = [event.type for event in stream]
            assert stream.get_final_response().output_text == whole.output_text
    assert (whole.status, whole.object) == ("incomplete", "response")
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 3
    assert told[:2] + told[-1:] == [
        "response.created",
        "response.in_progress",
        "response.completed",
    ]
    # An engine may send tokens together to a client that is slow to read.
    assert 1 <= told.count("response.output_text.delta") <= 3


def test_embeddings_where_there_are_any(direct: Engine) -> None:
    body = {"model": direct.model, "input": ["a", "b"]}
    answer = httpx.post(f"{direct.base_url}/embeddings", json=body)
    if answer.status_code == 404:
        assert answer.json() == {"detail": "Not Found"}
        return
    told = answer.json()
    assert set(told) == {"id", "object", "created", "model", "data", "usage"}
    assert [set(each) for each in told["data"]] == [{"index", "object", "embedding"}] * 2


def test_metrics_that_the_gateway_reads(direct: Engine) -> None:
    ask(direct, "/v1/completions", TEXT)
    lines = httpx.get(f"{direct.root_url}/metrics").text.splitlines()
    told = {line.partition("{")[0]: line for line in lines if line.startswith("vllm:")}
    for name in (
        *("prefix_cache_queries_total", "prefix_cache_hits_total", "kv_cache_usage_perc"),
        *("num_requests_running", "num_requests_waiting", "generation_tokens_total"),
    ):
        line = told[f"vllm:{name}"]
        assert f'{{engine="0",model_name="{direct.model}"}} ' in line
        assert float(line.rpartition(" ")[2]) >= 0


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "param"),
    [
        ("/tokenize", {"model": "no", "prompt": "x"}, 404, "NotFoundError", "model"),
        ("/tokenize", {}, 400, "Bad Request", "body.prompt"),
        ("/detokenize", {}, 400, "Bad Request", "body.tokens"),
        ("/detokenize", {"tokens": ["x"]}, 400, "Bad Request", "body.tokens.0"),
        (
            "/inference/v1/generate",
            {"model": "no", "token_ids": [1], "sampling_params": {}},
            *(404, "NotFoundError", "model"),
        ),
        ("/inference/v1/generate", {"token_ids": [1]}, 400, "Bad Request", "body.sampling_params"),
        (
            "/inference/v1/generate",
            {"token_ids": [], "sampling_params": {}},
            *(400, "Bad Request", "body.token_ids"),
        ),
        (
            "/inference/v1/generate",
            {"token_ids": "x", "sampling_params": {}},
            *(400, "Bad Request", "body.token_ids"),
        ),
        (
            "/inference/v1/generate",
            {"token_ids": [1], "sampling_params": {"max_tokens": 0}},
            *(400, "BadRequestError", "max_tokens"),
        ),
        ("/v1/responses", {}, 400, "Bad Request", "body.input"),
        ("/v1/responses", {"model": "no", "input": "x"}, 404, "NotFoundError", "model"),
        (
            "/v1/chat/completions",
            CHAT | {"top_logprobs": 2},
            *(400, "BadRequestError", "top_logprobs"),
        ),
        (
            "/v1/chat/completions",
            CHAT | {"tool_choice": "required"},
            *(400, "BadRequestError", "tool_choice"),
        ),
    ],
)
def test_refusals(
    direct: Engine, path: str, body: dict[str, Any], status: int, kind: str, param: str
) -> None:
    error = post(direct, path, body, status).json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == (kind, param, status)


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_fake_engine_has_only_fields_that_vllm_has(
    fake_engine: Engine, vllm_engine: Engine
) -> None:
    def shapes(engine: Engine) -> dict[str, set[str]]:
        ids = {"return_token_ids": True}
        asked: dict[str, dict[str, Any]] = {
            "/v1/chat/completions": CHAT | ids | {"logprobs": True, "top_logprobs": 1},
            "/v1/completions": TEXT | ids,
            "/inference/v1/generate": generate(engine, logprobs=1) | ids,
            "/tokenize": {"prompt": "x"},
            "/v1/responses": {"input": "x", "max_output_tokens": 3},
        }
        found = {path: set(_paths(ask(engine, path, body))) for path, body in asked.items()}
        for path in list(asked)[:3]:
            for stream_options in (None, {"include_usage": True}):
                body = asked[path] | {"stream_options": stream_options}
                found[path] |= {f"event{p}" for e in events(engine, path, body) for p in _paths(e)}
        found["/v1/models"] = set(_paths(httpx.get(f"{engine.base_url}/models").json()))
        return found

    real = shapes(vllm_engine)
    assert {path: had - real[path] for path, had in shapes(fake_engine).items()} == {
        path: set() for path in real
    }


def _paths(value: Any, at: str = "") -> Iterable[str]:
    """Name every place of a JSON value; what is null somewhere may be anything elsewhere."""
    if isinstance(value, dict):
        yield at
        for name, below in value.items():
            yield from _paths(below, f"{at}.{name}")
    elif isinstance(value, list):
        yield at
        for below in value:
            yield from _paths(below, f"{at}[]")
    else:
        yield at
