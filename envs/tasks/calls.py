"""Function calls: how functions are described, how calls stand in a reply and in an action.

Lives here: reading and writing. Which calls are right, `call_checker` knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.base import Parsed, ParseKind

TAG = "function_calls"
NO_CALL = "[]"
ACTION_PATTERN = rf"<{TAG}>\[[^<\n]*\]</{TAG}>"
"""Admits a list in one line."""

_LONGEST = 20_000
_BLOCK = re.compile(rf"<{TAG}>(.*?)(</{TAG}>|\Z)", re.DOTALL | re.IGNORECASE)
_HERMES = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL | re.IGNORECASE)
_NO_TOOL_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "list": "array"}


class NotCalls(ValueError):
    """An action is no list of calls; the message says why."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function by its name."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function on offer. `parameters`: its JSON schema, in BFCL's or in OpenAI's words."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    @property
    def tool_name(self) -> str:
        """The name as OpenAI's API admits it: `math.sqrt` is `math_sqrt` there."""
        return _NO_TOOL_NAME.sub("_", self.name)[:64]

    def as_tool(self) -> dict[str, Any]:
        """Return the function as an OpenAI tool definition."""
        described = {
            "name": self.tool_name,
            "description": self.description,
            "parameters": _json_schema(self.parameters),
        }
        return {"type": "function", "function": described}

    def as_text(self) -> str:
        """Return the function as one line of JSON, for a prompt."""
        described = {
            "name": self.name,
            "description": self.description,
            "parameters": _json_schema(self.parameters),
        }
        return json.dumps(described, ensure_ascii=False)


def offer(functions: Sequence[Function]) -> str:
    """Write the part of a prompt that lists functions and says how to call them."""
    listed = "\n".join(function.as_text() for function in functions)
    return (
        f"You can call these functions:\n{listed}\n"
        "Answer with the calls as a JSON list, in this form:\n"
        f'<{TAG}>[{{"name": "the_function", "arguments": {{"its_parameter": "value"}}}}]</{TAG}>\n'
        "Give every argument a value of its parameter's type; leave out optional arguments that "
        f"nobody mentions. If no function fits, answer <{TAG}>{NO_CALL}</{TAG}>"
    )


def parse_calls(completion: str) -> Parsed:
    """Read the calls out of a reply.

    The first `<function_calls>[..]</function_calls>` counts; where there is none, all of Hermes'
    `<tool_call>{..}</tool_call>` together. The action is the list as `write_calls` writes it, or
    what stands there, if that is no list of calls. A reply without calls names no action: to call
    nothing one must say so, by an empty list.
    """
    blocks = list(_BLOCK.finditer(completion))
    found = blocks[:1] or list(_HERMES.finditer(completion))
    if not found:
        return Parsed(None, ParseKind.NO_ACTION if completion.strip() else ParseKind.EMPTY)
    texts = [match[1].strip() for match in found]
    if not any(texts):
        return Parsed(None, ParseKind.NO_ACTION)
    try:
        action = write_calls([call for text in texts for call in read_calls(text)])
    except NotCalls:
        action = "\n".join(texts)[:_LONGEST]
    if not found[-1][2]:
        return Parsed(action, ParseKind.UNCLOSED)
    return Parsed(action, ParseKind.MULTI_ACTION if len(blocks) > 1 else ParseKind.OK)


def read_calls(text: str) -> list[Call]:
    """Read a JSON list of calls, or a single one; OpenAI's `tool_calls` read as well.

    Raises:
        NotCalls: it is something else.

    """
    value = _json(text[: _LONGEST + 1])
    return [_call(one) for one in (value if isinstance(value, list) else [value])]


def write_calls(calls: Sequence[Call]) -> str:
    """Write calls in their one form: a JSON list.

    Raises:
        NotCalls: an argument is nested too deep.

    """
    try:
        return json.dumps([{"name": call.name, "arguments": call.arguments} for call in calls])
    except RecursionError:
        raise NotCalls("the arguments are nested too deep") from None


def find(functions: Sequence[Function], name: str) -> Function | None:
    """Return the function that a call's name means: its own, or its name as a tool."""
    for meant in ("name", "tool_name"):
        for function in functions:
            if getattr(function, meant) == name:
                return function
    return None


def offered(action: str, functions: Sequence[Function]) -> list[Call]:
    """Read an action's calls, each under its function's own name.

    Raises:
        NotCalls: it is no list of calls, or one calls a function that is not on offer.

    """
    if not action:
        raise NotCalls(f"the reply names no calls, not even {NO_CALL}")
    calls = []
    for call in read_calls(action):
        function = find(functions, call.name)
        if function is None:
            raise NotCalls(f"there is no function {call.name[:60]!r}")
        calls.append(Call(function.name, call.arguments))
    return calls


def _json(text: str) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NotCalls(f"expected a JSON list of calls, and this is no JSON: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _call(value: object) -> Call:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not (isinstance(value, dict) and isinstance(value.get("name"), str)):
        raise NotCalls("expected each call as an object with a name and arguments")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments)
    if not isinstance(arguments, dict):
        raise NotCalls("expected a call's arguments as an object")
    return Call(value["name"], arguments)


def _json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema in JSON Schema's own words: BFCL's dict is an object, its float a number."""
    written: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            if value != "any":
                written[key] = _JSON_TYPES.get(value, value)
        elif key == "properties":
            written[key] = {name: _json_schema(one) for name, one in value.items()}
        elif key in {"items", "additionalProperties"} and isinstance(value, dict):
            written[key] = _json_schema(value)
        else:
            written[key] = value
    return written
