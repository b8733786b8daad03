"""What a FakeEngine says instead of an answer, in the shapes and words of vLLM 0.32. Pure."""

from typing import Any

import orjson


class Refusal(Exception):
    """A request that gets an OpenAI error object instead of a completion."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "BadRequestError",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        """Return the error object as vLLM writes it."""
        return orjson.dumps(
            {
                "error": {
                    "message": str(self),
                    "type": self.kind,
                    "param": self.param,
                    "code": self.status,
                }
            }
        )


def decode(body: bytes) -> dict[str, Any]:
    """Read a request's body; raise Refusal."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid("json_invalid", f"body.{error.pos}", f"JSON decode error: {error}") from None
    if not isinstance(request, dict):
        raise invalid("model_attributes_type", "body", "Input should be a valid dictionary")
    return request


def invalid(kind: str, place: str, message: str) -> Refusal:
    """Return the refusal of a body that does not have the right form."""
    text = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{place}', 'msg': '{message}'}}"
    return Refusal(text, kind="Bad Request", param=place)


def missing(name: str) -> Refusal:
    """Return the refusal of a body without that field."""
    return invalid("missing", f"body.{name}", "Field required")


def out_of_range(name: str, wanted: str, found: float) -> Refusal:
    """Return the refusal of a number that is too small."""
    message = f"{name} must be {wanted}, got {found}. (parameter={name}, value={found})"
    return Refusal(message, param=name)


def unknown_model(asked: object, model: str) -> Refusal:
    """Return the refusal of a model that is not served."""
    return Refusal(
        f"The model `{asked}` does not exist. Valid aliases: {model}.",
        status=404,
        kind="NotFoundError",
        param="model",
    )


def too_long(max_model_len: int) -> Refusal:
    """Return the refusal of a prompt that leaves no room for an answer."""
    return Refusal(
        f"This model's maximum context length is {max_model_len} tokens. However, "
        f"your prompt contains at least {max_model_len + 1} input tokens, which "
        "exceeds this limit even without any output tokens. Please reduce the length of "
        f"the input prompt. (parameter=input_tokens, value={max_model_len + 1})",
        param="input_tokens",
    )


def failed(reason: str) -> Refusal:
    """Return what vLLM says when its workers could not do what they were told."""
    return Refusal(
        f"Call to collective_rpc method failed: Worker failed with error '{reason}', please check "
        "the stack trace above for the root cause",
        status=500,
        kind="InternalServerError",
    )
