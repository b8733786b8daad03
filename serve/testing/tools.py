"""Chats whose answer is the call of a tool, when the request insists on one. Pure.

The reply is the call's arguments if it is a JSON object, else they are made up to fit the schema.
"""

from typing import Any, Final

import orjson

from serve.testing.forms import Chat
from serve.testing.generation import Generation
from serve.testing.refusals import Refusal

_SAMPLES: Final[dict[str, object]] = {
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "array": [],
    "object": {},
    "null": None,
}


class ToolCall(Chat):
    """/v1/chat/completions with a `tool_choice` that names a tool or requires one."""

    def content(self, made: Generation) -> dict[str, Any]:
        """Return a message that holds the call."""
        call = self._begun(made) | {"function": {"name": _name(made), "arguments": made.text}}
        message = {"role": "assistant", "content": "", "refusal": None, "reasoning": None}
        return {"message": message | {"tool_calls": [call]}}

    def event(self, made: Generation, start: int) -> bytes:
        """Write a piece of the arguments: before the first the name, after the last the end."""
        end = len(made.pieces)
        parts: list[tuple[int, dict[str, Any]]] = []
        if not start:
            begun = self._begun(made) | {"index": 0, "function": {"name": _name(made)}}
            parts.append((end, {"content": None, "tool_calls": [begun]}))
        if piece := "".join(made.pieces[start:]):
            call = {"index": 0, "function": {"arguments": piece}}
            parts.append((start, {"content": None, "tool_calls": [call]}))
        if made.is_over:
            parts.append((end, {}))
        return b"".join(self.delta(made, at, part, is_last=not part) for at, part in parts)

    def _begun(self, made: Generation) -> dict[str, Any]:
        return {"id": f"chatcmpl-tool-{made.digest}", "type": "function"}


TOOL_CALL: Final = ToolCall()


def is_wanted(request: dict[str, Any]) -> bool:
    """Whether the answer has to be the call of a tool; raise Refusal if there is none to call."""
    choice = request.get("tool_choice")
    if choice in (None, "none", "auto"):
        return False
    if not request.get("tools"):
        raise Refusal(
            "When using `tool_choice`, `tools` must be set. (parameter=tool_choice)",
            param="tool_choice",
        )
    return True


def arguments(request: dict[str, Any], text: str) -> str:
    """Return the arguments of the call, as JSON."""
    try:
        if isinstance(orjson.loads(text), dict):
            return text
    except orjson.JSONDecodeError:
        pass
    return orjson.dumps(_sample(_function(request).get("parameters") or {})).decode()


def _name(made: Generation) -> str:
    return str(_function(made.ask.request).get("name"))


def _function(request: dict[str, Any]) -> dict[str, Any]:
    """Return the tool that is named, or else the first."""
    functions: list[dict[str, Any]] = [tool["function"] for tool in request["tools"]]
    choice = request["tool_choice"]
    name = choice["function"]["name"] if isinstance(choice, dict) else functions[0].get("name")
    found = [function for function in functions if function.get("name") == name]
    if not found:
        raise Refusal(f"The tool {name!r} is not among the tools.", param="tool_choice")
    return found[0]


def _sample(schema: dict[str, Any]) -> object:
    """Return a value that fits a simple schema."""
    if options := schema.get("enum"):
        return options[0]
    if "properties" in schema:
        names = schema.get("required", list(schema["properties"]))
        return {name: _sample(schema["properties"].get(name, {})) for name in names}
    return _SAMPLES.get(str(schema.get("type")), "x")
