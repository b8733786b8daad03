"""Version after version goes live behind a real gateway under load, as bench/swaps.py does it.

With fewer versions: 200 of each kind are `python bench/swaps.py`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.swaps import Result, measure

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CLIENTS = 16


def published(part: str, swaps: int, folder: Path) -> Result:
    result = asyncio.run(measure(part, swaps, CLIENTS, folder, quiet_s=0.0))
    verdict = result.verdict
    assert (verdict.failed, verdict.lost, verdict.wrong) == ([], [], [])
    # Each answer is held against weights that it does not fit where the label is wrong.
    assert verdict.blind == 0
    assert {1, swaps + 1} <= verdict.versions
    assert len(verdict.versions) > swaps / 2
    assert len(result.pauses_s) > 0
    assert result.is_clean
    return result


def test_full_weights_change_under_load_and_no_label_is_wrong(tmp_path: Path) -> None:
    result = published("full", 12, tmp_path)
    assert result.verdict.crossing > 0


def test_adapters_change_under_load_and_evaluations_stay_where_they_are(tmp_path: Path) -> None:
    result = published("lora", 6, tmp_path)
    assert result.verdict.crossing == 0
    assert [each.labels for each in result.pinned] == [{"1"}, {"2"}]
    for each in result.pinned:
        assert each.rounds > 0
        assert each.turns >= 4 * each.rounds
        assert (each.errors, each.differing) == (0, 0)
