import json
from contextlib import suppress
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import Parsed, ParseKind
from envs.tasks.call_checker import (
    Expected,
    _unmatched,
    best_calls,
    fits,
    known_type,
    why_wrong,
    wrong_calls,
)
from envs.tasks.calls import (
    ACTION_PATTERN,
    Call,
    Function,
    NotCalls,
    offer,
    offered,
    parse_calls,
    read_calls,
    write_calls,
)

ADD = '{"name": "add", "arguments": {"a": 1}}'
NATIVE = [{"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]
TWO = '{"name": "sub", "arguments": {}}'


def function(name: str = "f", required: tuple[str, ...] = (), **types: Any) -> Function:
    properties = {
        name: {"type": kind} if isinstance(kind, str) else kind for name, kind in types.items()
    }
    parameters = {"type": "dict", "properties": properties, "required": list(required)}
    return Function(name=name, description="Does it.", parameters=parameters)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (f"<function_calls>[{ADD}]</function_calls>", Parsed(f"[{ADD}]", ParseKind.OK)),
        (f"Sure.\n<function_calls>\n{ADD}\n</function_calls>", Parsed(f"[{ADD}]", ParseKind.OK)),
        (f"<tool_call>{ADD}</tool_call>", Parsed(f"[{ADD}]", ParseKind.OK)),
        (
            f"<tool_call>\n{ADD}\n</tool_call>\n<tool_call>\n{TWO}\n</tool_call>",
            Parsed(f"[{ADD}, {TWO}]", ParseKind.OK),
        ),
        ("<function_calls>[]</function_calls>", Parsed("[]", ParseKind.OK)),
        (
            '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
            Parsed(f"[{ADD}]", ParseKind.OK),
        ),
        (
            '<tool_call>{"name": "add", "parameters": {"a": 1}}</tool_call>',
            Parsed(f"[{ADD}]", ParseKind.OK),
        ),
        (
            f"<function_calls>{json.dumps(NATIVE)}</function_calls>",
            Parsed(f"[{ADD}]", ParseKind.OK),
        ),
        (
            f"<function_calls>[{ADD}]</function_calls><function_calls>[]</function_calls>",
            Parsed(f"[{ADD}]", ParseKind.MULTI_ACTION),
        ),
        (f"<function_calls>[{ADD}]", Parsed(f"[{ADD}]", ParseKind.UNCLOSED)),
        ("<function_calls>[{</function_calls>", Parsed("[{", ParseKind.OK)),
        ("<function_calls>add(a=1)</function_calls>", Parsed("add(a=1)", ParseKind.OK)),
        ("<function_calls> </function_calls>", Parsed(None, ParseKind.NO_ACTION)),
        (ADD, Parsed(None, ParseKind.NO_ACTION)),
        ("I cannot help with that.", Parsed(None, ParseKind.NO_ACTION)),
        ("", Parsed(None, ParseKind.EMPTY)),
    ],
)
def test_replies(reply: str, expected: Parsed) -> None:
    assert parse_calls(reply) == expected


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("", r"the reply names no calls, not even \[\]"),
        ("[{", "expected a JSON list of calls, and this is no JSON"),
        ("[" * 100_000, "this is no JSON"),
        ("NaN", "NaN is no JSON"),
        ("3", "expected each call as an object with a name and arguments"),
        ('[{"arguments": {}}]', "expected each call as an object with a name and arguments"),
        ('[{"name": "f", "arguments": [1]}]', "expected a call's arguments as an object"),
        ('[{"name": "f", "arguments": "{"}]', "this is no JSON"),
        ('[{"name": "g"}]', "there is no function 'g'"),
    ],
)
def test_what_are_no_calls_is_told_why(action: str, reason: str) -> None:
    with pytest.raises(NotCalls, match=reason):
        offered(action, [function("f")])


def test_a_function_goes_by_its_name_as_a_tool_too() -> None:
    sqrt = function("math.sqrt", x="float")
    assert sqrt.tool_name == "math_sqrt"
    for name in ("math.sqrt", "math_sqrt"):
        assert offered(f'[{{"name": "{name}"}}]', [sqrt]) == [Call("math.sqrt", {})]


