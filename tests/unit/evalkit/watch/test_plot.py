"""The picture of a learning curve: what is in it; it was looked at in Chromium, light and dark."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as Xml

from evalkit.watch.curve import Status
from evalkit.watch.plot import MOST_LABELS, learning_curve_page, learning_curve_svg

SVG = "{http://www.w3.org/2000/svg}"


def _row(version: str, success: float, **changed: Any) -> dict[str, Any]:
    return {
        "version": version, "status": Status.EVALUATED, "success": success, "lo": success - 0.1,
        "hi": success + 0.1, "n": 50, "n_error": 0, "return": success, "diff_best": None,
        "best": "m@1", "p_worse": None, "worse": None, "message": None, **changed,
    }  # fmt: skip


ROWS = [
    _row("m@1", 0.5),
    _row("<b>@2", 0.0, status=Status.FAILED, message="<script>"),
    _row("m@3", 0.2, diff_best=-0.3, p_worse=0.001, worse=True),
]


def test_the_picture_has_a_mark_and_a_sentence_for_every_version() -> None:
    root = Xml.fromstring(learning_curve_svg(ROWS, {"random": 0.25, "oracle": 1.0}, "t & t"))
    classes = [each.get("class") for each in root.iter()]
    counted = {name: classes.count(name) for name in ("dot", "worse", "unplayed", "interval")}
    assert counted == {"dot": 1, "worse": 1, "unplayed": 1, "interval": 2}
    tips = [each.text or "" for each in root.iter(f"{SVG}title")]
    assert [tip.split(":")[0].split(" ")[0] for tip in tips] == ["m@1", "<b>@2", "m@3"]
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert {"random", "oracle", "1", "2", "3", "100%"} <= set(texts)
    (path,) = root.iter(f"{SVG}polyline")
    assert len((path.get("points") or "").split()) == 2


def test_higher_success_is_higher_up() -> None:
    root = Xml.fromstring(learning_curve_svg([_row("a", 0.1), _row("b", 0.9)], {}, "t"))
    low, high = (float(dot.get("cy") or "nan") for dot in root.iter(f"{SVG}circle"))
    assert high < low


def test_names_are_thinned_and_the_newest_keeps_its_own() -> None:
    root = Xml.fromstring(learning_curve_svg([_row(f"m@{n}", 0.5) for n in range(100)], {}, "t"))
    names = [each.text or "" for each in root.iter(f"{SVG}text") if (each.text or "").isdigit()]
    assert len(names) <= MOST_LABELS
    assert names[-1] == "99"


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    svg = learning_curve_svg(ROWS, {}, "t")
    page = learning_curve_page(ROWS, svg, "t")
    assert "<script" not in page
    assert "src=" not in page
    assert page.count("http") == page.count("http://www.w3.org/2000/svg")
    assert "m@3: 20.0 % success" in page
    assert "failed: &lt;script&gt;" in page
    assert "no version yet" in learning_curve_page([], learning_curve_svg([], {}, "t"), "t")
