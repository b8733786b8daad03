"""/v1/responses: one message of text, whole or as the events that the openai SDK knows. Pure."""

from typing import Any, Final

import orjson

from serve.testing import asks
from serve.testing.forms import Form
from serve.testing.generation import Ask, Generation
from serve.testing.plain import CREATED
from serve.testing.refusals import missing
from serve.testing.tokens import encode_chat


class Responses(Form):
    """One answer a request; nothing is stored, and there are no tools."""

    def read(self, request: dict[str, Any]) -> Ask:
        """Read the input: text, or items that are messages."""
        given = request.get("input")
        if given is None:
            raise missing("input")
        said = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
        if instructions := request.get("instructions"):
            said.insert(0, {"role": "system", "content": instructions})
        return Ask(
            request=request,
            model=request.get("model") or "",
            subject=orjson.dumps(said),
            prompt_ids=encode_chat(said),
            seed=request.get("seed") or 0,
            max_tokens=request.get("max_output_tokens"),
            stops=asks.stops(request),
            stream=bool(request.get("stream")),
        )

    def whole(self, made: Generation) -> bytes:
        """Write the response with its message."""
        return orjson.dumps(_response(made))

    def opening(self, made: Generation) -> bytes:
        """Begin the response, its message, and the message's text."""
        begun = _response(made)
        item, part = _message(made), _part("")
        item |= {"content": [], "status": "in_progress"}
        return b"".join(
            (
                _event("response.created", 0, response=begun),
                _event("response.in_progress", 1, response=begun),
                _event("response.output_item.added", 2, item=item, output_index=0),
                _event("response.content_part.added", 3, part=part, **_place(made)),
            )
        )

    def event(self, made: Generation, start: int) -> bytes:
        """Write a piece of the text."""
        delta = "".join(made.pieces[start:])
        if not delta:
            return b""
        name = "response.output_text.delta"
        return _event(name, 4 + start, delta=delta, logprobs=[], **_place(made))

    def closing(self, made: Generation) -> bytes:
        """End the text, its message and the response."""
        at, text, item = 4 + len(made.pieces), made.text, _message(made)
        return b"".join(
            (
                _event("response.output_text.done", at, text=text, logprobs=[], **_place(made)),
                _event("response.content_part.done", at + 1, part=_part(text), **_place(made)),
                _event("response.output_item.done", at + 2, item=item, output_index=0),
                _event("response.completed", at + 3, response=_response(made)),
            )
        )


def _response(made: Generation) -> dict[str, Any]:
    request = made.ask.request
    is_cut = made.finish_reason == b"length"
    return {
        "id": f"resp_{made.digest}",
        "created_at": CREATED,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "instructions": request.get("instructions"),
        "metadata": request.get("metadata"),
        "model": made.ask.model,
        "object": "response",
        "output": [_message(made)] if made.is_over else [],
        "parallel_tool_calls": True,
        "temperature": request.get("temperature", 1.0),
        "tool_choice": "none",
        "tools": [],
        "top_p": request.get("top_p", 1.0),
        "background": False,
        "max_output_tokens": made.ask.max_tokens,
        "previous_response_id": None,
        "service_tier": "auto",
        "status": "incomplete" if is_cut else "completed" if made.is_over else "in_progress",
        "truncation": "disabled",
        "usage": _usage(made) if made.is_over else None,
        "user": request.get("user"),
    }


def _usage(made: Generation) -> dict[str, Any]:
    prompt, done = len(made.ask.prompt_ids), len(made.pieces)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": made.cached_tokens or 0},
        "output_tokens": done,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + done,
    }


def _message(made: Generation) -> dict[str, Any]:
    return {
        "id": f"msg_{made.digest}",
        "content": [_part(made.text)],
        "role": "assistant",
        "status": "completed",
        "type": "message",
    }


def _part(text: str) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}


def _place(made: Generation) -> dict[str, Any]:
    return {"content_index": 0, "item_id": f"msg_{made.digest}", "output_index": 0}


def _event(name: str, number: int, **fields: object) -> bytes:
    event = orjson.dumps({**fields, "sequence_number": number, "type": name})
    return b"event: %b\ndata: %b\n\n" % (name.encode(), event)


RESPONSES: Final = Responses()
