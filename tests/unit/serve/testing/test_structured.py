import re

import pytest

from serve.testing.structured import NotUnderstood, matching


@pytest.mark.parametrize(
    "regex",
    [
        r"<action>(up|down|left)</action>",
        r"<action>(move (north|south|east|west)|interact)</action>",
        r"<scratchpad>[^<]{0,400}</scratchpad>\s*<action>(?:a|b)</action>",
        r"<move>[0-8]</move>",
        r"\d+\.\d{2,4}",
        r"[\]a]b?c*(x|y){3}",
        r".+",
        r"^\(literal\)$",
        r"[^\]]\n",
        r"",
    ],
)
def test_made_strings_match(regex: str) -> None:
    for pick in range(20):
        assert re.fullmatch(regex, matching(regex, pick))


def test_every_alternative_is_picked_by_some_number() -> None:
    made = {matching(r"<a>(up|down|left)</a>", pick) for pick in range(3)}
    assert made == {"<a>up</a>", "<a>down</a>", "<a>left</a>"}


@pytest.mark.parametrize("regex", [r"(", r"[a", r"a(?=b)b", r"(a)\1", r"\bword"])
def test_what_is_not_understood_says_so(regex: str) -> None:
    with pytest.raises(NotUnderstood, match="regex"):
        matching(regex, 0)
