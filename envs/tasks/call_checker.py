"""Which function calls are right: the rules of BFCL's checker, with a true matching.

Lives here: comparing calls with accepted ones, and calls that are known to be wrong, to check the
checker. One rule serves every category: as many calls as expected, in any order, each matching
another expected one. So "simple" expects one call, "parallel" several, "irrelevance" none.

Beyond the original: calls and expectations are matched exactly (a maximum bipartite matching, not
the first that fits), and types and accepted values are followed however deep they nest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from envs.tasks.calls import Call, Function, find, write_calls

OPTIONAL = ""
"""Among a parameter's accepted values: it may be left out."""

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "float": (float, int),
    "number": (float, int),
    "boolean": (bool,),
    "array": (list,),
    "list": (list,),
    "tuple": (list,),
    "dict": (dict,),
    "object": (dict,),
}
_ANY = "any"
_IGNORED_IN_TEXTS = re.compile(r"[ ,./\-_*^]")


@dataclass(frozen=True, slots=True)
class Expected:
    """One call that is wanted. `accepted`: values that will do, by parameter."""

    name: str
    accepted: Mapping[str, Sequence[Any]]


def why_wrong(
    calls: Sequence[Call], wanted: Sequence[Expected], functions: Sequence[Function]
) -> str:
    """Say in a few words what is wrong with `calls`; "" if nothing is."""
    if len(calls) != len(wanted):
        return f"expected {_number(len(wanted))}, found {_number(len(calls))}"
    by_name = {function.name: function for function in functions}
    fits = [[_why_not(call, one, by_name[one.name]) for one in wanted] for call in calls]
    unmatched = _unmatched([[not reason for reason in row] for row in fits])
    if unmatched is None:
        return ""
    near = [
        reason
        for reason, one in zip(fits[unmatched], wanted, strict=True)
        if reason and one.name == calls[unmatched].name
    ]
    return f"{calls[unmatched].name}: {near[0] if len(near) == 1 else 'no such call is expected'}"


def best_calls(wanted: Sequence[Expected], functions: Sequence[Function]) -> list[Call]:
    """Return calls that are right: the first accepted value of everything."""
    by_name = {function.name: function for function in functions}
    calls = []
    for one in wanted:
        required = by_name[one.name].parameters.get("required", ())
        arguments = {}
        for name, values in one.accepted.items():
            meant = [value for value in values if value != OPTIONAL]
            if meant or name in required:
                arguments[name] = _first(meant[0] if meant else OPTIONAL)
        calls.append(Call(one.name, arguments))
    return calls


def wrong_calls(wanted: Sequence[Expected], functions: Sequence[Function]) -> list[list[Call]]:
    """Return lists of calls that are wrong, most of them nearly right."""
    right = best_calls(wanted, functions)
    if not right:
        return [[Call(function.name, {})] for function in functions]
    head, rest = right[0], right[1:]
    wrong = [[], [*right, head], *([rest] if rest else [])]
    wrong += [
        [Call(function.name, head.arguments), *rest]
        for function in functions
        if function.name not in {one.name for one in wanted}
    ]
    wrong.append([Call(head.name, {**head.arguments, "no_such_parameter": 1}), *rest])
    schema = find(functions, head.name)
    assert schema is not None, "expectations name functions on offer"
    wrong += [[Call(head.name, other), *rest] for other in _spoilt(head, wanted[0], schema)]
    return wrong


def sample_actions(wanted: Sequence[Expected], functions: Sequence[Function]) -> tuple[str, ...]:
    """Return actions to draw from, as `write_calls` writes them: the right one first."""
    sample = [best_calls(wanted, functions), *wrong_calls(wanted, functions)]
    return tuple(dict.fromkeys(write_calls(made) for made in sample))


def known_type(schema: Mapping[str, Any]) -> bool:
    """Whether a schema's type, and those of what it holds, are ones that can be checked."""
    kind = schema.get("type", _ANY)
    if kind != _ANY and kind not in _TYPES:
        return False
    inner = [*schema.get("properties", {}).values(), *([schema["items"]] if _has(schema) else [])]
    return all(known_type(one) for one in inner)


def fits(value: object, schema: Mapping[str, Any]) -> bool:
    """Whether a value is of a schema's type, all that it holds included.

    An integer does for a float, not the other way round; true and false are no numbers.
    """
    kind = schema.get("type", _ANY)
    if kind == _ANY:
        return True
    if isinstance(value, bool) and kind != "boolean":
        return False
    if not isinstance(value, _TYPES[kind]):
        return False
    if isinstance(value, list) and _has(schema):
        return all(fits(one, schema["items"]) for one in value)
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return all(fits(one, known[name]) for name, one in value.items() if name in known)
    return True


