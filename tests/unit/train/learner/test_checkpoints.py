"""Checkpoints: complete or invisible, exact, and never half-removed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from train.errors import BadModel, SaveFailed
from train.learner.checkpoints import (
    MARKER,
    STATE,
    Checkpoints,
    SavedCheckpoints,
    TrainState,
)

ROOT = Path(__file__).resolve().parents[4]


def write(checkpoints: Checkpoints, step: int, weights: bytes = b"weights") -> Path:
    state = TrainState(
        step=step, next_group=8 * step, published_version=step + 1, versions={step: step + 1}
    )
    with checkpoints.writing(step) as staging:
        state.write(staging)
        (staging / "model.safetensors").write_bytes(weights)
        (staging / "shards").mkdir()
        (staging / "shards" / "0.bin").write_bytes(b"0")
    return checkpoints.path(step)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_is_hidden_until_it_is_complete(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    with checkpoints.writing(20) as staging:
        assert staging.name == ".step-000020.tmp"
        TrainState(step=20, next_group=160).write(staging)
        assert checkpoints.list() == ()
        assert not (staging / MARKER).exists()
    assert names(tmp_path / "c") == ["step-000020"]
    assert (checkpoints.list(), checkpoints.latest()) == ((20,), 20)


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = TrainState(
        step=20,
        next_group=161,
        published_version=9,
        versions={10: 5, 20: 9},
        metrics={"loss": 0.1, "rows": 3, "kl": None},
    )
    checkpoints = Checkpoints(tmp_path, keep=1)
    with checkpoints.writing(20) as staging:
        state.write(staging)
    assert checkpoints.load_state(20) == state


def test_the_marker_lists_every_file_with_size_and_digest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 1)
    marker = json.loads((checkpoints.path(1) / MARKER).read_text())
    assert marker["format"] == "train-checkpoint/1"
    assert marker["step"] == 1
    files = {file.name: file for file in checkpoints.files(1)}
    assert sorted(files) == ["model.safetensors", "shards/0.bin", STATE]
    assert files["model.safetensors"].size_bytes == 7
    assert files["shards/0.bin"].sha256 is not None
    assert files["shards/0.bin"].sha256.startswith("5feceb66")


def test_large_files_are_known_by_their_size(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 1, weights=bytes(16 << 20))
    assert {file.name: file.sha256 is None for file in checkpoints.files(1)} == {
        "model.safetensors": True,
        "shards/0.bin": False,
        STATE: False,
    }


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        write(checkpoints, step)
    assert names(tmp_path) == ["step-000003", "step-000004"]


def test_an_error_of_the_block_passes_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 1)

    def fail(staging: Path) -> None:
        (staging / "model.safetensors").write_bytes(b"half")
        raise KeyError("a bug")

    with pytest.raises(KeyError), checkpoints.writing(2) as staging:
        fail(staging)
    assert names(tmp_path) == ["step-000001"]


def test_without_state_it_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(SaveFailed, match=r"no state\.json"), checkpoints.writing(2):
        pass
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_clearly(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    before = write(checkpoints, 1)
    content = (before / "model.safetensors").read_bytes()

    def fill(staging: Path) -> None:
        (staging / "model.safetensors").symlink_to("/dev/full")
        (staging / "model.safetensors").write_bytes(b"weights")

    with pytest.raises(SaveFailed) as failed, checkpoints.writing(2) as staging:
        fill(staging)
    said = str(failed.value)
    assert "checkpoint of step 2" in said
    assert "the disk is full" in said
    assert "bytes are free" in said
    assert "step 1 is untouched" in said
    assert isinstance(failed.value.__cause__, OSError)
    assert names(tmp_path) == ["step-000001"]
    assert (before / "model.safetensors").read_bytes() == content


def test_a_library_that_fails_in_its_own_words_is_understood(tmp_path: Path) -> None:
    class SafetensorError(Exception):
        pass

    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(SaveFailed, match="there is none before it"), checkpoints.writing(2):
        raise SafetensorError("IoError: No space left on device (os error 28)")
    with pytest.raises(SafetensorError, match="another"), checkpoints.writing(2):
        raise SafetensorError("another")


def test_an_unwritable_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveFailed, match="cannot keep checkpoints"):
        Checkpoints(tmp_path / "file", keep=1)


def test_at_least_one_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize("fault", ["truncated", "missing", "no marker", "marker of another"])
def test_a_damaged_one_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    write(checkpoints, 1)
    broken = write(checkpoints, 2)
    damaged = broken / "model.safetensors"
    if fault == "truncated":
        os.truncate(damaged, 3)
    elif fault == "missing":
        damaged.unlink()
    elif fault == "no marker":
        (broken / MARKER).unlink()
    else:
        shutil.copy(checkpoints.path(1) / MARKER, broken / MARKER)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest() == 1
        assert checkpoints.list() == (1,)
    named = MARKER if "marker" in fault else damaged.name
    assert len(caplog.records) == 1
    assert named in caplog.text
    with pytest.raises(BadModel, match=named):
        checkpoints.load_state(2)


def test_other_bytes_are_found_before_a_resume(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    folder = write(checkpoints, 1)
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(BadModel, match=r"model\.safetensors has other bytes"):
        checkpoints.load_state(1)


def test_a_state_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text('{"format": "train-state/9"}')
    with pytest.raises(BadModel, match="expected the format train-state/1"):
        TrainState.read(tmp_path)
    (tmp_path / STATE).write_text('{"format": "train-state/1", "step": 1}')
    with pytest.raises(BadModel, match="next_group"):
        TrainState.read(tmp_path)


def test_damaged_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 1)
    os.truncate(write(checkpoints, 2) / STATE, 3)
    write(checkpoints, 3)
    assert checkpoints.list() == (1, 3)


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 1, b"first")
    folder = write(checkpoints, 1, b"second")
    assert (folder / "model.safetensors").read_bytes() == b"second"
    assert names(tmp_path) == ["step-000001"]


def test_leftovers_of_a_crash_go_when_a_writer_opens(tmp_path: Path) -> None:
    write(Checkpoints(tmp_path, keep=2), 1)
    for left in (".step-000002.tmp", ".step-000000.gone", ".step-000001.old"):
        shutil.copytree(tmp_path / "step-000001", tmp_path / left)
    looking = SavedCheckpoints(tmp_path)
    assert looking.list() == (1,)
    assert len(names(tmp_path)) == 4
    assert Checkpoints(tmp_path, keep=2).list() == (1,)
    assert names(tmp_path) == ["step-000001"]


def test_one_that_was_moved_aside_for_nothing_comes_back(tmp_path: Path) -> None:
    write(Checkpoints(tmp_path, keep=2), 1).rename(tmp_path / ".step-000001.old")
    assert Checkpoints(tmp_path, keep=2).list() == (1,)


def test_what_cannot_be_removed_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 1)
    (tmp_path / ".step-000001.gone").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        write(checkpoints, 2)
    assert checkpoints.latest() == 2
    assert "the old checkpoint of step 1 cannot be removed" in caplog.text


def test_no_folder_has_no_checkpoints(tmp_path: Path) -> None:
    looking = SavedCheckpoints(tmp_path / "absent")
    assert looking.list() == ()
    assert looking.latest() is None
    assert not (tmp_path / "absent").exists()


WRITER = """
import sys
from pathlib import Path
from train.learner.checkpoints import Checkpoints, TrainState
checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
step = 0
while True:
    step += 1
    with checkpoints.writing(step) as staging:
        TrainState(step=step, next_group=step).write(staging)
        for part in range(8):
            (staging / f"{part}.bin").write_bytes(bytes(200_000))
    print(step, flush=True)
"""


def test_whenever_it_is_killed_the_last_one_is_whole(tmp_path: Path) -> None:
    for kill in range(2):
        root = tmp_path / str(kill)
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            said = [writer.stdout.readline() for _ in range(3 + kill)]
            writer.send_signal(signal.SIGKILL)
            said += writer.stdout.readlines()
        told = int([line for line in said if line.endswith("\n")][-1])
        checkpoints = Checkpoints(root, keep=2)
        latest = checkpoints.latest()
        assert latest in (told, told + 1)
        for step in checkpoints.list():
            assert checkpoints.load_state(step).step == step
        assert all(name.startswith("step-") for name in names(root))


def test_nothing_heavy_is_imported() -> None:
    program = "import sys, train.learner.checkpoints; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in ran.stdout.split()}
    assert loaded.isdisjoint({"torch", "transformers", "trl", "wandb"})
