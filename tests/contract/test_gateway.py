"""What the real openai SDK gets from the gateway, beyond what an engine gives: versions, errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from serve.engine.base import Engine

MESSAGES = [{"role": "user", "content": "The key is north of you. What now?"}]


@pytest.fixture
def sdk(gateway: Engine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.base_url, api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, model: str, **fields: Any) -> Any:
    create: Callable[..., Any] = client.chat.completions.with_raw_response.create
    return create(**{"model": model, "messages": MESSAGES, "max_tokens": 4} | fields)


def test_models_and_their_versions_are_listed(sdk: openai.OpenAI, gateway: Engine) -> None:
    cards = {card.id: card for card in sdk.models.list().data}
    assert set(cards) == {gateway.model, f"{gateway.model}@1"}
    extra = cards[gateway.model].model_extra
    assert extra is not None
    assert (extra["policy_version"], extra["max_model_len"]) == (1, 4096)


@pytest.mark.parametrize("suffix", ["", "@1"])
@pytest.mark.parametrize("stream", [False, True])
def test_every_answer_says_which_weights_made_it(
    sdk: openai.OpenAI, gateway: Engine, suffix: str, stream: bool
) -> None:
    answer = ask(sdk, gateway.model + suffix, stream=stream)
    assert answer.headers["x-policy-version"] == "1"
    assert answer.headers["x-replica"] == "upstream-0"
    assert "x-policy-version-end" not in answer.headers
    if stream:
        assert list(answer.parse())
    else:
        assert answer.parse().choices[0].message.content


@pytest.mark.parametrize("constraint", [">=1", "==1"])
def test_a_constraint_that_holds_is_no_obstacle(
    sdk: openai.OpenAI, gateway: Engine, constraint: str
) -> None:
    answer = ask(sdk, gateway.model, extra_headers={"X-Policy-Constraint": constraint})
    assert answer.headers["x-policy-version"] == "1"


@pytest.mark.parametrize(
    ("model", "headers"),
    [("@7", {}), ("", {"X-Policy-Constraint": ">=2"}), ("", {"X-Policy-Constraint": "==3"})],
)
def test_a_version_that_nobody_serves_is_a_conflict_to_be_retried(
    sdk: openai.OpenAI, gateway: Engine, model: str, headers: dict[str, str]
) -> None:
    with pytest.raises(openai.ConflictError) as caught:
        ask(sdk, gateway.model + model, extra_headers=headers)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["code"] == "policy_version_not_ready"
    assert caught.value.response.headers["retry-after"] == "1"


def test_an_unknown_model_is_not_found(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(sdk, "nope")
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("model", "message"), [("a b@", "expected NAME or NAME@VERSION"), ("m@x", "expected NAME")]
)
def test_a_model_that_is_no_name_is_a_bad_request(
    sdk: openai.OpenAI, model: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        ask(sdk, model)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model":', "the body is not JSON"),
        (b"[1]", "the body is not a request"),
        (b'{"model":7}', "the body is not a request"),
        (b"\xff", "the body is not JSON"),
    ],
)
def test_a_malformed_body_never_reaches_an_engine(
    gateway: Engine, body: bytes, message: str
) -> None:
    answer = httpx.post(f"{gateway.base_url}/chat/completions", content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["message"].startswith(message)
    assert "x-replica" not in answer.headers


@pytest.mark.parametrize(
    "path",
    ["/update_weights", "/collective_rpc", "/pause", "/v1/load_lora_adapter", "/server_info"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_engines_own_routes_cannot_be_reached(gateway: Engine, method: str, path: str) -> None:
    answer = httpx.request(method, gateway.root_url + path, json={})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


def test_responses(sdk: openai.OpenAI, gateway: Engine) -> None:
    answer = sdk.responses.create(
        model=gateway.model, input="Say something.", max_output_tokens=16, temperature=0
    )
    assert answer.output_text
    with sdk.responses.stream(
        model=gateway.model, input="Say something.", max_output_tokens=16, temperature=0
    ) as stream:
        assert stream.get_final_response().output_text == answer.output_text


def test_a_clients_timeout_is_its_own(gateway: Engine) -> None:
    with openai.OpenAI(
        base_url=gateway.base_url, api_key="none", max_retries=0, timeout=0.001
    ) as hasty:
        started = time.monotonic()
        with pytest.raises(openai.APITimeoutError):
            # So long a body takes longer than that, however fast the engine is.
            ask(hasty, gateway.model, max_tokens=512, extra_body={"unknown": "x" * 4_000_000})
    assert time.monotonic() - started < 5
    with openai.OpenAI(base_url=gateway.base_url, api_key="none") as patient:
        assert ask(patient, gateway.model).parse().choices


def test_tokens_are_counted_as_the_engine_counts_them(gateway: Engine) -> None:
    with httpx.Client(base_url=gateway.root_url) as plain:
        counted = plain.post("/tokenize", json={"model": gateway.model, "prompt": "a b"}).json()
        back = plain.post(
            "/detokenize", json={"model": gateway.model, "tokens": counted["tokens"]}
        ).json()
    assert counted["count"] == len(counted["tokens"]) > 0
    assert back["prompt"] == "a b"
