"""From a request for a chat or a completion to what it asks for. Pure; raises Refusal as vLLM."""

from typing import Any

import orjson

from serve.testing.generation import Ask
from serve.testing.refusals import Refusal, invalid, missing, out_of_range
from serve.testing.tokens import encode, encode_chat


def read_chat(request: dict[str, Any]) -> Ask:
    """Read a request for a chat."""
    subject = chat_subject(request)
    top = request.get("top_logprobs")
    if top and not request.get("logprobs"):
        raise Refusal(
            "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)",
            param="top_logprobs",
        )
    return Ask(
        request=request,
        model=request.get("model") or "",
        subject=subject,
        prompt_ids=encode_chat(request["messages"]),
        seed=request.get("seed") or 0,
        max_tokens=request.get("max_completion_tokens") or request.get("max_tokens"),
        stops=stops(request),
        keep_stop=keeps_stop(request),
        stream=bool(request.get("stream")),
        logprobs=(top or 0) if request.get("logprobs") else None,
        wants_ids=bool(request.get("return_token_ids")),
    )


def read_text(request: dict[str, Any]) -> Ask:
    """Read a request for a completion, whose prompt is text or token ids."""
    subject = text_subject(request)
    prompt = request["prompt"]
    is_tokens = is_token_list(prompt)
    if not is_tokens:
        prompt = encode(prompt if isinstance(prompt, str) else " ".join(map(str, prompt)))
    return Ask(
        request=request,
        model=request.get("model") or "",
        subject=subject,
        prompt_ids=prompt,
        is_tokens=is_tokens,
        seed=request.get("seed") or 0,
        max_tokens=request.get("max_tokens"),
        stops=stops(request),
        keep_stop=keeps_stop(request),
        stream=bool(request.get("stream")),
        logprobs=request.get("logprobs"),
        wants_ids=bool(request.get("return_token_ids")),
    )


def chat_subject(request: dict[str, Any]) -> bytes:
    """Return the conversation as JSON."""
    subject = request.get("messages")
    if subject is None:
        raise missing("messages")
    if not isinstance(subject, list):
        raise invalid("list_type", "body.messages", "Input should be a valid list")
    if not subject:
        raise Refusal(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    return orjson.dumps(subject)


def text_subject(request: dict[str, Any]) -> bytes:
    """Return the prompt as JSON."""
    subject = request.get("prompt")
    if not subject:
        raise Refusal(
            "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)",
            param="prompt",
        )
    return orjson.dumps(subject)


def is_token_list(prompt: object) -> bool:
    """Whether a prompt is made of ids."""
    return isinstance(prompt, list) and all(isinstance(token_id, int) for token_id in prompt)


def check(request: dict[str, Any], max_model_len: int) -> None:
    """Hold the fields that every route has to their ranges."""
    for name in ("max_tokens", "max_completion_tokens", "seed", "n"):
        if not isinstance(request.get(name), int | None):
            raise invalid("int_parsing", f"body.{name}", "Input should be a valid integer")
    limit = request.get("max_tokens")
    if limit is not None and limit < 1:
        raise out_of_range("max_tokens", "at least 1", limit)
    if limit is not None and limit > max_model_len:
        raise Refusal(
            f"max_tokens={limit} cannot be greater than max_model_len={max_model_len}. "
            f"Please request fewer output tokens. (parameter=max_tokens, value={limit})",
            param="max_tokens",
        )
    temperature = request.get("temperature") or 0.0
    if not isinstance(temperature, int | float):
        raise invalid("float_parsing", "body.temperature", "Input should be a valid number")
    if temperature < 0:
        raise out_of_range("temperature", "non-negative", float(temperature))
    if request.get("n") not in (None, 1):
        raise Refusal("FakeEngine makes one choice a request (n=1).", param="n")


def stops(request: dict[str, Any]) -> tuple[str, ...]:
    """Return the stop strings."""
    stop = request.get("stop") or ()
    return (stop,) if isinstance(stop, str) else tuple(map(str, stop))


def keeps_stop(request: dict[str, Any]) -> bool:
    """Whether the stop string stays in the answer."""
    return bool(request.get("include_stop_str_in_output"))
