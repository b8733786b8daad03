"""Nothing that a model says becomes markup; known words carry their definitions."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from evalkit.show.html.definitions import DEFINITIONS, IN_SENTENCES
from evalkit.show.html.markup import data_block, define, esc, names, sentence, unbroken

HOSTILE = "</script><script>alert(1)</script><!-- ]]> & \u2028\u2029 <img src=x onerror=alert(1)>"


@given(st.text(st.characters(codec="utf-8")))
def test_data_can_be_read_back_and_never_ends_its_block(text: str) -> None:
    block = data_block("data", {"said": text + HOSTILE})
    begin = '<script type="application/json" id="data">'
    inside = block.removeprefix(begin).removesuffix("</script>")
    assert not set("<>&\u2028\u2029") & set(inside)
    assert json.loads(inside) == {"said": text + HOSTILE}


def test_escaping() -> None:
    assert esc("<a href=\"x\" id='y'>&") == "&lt;a href=&quot;x&quot; id=&#x27;y&#x27;&gt;&amp;"
    assert unbroken("5 % <") == "5\u00a0% &lt;"
    assert "<script" not in sentence(HOSTILE)
    assert "<script" not in define("success", HOSTILE)


def test_a_term_is_defined_once_in_a_sentence() -> None:
    said = sentence("+3.0 points success (95 % CI +1.0..+5.0), flips: 3 flips, 2 successes")
    assert re.findall(r'tabindex="0" title="[^"]+">([^<]+)</abbr>', said) == [
        *("points", "success", "95\u00a0% CI", "flips"),
    ]
    assert define("no such term") == "no such term"


def test_every_word_of_a_sentence_has_a_definition() -> None:
    assert set(IN_SENTENCES.values()) <= DEFINITIONS.keys()


def test_names() -> None:
    assert [names(parts) for parts in ([], ["A"], ["A", "B"], ["A", "B", "C"])] == [
        *("", "A", "A and B", "A, B and C"),
    ]
