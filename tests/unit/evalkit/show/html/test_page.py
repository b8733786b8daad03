"""The page as a whole: self-contained, the same for the same run, small whatever its size."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from evalkit.record.chosen import Source
from evalkit.record.numbers import ArmNumbers, gather
from evalkit.record.rundir import RunDir
from evalkit.record.testing import arms_of, lost, played
from evalkit.show.html.page import html_page, write_page
from evalkit.show.report import Report, markdown
from evalkit.show.sequential import sequential

EVIL = "</script><script>window.hacked=1</script><img src=x onerror=alert(1)>"
VOID = {"meta", "link", "br", "img", "input"}


class Balanced(HTMLParser):
    """Collects tags, ids and texts; every element is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        known = dict(attrs)
        self.ids += [known["id"] or ""] if "id" in known else []
        self.addresses += [known[name] or "" for name in ("src", "href") if name in known]
        assert not [name for name in known if name.startswith("on") or name == "style"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_a_page_loads_nothing_and_its_policy_names_what_is_in_it(
    reported: Callable[..., Report],
) -> None:
    page = html_page(reported(arms_of(A="0101", B="1101")))
    found = parsed(page)
    assert found.addresses == ["data:,", "#report"]
    assert len(found.ids) == len(set(found.ids))
    assert not re.search(r"url\(|@import|https?://", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


def test_the_verdict_comes_first(reported: Callable[..., Report]) -> None:
    report = reported(arms_of(A="0" * 12, B="1" * 12))
    page = html_page(report)
    assert '<h1 id="headline" class="">B is better than A</h1>' in page
    order = [page.index(words) for words in ("B is better than A", ">Arms<", "What was found")]
    assert order == sorted(order)
    assert parsed(page).tags.count("h1") == 1


def test_one_arm_has_a_headline_of_its_own(reported: Callable[..., Report]) -> None:
    page = html_page(reported(arms_of(A="0111")))
    assert "A succeeds in 75.0\u00a0% of its episodes</h1>" in page
    assert 'id="flips"' not in page
    assert 'id="evidence"' not in page
    lost_ones = html_page(reported(arms_of(A="..")))
    assert "A finished no episode</h1>" in lost_ones
    parsed(lost_ones)


def test_what_models_say_stays_text(tmp_path: Path, reported: Callable[..., Report]) -> None:
    made = [played(0, completion=EVIL, observation=EVIL, error=EVIL, event=EVIL, action=EVIL)]
    made += [played(0, "B", success=True, reasoning=EVIL)]
    path = tmp_path / "trajectories.jsonl"
    path.write_bytes(b"".join(one.to_json() + b"\n" for one in made))
    numbers = gather(made, ["A", "B"])
    report = reported(numbers, env=EVIL, run_id=EVIL, strategy=EVIL)
    report = replace(report, sources={arm: Source(path=path, arm=arm) for arm in numbers})
    page = html_page(report)
    assert "<script>window.hacked" not in page
    assert "<img" not in page
    assert parsed(page).tags.count("script") == 2


def test_equal_runs_give_equal_bytes(tmp_path: Path, reported: Callable[..., Report]) -> None:
    made = [played(seed, arm, success=seed % 3 == 0) for seed in range(9) for arm in ("A", "B")]
    made += [lost(9), played(9, "B")]
    pages = []
    for name, order in (("one", made), ("two", made[::-1])):
        rundir = RunDir(tmp_path / name)
        rundir.path.mkdir()
        rundir.trajectories_path.write_bytes(b"".join(one.to_json() + b"\n" for one in order))
        ordered = sorted(order, key=lambda one: one.key)
        write_page(rundir.path / "report.html", reported(gather(ordered, ["A", "B"])), rundir)
        pages.append((rundir.path / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_a_run_that_still_goes_says_so(reported: Callable[..., Report]) -> None:
    report = replace(reported(arms_of(A="01")), unfinished="Unfinished: 2 of 9 episodes are played")
    page = html_page(report, live=True)
    assert "still going" in page
    assert "2 of 9 episodes" in page
    assert " data-live>" in page
    assert " data-live>" not in html_page(report)


def test_many_seeds_make_a_small_page(reported: Callable[..., Report]) -> None:
    def numbers(shift: int) -> ArmNumbers:
        seeds = range(20_000)
        return ArmNumbers(
            success={seed: [float(seed * 37 % 100 < 50 + shift)] for seed in seeds},
            return_={seed: [seed % 97 / 97] for seed in seeds},
            steps={seed: [float(seed % 30 + 1)] for seed in seeds},
            cut={seed: [seed % 30 == 29] for seed in seeds},
        )

    report = replace(
        reported(arms_of(A="0101", B="1101")), numbers={"A": numbers(0), "B": numbers(9)}
    )
    page = html_page(report)
    assert "1,800 of 20,000 seeds flip: all for B" in page
    assert len(page.encode()) < 250_000
    parsed(page)


def test_a_stop_is_not_qualified_by_tests_of_fixed_size(reported: Callable[..., Report]) -> None:
    """Three arms that stopped on success: no sets of arms by Holm, in neither form."""
    arms = arms_of(A="0" * 30, B="1" * 30, C="1" * 30)
    fixed = reported(arms)
    config = {"stop": "decided", "stop_on": "success", "alpha": 0.05, "margin": None, "span": 1.0}
    judged = sequential({**config, "k": 1, "seeds": range(30)}, arms, fixed.pairs)
    stopped = replace(fixed, sequential=judged)
    for form in (markdown, html_page):
        assert "not told apart" in form(fixed)
        assert "not told apart" not in form(stopped)
        assert "looked after every seed" in form(stopped)
        assert "Ended on what they saw: X, Y." in form(replace(fixed, stopped=("X", "Y")))
