"""What the gateway reads from bodies, and the one thing that it changes in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.front.relay.bodies import BadBody, read, usage, with_model

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("model"), inner)
    ),
    max_leaves=12,
)


def test_reads_what_routing_needs_and_skips_the_rest() -> None:
    asked = read(b'{"messages":[{"model":"no"}],"stream":true,"model":"key-door@7","n":1}')
    assert (asked.model, asked.stream) == ("key-door@7", True)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b'{"model":7}', b'{"model":"\xff"}', b"nan", b"{}{}"]
)
def test_what_is_no_request_is_bad(body: bytes) -> None:
    with pytest.raises(BadBody, match="the body is"):
        read(body)


@given(st.dictionaries(st.text(), _JSON, max_size=5), st.text(), st.booleans(), st.booleans())
def test_only_the_top_level_model_changes(
    request: dict[str, Any], name: str, has_model: bool, indented: bool
) -> None:
    if has_model:
        request = {**request, "model": "policy@7"}
    else:
        request.pop("model", None)
    body = json.dumps(request, indent=2 if indented else None).encode()
    changed = json.loads(with_model(body, json.dumps(name).encode(), is_named=has_model))
    assert changed == {**request, "model": name}


def test_every_other_byte_stays() -> None:
    body = b'{ "tools" : [{"model":"x"}], "model"  :\t"p@7" , "s":"\\"model\\":1"}\n'
    assert with_model(body, b'"p"', is_named=True) == body.replace(b'"p@7"', b'"p"')


def test_a_model_given_twice_is_changed_twice() -> None:
    assert with_model(b'{"model":"a","x":1,"model":"b"}', b'"c"', is_named=True) == (
        b'{"model":"c","x":1,"model":"c"}'
    )


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (b'{"usage":{"prompt_tokens":412,"total_tokens":442,"completion_tokens":30}}', (412, 30)),
        (b'{"usage": {"input_tokens": 5, "output_tokens": 7}}', (5, 7)),
        (b'{"usage":{"prompt_tokens":3,"total_tokens":3}}', (3, 0)),
        (b'{"content":"\\"usage\\":{\\"prompt_tokens\\":9}"}', None),
        (b'{"usage":null}', None),
        (b"", None),
    ],
)
def test_usage_is_read_as_it_passes(tail: bytes, expected: tuple[int, int] | None) -> None:
    assert usage(tail) == expected
