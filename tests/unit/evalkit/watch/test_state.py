"""What a watch remembers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evalkit.errors import BadConfig, DamagedRun
from evalkit.watch.curve import Status
from evalkit.watch.state import Entry, State

SETTINGS = {"env": "key_door", "k": 1}


def test_entries_are_kept_in_the_order_in_which_they_were_settled(tmp_path: Path) -> None:
    state = State(tmp_path / "new" / "folder", SETTINGS)
    failed = Entry(version="m@1", status=Status.FAILED, number=1, message="refused")
    begun = Entry(version="m@2", status=None, number=2, served="m@2")
    done = Entry(version="m@1", status=Status.EVALUATED, number=1, run="versions/v1/x")
    for entry in (failed, begun, done):
        state.settle(entry)
    again = State(tmp_path / "new" / "folder", SETTINGS)
    assert list(again.entries.values()) == [begun, done]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    State(tmp_path, SETTINGS).settle(Entry(version="m@1", status=None, number=1))
    with pytest.raises(BadConfig, match=r"watches with k = 1, not 2: .* choose another --out"):
        State(tmp_path, {**SETTINGS, "k": 2})


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"format": "watch/9", "versions": []})])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "watch.json").write_text(text)
    with pytest.raises(DamagedRun, match=r"watch\.json"):
        State(tmp_path, SETTINGS)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfig, match="cannot write"):
        State(tmp_path / "file" / "folder", SETTINGS)
