"""Files to a volume and from one: what is compared, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from train.errors import BadConfig, SaveFailed
from train.jobs.transfer import (
    Measured,
    download,
    ensure_equal,
    files_of,
    remote_name,
    runs_of,
    steps_of,
)
from train.learner.checkpoints import MARKER, Checkpoints, TrainState

RUN = "grpo_20260101_000000"


@dataclass(frozen=True, slots=True)
class Entry:
    path: str


class Folder:
    """A volume that is a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def listdir(self, path: str) -> list[Entry]:
        names = sorted((self.root / path.lstrip("/")).iterdir())
        return [Entry(str(name.relative_to(self.root))) for name in names]

    def read_file(self, path: str) -> Iterator[bytes]:
        data = (self.root / path.lstrip("/")).read_bytes()
        return iter([data[:3], data[3:]])

    def measure(self, path: str) -> Measured:
        return Measured.of(self.root / path)


@pytest.fixture
def volume(tmp_path: Path) -> Folder:
    root = tmp_path / "volume"
    checkpoints = Checkpoints(root / RUN / "checkpoints", keep=3)
    for step in (1, 20):
        with checkpoints.writing(step) as folder:
            (folder / "model.safetensors").write_bytes(b"weights" * step)
            TrainState(step=step, next_group=8).write(folder)
    (root / RUN / "checkpoints" / "step-000030").mkdir()
    (root / "grpo_20250101_000000").mkdir()
    (root / "jobs").mkdir()
    return Folder(root)


def test_what_is_there(volume: Folder) -> None:
    assert runs_of(volume) == [RUN, "grpo_20250101_000000"]
    assert steps_of(volume, RUN) == [1, 20]
    assert steps_of(volume, "grpo_20250101_000000") == []
    assert [file["name"] for file in files_of(volume, RUN, 20)] == [
        "model.safetensors",
        "state.json",
    ]
    with pytest.raises(BadConfig, match="has no complete checkpoint of step 30"):
        files_of(volume, RUN, 30)


def test_a_checkpoint_comes_over_whole(volume: Folder, tmp_path: Path) -> None:
    folder, brought = download(volume, RUN, 20, tmp_path / "here", volume.measure)
    assert folder == tmp_path / "here" / RUN / "step-000020"
    assert len(brought) == 3
    source = volume.root / RUN / "checkpoints" / "step-000020"
    for path in source.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(BadConfig, match="is there already"):
        download(volume, RUN, 20, tmp_path / "here", volume.measure)


def test_a_file_that_came_over_otherwise_is_named(volume: Folder, tmp_path: Path) -> None:
    source = volume.root / RUN / "checkpoints" / "step-000020"
    (source / "model.safetensors").write_bytes(b"WEIGHTS" * 20)
    with pytest.raises(SaveFailed, match=r"model\.safetensors came over otherwise"):
        download(volume, RUN, 20, tmp_path / "here", volume.measure)


def test_a_marker_that_names_a_file_outside(volume: Folder, tmp_path: Path) -> None:
    marker = volume.root / RUN / "checkpoints" / "step-000020" / MARKER
    told = json.loads(marker.read_text())
    told["files"][0]["name"] = "../../evil"
    marker.write_text(json.dumps(told))
    with pytest.raises(BadConfig, match="names a file outside it"):
        download(volume, RUN, 20, tmp_path / "here", volume.measure)
    assert not (tmp_path / "here" / "evil").exists()


@pytest.mark.parametrize(
    ("name", "expected"), [("", "/a.txt"), ("sets/b.txt", "/sets/b.txt"), ("/c", "/c")]
)
def test_where_an_upload_goes(tmp_path: Path, name: str, expected: str) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x")
    assert remote_name(file, name) == expected


def test_uploads_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x")
    with pytest.raises(BadConfig, match=r"expected a name on the data volume, not '\.\./x'"):
        remote_name(file, "../x")
    with pytest.raises(BadConfig, match="there is no such file"):
        remote_name(tmp_path / "none", "")


def test_what_a_file_measures(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"abc")
    here = Measured.of(file)
    assert str(here) == f"0.00 MB (3 bytes), sha256 {here.sha256}"
    assert here.sha256.startswith("ba7816bf")
    ensure_equal(here, here, "a")
    with pytest.raises(SaveFailed, match=r"a came over otherwise: here .*, there .*; try again"):
        ensure_equal(here, Measured(size_bytes=4, sha256=here.sha256), "a")
