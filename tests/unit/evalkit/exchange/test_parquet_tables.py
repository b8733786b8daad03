"""Parquet tables, read by pandas and by datasets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import evalkit
from evalkit.errors import CallFailed, Failure
from evalkit.exchange.parquet_tables import export_hf, export_parquet
from evalkit.exchange.played import Played, as_dicts
from evalkit.testing import FakePolicy

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> evalkit.Run:
    """Two arms, the first of which loses an episode."""
    gone = CallFailed(Failure.TIMEOUT, "no answer")
    policy = FakePolicy(
        lambda ask: gone if ask.session_id.endswith("1-0") else "<action>up</action>"
    )
    return evalkit.evaluate(
        policy, "key_door", strategy="FULL_HISTORY", seeds="0:3", env_args={"max_turns": 4},
        out=tmp_path_factory.mktemp("results"),
    )  # fmt: skip


def test_pandas_reads_episodes_and_turns(run: evalkit.Run, tmp_path: Path) -> None:
    export_parquet(Played.open(run.path), tmp_path)
    episodes = pd.read_parquet(tmp_path / "episodes.parquet")
    turns = pd.read_parquet(tmp_path / "turns.parquet")
    assert episodes["env_seed"].tolist() == [0, 1, 2]
    assert episodes["success"].tolist() == [False, None, False]
    assert episodes["return"].isna().tolist() == [False, True, False]
    assert episodes["failure"].fillna("").tolist() == ["", "timeout", ""]
    played = Played.open(run.path)
    sent = [p for episode in played.trajectories() for p in played.prompts(episode)]
    assert [list(prompt) for prompt in turns["prompt"]] == [as_dicts(prompt) for prompt in sent]
    assert turns["completion"].unique().tolist() == ["<action>up</action>"]
    assert turns["turn"].tolist() == [0, 1, 2, 3] * 2


def test_datasets_loads_what_the_card_names(run: evalkit.Run, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    files = export_hf(Played.open(run.path), tmp_path / "data")
    assert [file.name for file in files] == ["README.md", "episodes.parquet", "turns.parquet"]
    card = files[0].read_text()
    assert "3 episodes of the env `key_door`" in card
    assert "| FakePolicy | FakePolicy | FULL_HISTORY |" in card
    for name, n_rows in (("episodes", 3), ("turns", 8)):
        loaded = datasets.load_dataset(
            str(tmp_path / "data"), name, split="train", cache_dir=str(tmp_path / "cache")
        )
        assert loaded.num_rows == n_rows


def test_without_pyarrow_it_says_what_to_install(run: evalkit.Run, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['pyarrow'] = None; sys.modules['pyarrow.parquet'] = None\n"
        "from evalkit.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["export", str(run.path), "--to", "parquet", "--out", str(tmp_path)]
    ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr == ("evalkit: this needs the package pyarrow: install palaestra[exchange]\n")