def test_schemas_are_shown_in_the_words_of_json_schema() -> None:
    nested = {"type": "array", "items": {"type": "dict", "properties": {"x": {"type": "float"}}}}
    described = function("a.b", ("n",), n="integer", t="tuple", o=nested, w="any")
    assert described.as_tool() == {
        "type": "function",
        "function": {
            "name": "a_b",
            "description": "Does it.",
            "parameters": {
                "type": "object",
                "properties": {
                    "n": {"type": "integer"},
                    "t": {"type": "array"},
                    "o": {
                        "type": "array",
                        "items": {"type": "object", "properties": {"x": {"type": "number"}}},
                    },
                    "w": {},
                },
                "required": ["n"],
            },
        },
    }
    assert '"name": "a.b"' in offer([described])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(st.builds(Call, st.text(max_size=4), st.dictionaries(st.text(), JSON))))
def test_calls_read_back_as_they_were_written(calls: list[Call]) -> None:
    text = write_calls(calls)
    text.encode()
    if "Infinity" not in text:
        assert read_calls(text) == calls


@given(st.text(st.sampled_from('<>/[]{}":,_ afunctiolcstn1\\'), max_size=80))
def test_no_reply_is_too_odd_to_read(text: str) -> None:
    for wrapped in (text, f"<function_calls>{text}</function_calls>", f"<tool_call>{text}"):
        parsed = parse_calls(wrapped)
        with suppress(NotCalls):
            offered(parsed.action or "", [function("f")])


def test_lone_surrogates_stay_escaped() -> None:
    action = parse_calls('<tool_call>{"name": "\\ud800"}</tool_call>').action
    assert action == '[{"name": "\\ud800", "arguments": {}}]'


@pytest.mark.parametrize(
    ("value", "schema", "good"),
    [
        (1, {"type": "integer"}, True),
        (1.0, {"type": "integer"}, False),
        (True, {"type": "integer"}, False),
        (1, {"type": "float"}, True),
        (1.5, {"type": "number"}, True),
        (True, {"type": "float"}, False),
        ("1", {"type": "float"}, False),
        (False, {"type": "boolean"}, True),
        (0, {"type": "boolean"}, False),
        ("x", {"type": "string"}, True),
        ([1, 2], {"type": "array", "items": {"type": "integer"}}, True),
        ([1, "2"], {"type": "array", "items": {"type": "integer"}}, False),
        ([1.5, 2], {"type": "tuple", "items": {"type": "float"}}, True),
        ([[1], ["a"]], {"type": "array", "items": {"type": "array"}}, True),
        (
            [[1], ["a"]],
            {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            False,
        ),
        ({"x": 1}, {"type": "dict", "properties": {"x": {"type": "integer"}}}, True),
        ({"x": "1"}, {"type": "dict", "properties": {"x": {"type": "integer"}}}, False),
        (None, {"type": "string"}, False),
        (None, {"type": "any"}, True),
        (None, {}, True),
    ],
)
def test_types(value: object, schema: dict[str, Any], good: bool) -> None:
    assert fits(value, schema) is good


def test_unknown_types_are_found_however_deep() -> None:
    assert known_type({"type": "array", "items": {"type": "dict", "properties": {}}})
    assert not known_type({"type": "ArrayList"})
    assert not known_type({"type": "array", "items": {"type": "Integer"}})
    assert not known_type({"type": "dict", "properties": {"x": {"type": "char"}}})


@pytest.mark.parametrize(
    ("kind", "accepted", "value", "good"),
    [
        ("string", ["New York"], "new york", True),
        ("string", ["it's"], 'it"s', True),
        ("string", ["a-b_c/d.e,f*g^h"], "abcdefgh", True),
        ("string", ["York"], "New York", False),
        ("integer", [5], 5, True),
        ("integer", [5], 5.0, False),
        ("integer", [1], True, False),
        ("float", [5.0], 5, True),
        ("float", [5.0], 5.5, False),
        ("boolean", [True], True, True),
        ("boolean", [True], 1, False),
        ("array", [["Red", "Blue"]], ["red", "blue"], True),
        ("array", [["red", "blue"]], ["blue", "red"], False),
        ("array", [["red"], ["blue"]], ["blue"], True),
        ("array", [[[1, 2], [3]]], [[1, 2], [3]], True),
        ("array", [[{"x": [1, 2]}]], [{"x": 2}], True),
        ("array", [[{"x": [1, 2]}]], [{"x": 3}], False),
        ("dict", [{"x": [1], "y": ["", 2]}], {"x": 1}, True),
        ("dict", [{"x": [1], "y": ["", 2]}], {"x": 1, "y": 2}, True),
        ("dict", [{"x": [1], "y": ["", 2]}], {"y": 2}, False),
        ("dict", [{"x": [1]}], {"x": 1, "z": 1}, False),
        ("dict", [{"in": [{"deep": ["Yes"]}]}], {"in": {"deep": "yes"}}, True),
        ("dict", [{"in": [{"deep": ["Yes"]}]}], {"in": {"deep": "no"}}, False),
        ("integer", ["count"], "count", True),
        ("integer", ["count"], "other", False),
        ("integer", [3], "3", False),
        ("integer", [3, ""], "", False),
        ("any", [[1, "a"]], [1, "A"], True),
    ],
)
def test_values(kind: str, accepted: list[Any], value: object, good: bool) -> None:
    wanted = [Expected("f", {"p": accepted})]
    reason = why_wrong([Call("f", {"p": value})], wanted, [function("f", p=kind)])
    assert (reason == "") is good


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"a": 1}, ""),
        ({"a": 1, "b": "x"}, ""),
        ({}, "f: missing argument 'a'"),
        ({"a": 1, "b": "y"}, "f: argument 'b' has the wrong value"),
        ({"a": "1"}, "f: argument 'a' is of the wrong type"),
        ({"a": 1, "c": 1}, "f: unexpected argument 'c'"),
    ],
)
def test_arguments(arguments: dict[str, Any], reason: str) -> None:
    wanted = [Expected("f", {"a": [1], "b": ["", "x"]})]
    offered_here = [function("f", ("a",), a="integer", b="string")]
    assert why_wrong([Call("f", arguments)], wanted, offered_here) == reason


