"""The headline: what was decided, in words, and the numbers behind it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from evalkit.judge.deciding import Deciding
from evalkit.judge.saved import FixedSizes
from evalkit.judge.sequential import StoppingRule, Verdict, look_path
from evalkit.record.testing import arms_of
from evalkit.show.html.head import headline
from evalkit.show.report import Report
from evalkit.show.sequential import SeedLook, Sequential


def _texts(head: str, css: str) -> list[str]:
    found = re.findall(rf'class="{css}">(.*?)</d[dt]>', head)
    return [re.sub(r"<[^>]+>", "", text).replace("\u00a0", " ") for text in found]


def test_the_only_pair_has_a_tile_for_each_metric(reported: Callable[..., Report]) -> None:
    head = headline(reported(arms_of(A="0" * 12, B="1" * 12)))
    assert ">B is better than A</h1>" in head
    assert _texts(head, "number") == ["+100.0 points", "+1.00", "+0.0 points", "+0.00"]
    assert _texts(head, "fact")[0].endswith("p &lt; .001")
    assert head.count('class="tile "') == 2  # success and return are decided
    assert head.count('class="tile open"') == 2


def test_what_is_not_decided_begins_with_a_capital(reported: Callable[..., Report]) -> None:
    assert ">No decision between A and B</h1>" in headline(reported(arms_of(A="01", B="10")))
    assert ">No data</h1>" in headline(reported(arms_of(A="0.", B=".1")))


def test_many_pairs_have_a_tile_for_each_arm_and_a_line_for_each_claim(
    reported: Callable[..., Report],
) -> None:
    head = headline(reported(arms_of(A="0" * 12, B="1" * 12, C="1" * 12)))
    assert _texts(head, "number") == ["0.0 %", "100.0 %", "100.0 %"]
    assert "<li>C is better than A</li><li>no decision between B and C</li>" in head


def test_a_lone_arm_stands_between_random_and_oracle(reported: Callable[..., Report]) -> None:
    head = headline(reported(arms_of(A="0111")))
    assert "A succeeds in 75.0\u00a0% of its episodes</h1>" in head
    text = re.sub(r"<[^>]+>", "", head)
    assert "random play gets 25.0\u00a0%, the oracle 100.0\u00a0%." in text


def test_a_run_that_stopped_says_what_it_stopped_on(reported: Callable[..., Report]) -> None:
    looks = look_path([1.0] * 12, StoppingRule())
    stopped = Sequential(
        a="A",
        b="B",
        deciding=Deciding.SUCCESS,
        margin=None,
        looks=tuple(SeedLook(env_seed=n, look=look) for n, look in enumerate(looks)),
        verdict=Verdict.BETTER,
        n_lost=0,
        n_episodes=24,
        fixed=FixedSizes(effect=1.0, paired=20, unpaired=30),
        tokens_per_episode=None,
    )
    report = reported(arms_of(A="0" * 12, B="1" * 12))
    head = headline(replace(report, sequential=[stopped]))
    assert ">B is better than A</h1>" in head
    assert "decided after 12 pairs" in head
    assert "anytime p" in _texts(head, "fact")[0]
    assert head.count("took 24 episodes") == 1
