"""D. The engine gets its own name for the model, and every other byte as the client sent it."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.front.relay import bodies
from tests.faults.backend import Backend
from tests.faults.conftest import Worlds

ENGINE = 'm--7 \u00fc"\\'
ENGINE_JSON = json.dumps(ENGINE).encode()

WORDS = st.sampled_from(["model", "mode", "models", '"model"', "model\\", "messages", "", "\u00fc"])
TEXT = st.one_of(WORDS, st.text(max_size=8))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=12,
)
NAMES = st.one_of(st.none(), st.sampled_from(["m", "m@7", "a/b@1"]))


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, dict[str, Any], bool]:
    """A body as some client might write it, what it says, and whether it names a model."""
    fields = draw(st.dictionaries(TEXT.filter(lambda key: key != "model"), VALUES, max_size=5))
    items = list(fields.items())
    is_there = draw(st.booleans())
    name = draw(NAMES) if is_there else None
    if is_there:
        items.insert(draw(st.integers(0, len(items))), ("model", name))
    ascii_only = draw(st.booleans())
    gap = draw(st.sampled_from(["", " ", "\n\t"]))
    parts = []
    for key, value in items:
        text = json.dumps(key, ensure_ascii=ascii_only)
        if key == "model" and draw(st.booleans()):
            text = draw(st.sampled_from(['"\\u006dodel"', '"mod\\u0065l"', '"mode\\u006C"']))
        said = json.dumps(value, ensure_ascii=ascii_only)
        parts.append(f"{gap}{text}{gap}:{gap}{said}{gap}")
    return f"{gap}{{{','.join(parts) or gap}}}{gap}".encode(), dict(items), name is not None


@settings(max_examples=200, deadline=None)
@given(requests())
def test_only_the_model_changes(asked: tuple[bytes, dict[str, Any], bool]) -> None:
    body, said, is_named = asked
    assert bodies.read(body).model == said.get("model")
    changed = bodies.with_model(body, ENGINE_JSON, is_named=is_named)
    assert json.loads(changed) == said | {"model": ENGINE}
    before, _, after = changed.partition(ENGINE_JSON)
    assert body.startswith(before.removesuffix(b'"model":'))
    assert body.endswith((after, after.removeprefix(b",")))


def test_a_version_s_own_name_reaches_the_engine(worlds: Worlds) -> None:
    world = worlds(Backend(), versions=({7: "m--000007", 8: "m"},))
    body = b'{"a": {"model": "m@7"},\n "model" :\t"m@7" , "b": "\\u00e9\xc3\xa9", "n": 1.0}'
    with world.client() as client:
        assert client.ask(body).headers(b"x-policy-version") == [b"7"]
    assert world.backend.seen[0].body == body.replace(b'\t"m@7"', b'\t"m--000007"')