def test_a_required_argument_is_never_optional() -> None:
    wanted = [Expected("f", {"a": ["", 1]})]
    assert why_wrong([Call("f", {})], wanted, [function("f", ("a",), a="integer")])


def test_as_many_calls_as_wanted_in_any_order() -> None:
    both = [function("f", a="integer"), function("g", a="integer")]
    wanted = [Expected("f", {"a": [1]}), Expected("g", {"a": [2]})]
    one, two = Call("f", {"a": 1}), Call("g", {"a": 2})
    assert why_wrong([two, one], wanted, both) == ""
    assert why_wrong([one], wanted, both) == "expected 2 calls, found 1 call"
    assert why_wrong([one, two, one], wanted, both) == "expected 2 calls, found 3 calls"
    assert why_wrong([one, one], wanted, both) == "f: no such call is expected"
    assert why_wrong([], [], both) == ""
    assert why_wrong([one], [], both) == "expected no call, found 1 call"


def test_calls_are_matched_truly_and_not_greedily() -> None:
    """The first call fits both; taking the first fit for it would leave the second without."""
    offered_here = [function("f", a="integer")]
    wanted = [Expected("f", {"a": [1, 2]}), Expected("f", {"a": [1]})]
    first, second = Call("f", {"a": 1}), Call("f", {"a": 2})
    assert why_wrong([first, second], wanted, offered_here) == ""
    assert why_wrong([second, first], wanted, offered_here) == ""
    assert why_wrong([second, second], wanted, offered_here)


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_matching_is_what_trying_every_order_finds(fit: list[list[bool]]) -> None:
    exists = any(
        all(fit[call][one] for call, one in enumerate(order))
        for order in permutations(range(len(fit)))
    )
    assert (_unmatched(fit) is None) is exists


def test_best_calls_are_right_and_wrong_calls_are_wrong() -> None:
    offered_here = [
        function("f", ("a",), a="integer", b="string", c="boolean", d="dict", e="array"),
        function("g"),
    ]
    accepted: dict[str, list[Any]] = {
        "a": [1, 2],
        "b": ["", "x"],
        "c": [True],
        "d": [{"k": ["", "v"], "l": [1]}],
        "e": [[]],
    }
    wanted = [Expected("f", accepted), Expected("f", {**accepted, "a": [3]})]
    best = best_calls(wanted, offered_here)
    assert best[0].arguments == {"a": 1, "b": "x", "c": True, "d": {"k": "v", "l": 1}, "e": []}
    assert why_wrong(best, wanted, offered_here) == ""
    wrong = wrong_calls(wanted, offered_here)
    assert len(wrong) > 12
    assert all(why_wrong(calls, wanted, offered_here) for calls in wrong)
    assert wrong_calls([], offered_here) == [[Call("f", {})], [Call("g", {})]]


def test_the_guided_form_admits_what_is_written() -> None:
    import re

    text = write_calls([Call("f", {"a": [1, {"b": "ü\n"}]})])
    assert re.fullmatch(ACTION_PATTERN, f"<function_calls>{text}</function_calls>")
    assert json.loads(text)