def _why_not(call: Call, wanted: Expected, function: Function) -> str:
    """Say why `call` is not the one that is wanted; "" if it is."""
    if call.name != wanted.name:
        return "another function"
    needed = {name for name, accepted in wanted.accepted.items() if OPTIONAL not in accepted}
    missing = sorted(needed.union(function.parameters.get("required", ())) - call.arguments.keys())
    if missing:
        return f"missing argument {missing[0]!r}"
    for name, value in call.arguments.items():
        if name not in wanted.accepted:
            return f"unexpected argument {name[:60]!r}"
        accepted = wanted.accepted[name]
        schema = function.parameters.get("properties", {}).get(name, {})
        if not (fits(value, schema) or _of_accepted_type(value, accepted, schema)):
            return f"argument {name!r} is of the wrong type"
        if not any(_equal(value, one) for one in accepted):
            return f"argument {name!r} has the wrong value"
    return ""


def _of_accepted_type(value: object, accepted: Sequence[Any], schema: Mapping[str, Any]) -> bool:
    """Whether the accepted values are not of the declared type themselves, but of the value's.

    Such rows exist: the name of a variable where a number is declared.
    """
    others = [one for one in accepted if one != OPTIONAL and not fits(_first(one), schema)]
    return any(type(one) is type(value) for one in others)


def _equal(value: object, accepted: object) -> bool:
    """Whether a value is the accepted one; inside a dict every key has a list of accepted ones."""
    if isinstance(accepted, str):
        return isinstance(value, str) and _plain(value) == _plain(accepted)
    if isinstance(accepted, dict):
        return isinstance(value, dict) and _equal_dicts(value, accepted)
    if isinstance(accepted, list):
        return (
            isinstance(value, list)
            and len(value) == len(accepted)
            and all(_equal(one, other) for one, other in zip(value, accepted, strict=True))
        )
    if isinstance(accepted, bool) or isinstance(value, bool) or accepted is None:
        return value is accepted
    return isinstance(value, (int, float)) and value == accepted


def _equal_dicts(value: Mapping[str, Any], accepted: Mapping[str, Any]) -> bool:
    if not value.keys() <= accepted.keys():
        return False
    for name, choices in accepted.items():
        listed = choices if isinstance(choices, list) else [choices]
        if name not in value:
            if OPTIONAL not in listed:
                return False
        elif not any(_equal(value[name], one) for one in listed):
            return False
    return True


@lru_cache(maxsize=4096)
def _plain(text: str) -> str:
    """Return a text as it is compared: without case, spaces and light punctuation."""
    return _IGNORED_IN_TEXTS.sub("", text).lower().replace("'", '"')


def _unmatched(fits: Sequence[Sequence[bool]]) -> int | None:
    """Return a call that no matching of all calls to expectations can place; None if one does."""
    owner: dict[int, int] = {}

    def place(call: int, tried: set[int]) -> bool:
        for one, fit in enumerate(fits[call]):
            if fit and one not in tried:
                tried.add(one)
                if one not in owner or place(owner[one], tried):
                    owner[one] = call
                    return True
        return False

    return next((call for call in range(len(fits)) if not place(call, set())), None)


def _first(accepted: object) -> Any:  # noqa: ANN401 - any JSON
    """Return a value out of an accepted one: of a dict's lists the first that is not optional."""
    if isinstance(accepted, list):
        return [_first(one) for one in accepted]
    if not isinstance(accepted, dict):
        return accepted
    value = {}
    for name, choices in accepted.items():
        listed = choices if isinstance(choices, list) else [choices]
        meant = [one for one in listed if one != OPTIONAL]
        if meant:
            value[name] = _first(meant[0])
    return value


def _spoilt(call: Call, wanted: Expected, function: Function) -> Iterator[dict[str, Any]]:
    """Yield the call's arguments with one of them missing, of the wrong value or type."""
    required = function.parameters.get("required", ())
    for name, value in call.arguments.items():
        accepted = wanted.accepted[name]
        if name in required or OPTIONAL not in accepted:
            yield {other: kept for other, kept in call.arguments.items() if other != name}
        others = (_other(value), None)
        yield from (
            {**call.arguments, name: other}
            for other in others
            if not any(_equal(other, one) for one in accepted)
        )


def _other(value: object) -> object:
    """Return a value of the same type that nobody means."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 987_654_321
    if isinstance(value, list):
        return [*value, value[0] if value else "nobody means this"]
    if isinstance(value, dict):
        return {**value, "no_such_key": 1}
    return "nobody means this"


def _has(schema: Mapping[str, Any]) -> bool:
    return isinstance(schema.get("items"), Mapping)


def _number(calls: int) -> str:
    return "no call" if calls == 0 else f"{calls} call{'s' if calls > 1 else ''}"
