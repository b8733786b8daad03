"""/inference/v1/generate: token ids in, token ids out, with the weights' label for each. Pure."""

from typing import Any, Final

import orjson

from serve.testing import asks
from serve.testing.forms import Form, chat_logprobs, sse, usage
from serve.testing.generation import Ask, Generation
from serve.testing.plain import CREATED, DONE
from serve.testing.refusals import Refusal, invalid, missing
from serve.testing.tokens import WORDS


class Generate(Form):
    """Tokens, or with `output_mode` `text` their text besides."""

    def read(self, request: dict[str, Any]) -> Ask:
        """Read a prompt of ids, and sampling parameters under vLLM's own names."""
        ids = request.get("token_ids")
        if ids is None:
            raise missing("token_ids")
        if not asks.is_token_list(ids):
            raise invalid("list_type", "body.token_ids", "Input should be a valid list")
        if not ids:
            message = "List should have at least 1 item after validation, not 0"
            raise invalid("too_short", "body.token_ids", message)
        sampling = request.get("sampling_params")
        if not isinstance(sampling, dict):
            raise missing("sampling_params")
        return Ask(
            request=request,
            model=request.get("model") or "",
            subject=orjson.dumps(ids),
            prompt_ids=ids,
            is_tokens=True,
            seed=sampling.get("seed") or 0,
            max_tokens=sampling.get("max_tokens"),
            stops=asks.stops(sampling),
            keep_stop=asks.keeps_stop(sampling),
            stream=bool(request.get("stream")),
            logprobs=sampling.get("logprobs"),
            wants_ids=bool(request.get("return_token_ids")),
        )

    def whole(self, made: Generation) -> bytes:
        """Write one choice."""
        ask = made.ask
        return orjson.dumps(
            {
                "request_id": _id(made),
                "model": ask.model,
                "created": CREATED,
                "usage": usage(made, is_whole=True),
                "prompt_logprobs": None,
                "prompt_token_ids": ask.prompt_ids if ask.wants_ids else None,
                "output_mode": _mode(made),
                "choices": [self._choice(made, 0)],
            }
        )

    def event(self, made: Generation, start: int) -> bytes:
        """Write tokens; the last event has the spans of labels over all of them."""
        more: dict[str, Any] = {}
        if made.ask.wants_ids and not start:
            more["prompt_token_ids"] = made.ask.prompt_ids
        counted = usage(made) if made.ask.continuous_usage else None
        head = {"request_id": _id(made), "usage": counted, "output_mode": _mode(made)}
        return sse(head | more | {"choices": [self._choice(made, start)]})

    def closing(self, made: Generation) -> bytes:
        """Write the usage if it was asked for."""
        if not made.ask.include_usage:
            return DONE
        head = {"request_id": _id(made), "usage": usage(made), "output_mode": _mode(made)}
        return sse(head | {"choices": []}) + DONE

    def _choice(self, made: Generation, start: int) -> dict[str, Any]:
        spans = [{"version": label, "start": a, "end": b} for label, a, b in made.spans]
        choice = {
            "index": 0,
            "finish_reason": made.finish_reason.decode() if made.finish_reason else None,
            "stop_reason": orjson.loads(made.stop_reason),
            "token_ids": made.ids(start),
            "weight_versions": spans if made.is_over else None,
        }
        is_text = _mode(made) == "text"
        if is_text:
            choice["text"] = "".join(made.pieces[start:])
        if made.ask.logprobs is None:
            return choice | {"logprobs": None}
        content = chat_logprobs(made, start) if is_text else _logprobs(made, start)
        return choice | {"logprobs": {"content": content}}


def _logprobs(made: Generation, start: int) -> list[dict[str, Any]]:
    """Return the logprobs with ids for tokens, the chosen one first among the likeliest."""
    others = range(1, made.ask.logprobs or 0)
    content = []
    for token_id, value in zip(made.ids(start), made.logprobs[start:], strict=True):
        chosen = {"token_id": token_id, "logprob": value, "rank": 1}
        rest = [
            {"token_id": other, "logprob": value - n, "rank": n + 1}
            for n, other in zip(others, WORDS.ids(f" other{n}" for n in others), strict=True)
        ]
        content.append(chosen | {"top_logprobs": [chosen, *rest]})
    return content


def _id(made: Generation) -> str:
    return f"generate-tokens-{made.ask.request.get('request_id') or made.digest}"


def _mode(made: Generation) -> str:
    mode = made.ask.request.get("output_mode", "tokens")
    if mode not in ("tokens", "text"):
        raise Refusal("output_mode is 'tokens' or 'text'", param="output_mode")
    return str(mode)


GENERATE: Final = Generate()
