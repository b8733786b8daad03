"""Logs of inspect as runs. `logs/` was written by inspect: tests/contract/inspect_side.py."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

import evalkit
from evalkit.errors import BadConfig
from evalkit.exchange.eval_file import EvalFile
from evalkit.exchange.inspect_import import Wanted, import_logs
from evalkit.exchange.inspect_log import export_inspect
from evalkit.exchange.inspect_samples import seed_of
from evalkit.exchange.played import Played
from evalkit.record.rundir import RunDir
from evalkit.record.tables import read_csv
from evalkit.run import resume, run_async

LOGS = Path(__file__).with_name("logs")
GOOD, BAD = LOGS / "good.eval", LOGS / "bad.eval"
MATCH = Wanted(score="match")


def _changed(file: Path, path: Path, change: dict[str, Any], *, without: str = "") -> Path:
    """Write a log anew, with some parts as `change` has them."""
    with EvalFile(file) as log, zipfile.ZipFile(path, "w") as out:
        for name in zipfile.ZipFile(file).namelist():
            if name != without:
                out.writestr(name, json.dumps(change.get(name) or log.read(name)))
    return path


def test_two_logs_of_inspect_are_compared(tmp_path: Path) -> None:
    bad, good = import_logs([BAD, GOOD], tmp_path, MATCH)
    report = evalkit.compare(bad, good)
    found = report.compared[0].found
    assert (found.n_pairs, found.mean_a, found.mean_b) == (4, 0.5, 1.0)
    assert [row["norm_score"] for row in report.summary] == [None, None]
    manifest = RunDir.open(good).manifest()
    assert manifest["env"]["id"] == "sums"
    assert manifest["config"]["k"] == 2
    assert manifest["config"]["seeds"] == sorted([1, 3, seed_of("sum-2"), seed_of("sum-4")])
    assert manifest["imported"]["sample_ids"] == {
        str(seed_of("sum-2")): "sum-2",
        str(seed_of("sum-4")): "sum-4",
    }
    assert (good / "episodes.csv").is_file()


def test_a_score_of_several_values_is_named_with_its_key(tmp_path: Path) -> None:
    wanted = Wanted(score="partial/success", return_score="partial/points")
    (run,) = import_logs([BAD], tmp_path, wanted)
    (row,) = read_csv(run / "summary.csv")
    assert float(row["success_rate"]) == 0.5
    assert float(row["return_mean"]) == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Wanted(), r"has 3 scores \(match, partial/success, partial/points\): choose one by"),
        (Wanted(score="nope"), r"has no score 'nope'; it has match, partial/success"),
        (Wanted(score="match", return_score="nope"), "has no score 'nope'"),
    ],
)
def test_scores_are_chosen_by_name(tmp_path: Path, wanted: Wanted, said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        import_logs([GOOD], tmp_path, wanted)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.eval").write_text("no zip")
    out = tmp_path / "out"
    cases = {
        tmp_path / "absent.eval": "No such file",
        tmp_path / "text.eval": r"is not a \.eval log of inspect",
        _changed(GOOD, tmp_path / "cut.eval", {}, without="header.json"): "is not finished",
        _changed(GOOD, tmp_path / "odd.eval", {"header.json": {"eval": {}}}): "as known here",
    }
    for file, said in cases.items():
        with pytest.raises(BadConfig, match=said):
            import_logs([file], out, MATCH)
    assert not out.exists()


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    whole = bytearray(GOOD.read_bytes())
    whole[1200:1230] = bytes(30)
    (tmp_path / "bad.eval").write_bytes(whole)
    with pytest.raises(BadConfig, match=r"bad\.eval: .* cannot be read"):
        import_logs([tmp_path / "bad.eval"], tmp_path / "out", MATCH)


def test_a_part_of_damaged_or_hostile_bytes_is_named(tmp_path: Path) -> None:
    cut = _changed(GOOD, tmp_path / "cut.eval", {})
    with zipfile.ZipFile(cut, "a", zipfile.ZIP_DEFLATED) as log:
        log.writestr("samples/deep.json", b"[" * 100_000)
    with pytest.raises(BadConfig, match=r"samples/deep\.json cannot be read"):
        import_logs([cut], tmp_path / "out", MATCH)
    deflated = tmp_path / "deflated.eval"
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as log:
        log.writestr("header.json", json.dumps({"eval": "x" * 9 + str(list(range(99)))}))
        start = log.getinfo("header.json").header_offset + 45
    whole = bytearray(deflated.read_bytes())
    whole[start : start + 20] = b"\xff" * 20
    deflated.write_bytes(whole)
    with pytest.raises(BadConfig, match=r"header\.json cannot be read"):
        import_logs([deflated], tmp_path / "out", MATCH)


def test_a_part_that_would_fill_the_memory_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalkit.exchange.eval_file.MOST_BYTES", 1_000)
    bomb = tmp_path / "bomb.eval"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as log:
        log.writestr("header.json", b" " * 1_001)
    with pytest.raises(BadConfig, match="it unpacks to 1001 bytes, above 1000"):
        import_logs([bomb], tmp_path / "out", MATCH)


def test_zstd_is_unpacked_no_further_than_the_part_claims(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    text = json.dumps(["x" * 99] * 20_000).encode()
    for claimed in (len(text), 10):
        packed = bytes(arrow.compress(text, codec="zstd", asbytes=True))
        name = b"header.json"
        sizes = (0, len(packed), claimed, len(name), 0)
        local = struct.pack("<4s5H3I2H", b"PK\3\4", 63, 0, 93, 0, 33, *sizes) + name + packed
        entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 63, 63, 0, 93, 0, 33, *sizes, 0, 0, 0, 0, 0)
        entry += name
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local), 0)
        path = tmp_path / f"{claimed}.eval"
        path.write_bytes(local + entry + end)
        with EvalFile(path) as log:
            if claimed == len(text):
                assert len(log.read("header.json")) == 20_000
            else:
                with pytest.raises(BadConfig, match="expected 10 bytes, found more"):
                    log.read("header.json")


def test_a_folder_in_the_zip_is_no_sample(tmp_path: Path) -> None:
    log = _changed(GOOD, tmp_path / "again.eval", {})
    with zipfile.ZipFile(log, "a") as file:
        file.mkdir("samples")
    (run,) = import_logs([log], tmp_path / "out", MATCH)
    (row,) = read_csv(run / "summary.csv")
    assert row["n_ok"] == "8"


def test_samples_that_cannot_be_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    name = "samples/3_epoch_2.json"
    with EvalFile(GOOD) as log:
        sample = log.read(name)
    huge = {**sample["scores"], "match": {"value": 10**400}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({name: {**sample, "epoch": 1}}, "holds sample 3 of epoch 1 twice"),
        ({name: {**sample, "epoch": 0}}, "expected an epoch from 1 on, found 0"),
        ({name: {**sample, "epoch": 2.5}}, "expected an epoch from 1 on, found 2.5"),
        ({name: {**sample, "id": "\ud800"}}, "is not a log of inspect as known here"),
        ({name: {**sample, "scores": huge}}, "more than 300 digits; choose another --score"),
    ]
    for n, (changed, said) in enumerate(cases):
        with pytest.raises(BadConfig, match=said):
            import_logs([_changed(GOOD, tmp_path / f"{n}.eval", changed)], tmp_path / "out", MATCH)
    assert not (tmp_path / "out").exists()


def test_other_samples_under_the_same_ids_are_not_paired(tmp_path: Path) -> None:
    with EvalFile(GOOD) as log:
        sample = log.read("samples/sum-2_epoch_1.json")
    other = _changed(
        GOOD,
        tmp_path / "other.eval",
        {
            f"samples/sum-2_epoch_{epoch}.json": {**sample, "epoch": epoch, "input": "What is 2*2?"}
            for epoch in (1, 2)
        },
    )
    with pytest.raises(BadConfig, match=r"sample 'sum-2' of .*other\.eval has another input"):
        import_logs([BAD, other], tmp_path / "out", MATCH)
    assert not (tmp_path / "out").exists()


def test_a_score_that_is_not_a_number_loses_the_episode(tmp_path: Path) -> None:
    with EvalFile(GOOD) as log:
        sample = log.read("samples/3_epoch_2.json")
    scores = {**sample["scores"], "match": {"value": float("nan")}}
    changed = {"samples/3_epoch_2.json": {**sample, "scores": scores}}
    (run,) = import_logs([_changed(GOOD, tmp_path / "nan.eval", changed)], tmp_path, MATCH)
    (row,) = read_csv(run / "summary.csv")
    assert (row["n_ok"], row["n_error"], row["success_rate"]) == ("7", "1", "1")


def test_a_sample_that_changes_between_epochs_is_refused(tmp_path: Path) -> None:
    with EvalFile(GOOD) as log:
        sample = log.read("samples/3_epoch_2.json")
    changed = {"samples/3_epoch_2.json": {**sample, "input": "What is 3*3?"}}
    other = _changed(GOOD, tmp_path / "other.eval", changed)
    with pytest.raises(BadConfig, match="sample 3 asks something else each epoch"):
        import_logs([other], tmp_path / "out", MATCH)


def test_an_export_comes_back_with_the_same_numbers(tmp_path: Path) -> None:
    run = evalkit.evaluate(
        ["A=random", "B=oracle"], "key_door", seeds="0:6", k=2, env_args={"size": 2}, out=tmp_path
    )
    folder = tmp_path / "logs"
    folder.mkdir()
    files = export_inspect(Played.open(run.path), folder)
    back = import_logs(files, tmp_path / "back", Wanted())
    again = evalkit.compare(*back)
    whole = [c.found for c in run.report.compared if c.metric.name in {"success", "return"}]
    assert [c.found for c in again.compared if c.metric.name in {"success", "return"}] == whole
    same = ("success_rate", "return_mean", "return_se_cluster", "steps_mean", "env_hash", "turns")
    for before, after in zip(run.summary, again.summary, strict=True):
        assert [after[name] for name in same] == [before[name] for name in same]


def test_an_imported_run_cannot_be_played_on(tmp_path: Path) -> None:
    (run,) = import_logs([GOOD], tmp_path, MATCH)
    with pytest.raises(BadConfig, match="was imported: there is nothing to play in it"):
        run_async(resume(run))
