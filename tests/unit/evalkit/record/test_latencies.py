"""A sample of the journal is like the whole."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from evalkit.errors import DamagedRun
from evalkit.record.latencies import MOST_CALLS, WHOLE_BYTES, sampled_latencies


def _entry(arm: str, place: int, elapsed_s: float) -> bytes:
    entry = {
        "format": "journal/1",
        "request_id": f"run-1-{arm}-{place}-0-0",
        "completion": {"text": "x" * (place % 50), "elapsed_s": elapsed_s},
    }
    return orjson.dumps(entry) + b"\n"


def test_a_small_journal_is_read_in_full(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(_entry("A", 0, 0.5) + _entry("B-2", 0, 0.25) + _entry("A", 1, 1.5) + b'{"to')
    assert sampled_latencies(path, "run-1", ["A", "B-2"]) == {"A": [0.5, 1.5], "B-2": [0.25]}
    assert sampled_latencies(path, "run-1", ["B-2"]) == {"B-2": [0.25]}
    assert sampled_latencies(tmp_path / "none", "run-1", ["A"]) == {"A": []}


def test_a_large_one_is_sampled_evenly(tmp_path: Path) -> None:
    path, count = tmp_path / "journal.jsonl", 20_000
    path.write_bytes(b"".join(_entry("A", place, place / count) for place in range(count)))
    assert path.stat().st_size > WHOLE_BYTES
    found = sampled_latencies(path, "run-1", ["A"])["A"]
    assert 0.99 * MOST_CALLS <= len(found) <= MOST_CALLS
    assert len(set(found)) == len(found)
    assert found == sorted(found)
    assert found[0] == 0.0
    assert found[len(found) // 2] == pytest.approx(0.5, abs=0.01)
    assert found == sampled_latencies(path, "run-1", ["A"])["A"]


def test_an_entry_that_is_none_is_said(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"format":"journal/1","request_id":"run-1-A-0-0-0"}\n')
    with pytest.raises(DamagedRun, match="not as expected"):
        sampled_latencies(path, "run-1", ["A"])
