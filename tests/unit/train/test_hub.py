"""Checkpoints to and from the hub, by the real client against a hub of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.train.hub_double import HubDouble, Repo
from train.config import EnvSection, ModelSection, RolloutSection, TrainConfig
from train.learner.checkpoints import Checkpoints, TrainState
from train.run import RunDir

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = bytes(range(256)) * 4000
TOKENIZER = {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}", "chat_template.jinja": b"c"}


@pytest.fixture(name="hub")
def _hub() -> Iterator[HubDouble]:
    with HubDouble() as hub:
        yield hub


def a_run(tmp_path: Path, *, adapter: bool = False, model: str = "org/base") -> RunDir:
    """A run with whole checkpoints of the steps 20 and 40."""
    config = TrainConfig(
        env=EnvSection(name="key_door", args={"size": 4}),
        model=ModelSection(path=model, name="key-door"),
        rollouts=RolloutSection(strategy="SCRATCHPAD"),
    )
    rundir = RunDir.create(tmp_path / "runs", config, {})
    checkpoints = Checkpoints(rundir.checkpoints_path, keep=9)
    for step in (20, 40):
        with checkpoints.writing(step) as staging:
            metrics = {"success": step / 100, "kl": None}
            TrainState(step=step, next_group=1, metrics=metrics).write(staging)
            files = {"optimizer.pt": b"o", "rng_state.pth": b"r", "training_args.bin": b"t"}
            if adapter:
                told = {"peft_type": "LORA", "base_model_name_or_path": f"{tmp_path}/base"}
                files["adapter_config.json"] = json.dumps(told).encode()
                files["adapter_model.safetensors"] = WEIGHTS + bytes([step])
            else:
                files |= {"config.json": b"{}", "model.safetensors": WEIGHTS + bytes([step])}
                files |= TOKENIZER
            for name, data in files.items():
                (staging / name).write_bytes(data)
    return rundir


def ran(
    hub: HubDouble | str, tmp_path: Path, *words: object, token: str = "hf_test"
) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    argv = [sys.executable, "-m", "train", "checkpoints", *map(str, words)]
    return subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_full_weights_go_and_come_back_whole(hub: HubDouble, tmp_path: Path) -> None:
    rundir = a_run(tmp_path)
    pushed = ran(hub, tmp_path, "push", rundir.path, "me/key-door", "--step", 20, "--private")
    assert (pushed.returncode, pushed.stderr) == (0, "")
    repo = hub.repos["me/key-door"]
    (commit,) = repo.commits
    assert pushed.stdout == f"me/key-door: 6 files, {hub.url}/me/key-door/commit/{commit}\n"
    assert (repo.private, repo.messages) == (True, ["key-door, step 20"])
    expected = {"config.json": b"{}", "model.safetensors": WEIGHTS + bytes([20]), **TOKENIZER}
    files = dict(repo.commits[commit])
    card = files.pop("README.md").decode()
    assert files == expected
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    for said in (
        "base_model: org/base\n",
        "- key_door\n",
        "The full weights of a policy that began as org/base, trained by GRPO with Palaestra",
        '- env: `key_door`, {"size": 4}',
        "- history strategy: `SCRATCHPAD`",
        "| success | 0.2 |",
        "python -m train checkpoints pull me/key-door --to key-door",
    ):
        assert said in card
    assert "kl" not in card
    assert str(tmp_path) not in card

    pulled = ran(hub, tmp_path, "pull", "me/key-door", "--to", tmp_path / "there" / "kd")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout == f"{tmp_path / 'there' / 'kd'}\n"
    came = {path.name: path.read_bytes() for path in (tmp_path / "there" / "kd").iterdir()}
    assert came == {**expected, "README.md": card.encode()}
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["kd"]


def test_an_adapter_goes_with_its_bases_name_and_tokenizer(hub: HubDouble, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name, data in {**TOKENIZER, "model.safetensors": b"not this"}.items():
        (base / name).write_bytes(data)
    rundir = a_run(tmp_path, adapter=True, model=str(base))
    pushed = ran(hub, tmp_path, "push", rundir.path, "me/kd", "--base", "org/base")
    assert pushed.returncode == 0, pushed.stderr
    repo = hub.repos["me/kd"]
    (files,) = repo.commits.values()
    assert repo.private is False
    assert sorted(files) == sorted(
        ["README.md", "adapter_config.json", "adapter_model.safetensors", *TOKENIZER]
    )
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    assert files["adapter_model.safetensors"][-1] == 40
    card = files["README.md"].decode()
    assert "library_name: peft" in card
    assert "A LoRA adapter for org/base, trained by GRPO with Palaestra, step 40." in card
    assert "python -m serve up --model org/base --name policy --lora" in card


def test_a_folder_of_weights_is_pushed_without_a_run(hub: HubDouble, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "secrets.txt").write_text("not for others")
    assert ran(hub, tmp_path, "push", folder, "me/tiny").returncode == 0
    (files,) = hub.repos["me/tiny"].commits.values()
    assert sorted(files) == ["README.md", "model.safetensors"]
    assert "# tiny" in files["README.md"].decode()


def test_a_second_push_is_a_second_commit_and_a_revision_names_the_first(
    hub: HubDouble, tmp_path: Path
) -> None:
    rundir = a_run(tmp_path)
    for step in (20, 40):
        folder = rundir.checkpoint_path(step)
        assert ran(hub, tmp_path, "push", folder, "me/kd").returncode == 0
    first, _ = hub.repos["me/kd"].commits
    for revision, last in ((first, 20), ("main", 40)):
        target = tmp_path / revision
        pulled = ran(hub, tmp_path, "pull", "me/kd", "--revision", revision, "--to", target)
        assert pulled.returncode == 0, pulled.stderr
        assert (target / "model.safetensors").read_bytes()[-1] == last


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_other_bytes_than_the_hub_has_are_refused(
    name: str, hub: HubDouble, tmp_path: Path
) -> None:
    files = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS}
    hub.repos["me/kd"] = Repo(private=False, commits={"c" * 40: files})
    hub.corrupt = {name}
    pulled = ran(hub, tmp_path, "pull", "me/kd", "--to", tmp_path / "kd")
    assert pulled.returncode == 1
    assert f"{name} came over with other bytes: expected" in pulled.stderr
    assert not (tmp_path / "kd").exists()


def test_what_cannot_be_done_is_said_in_a_line(hub: HubDouble, tmp_path: Path) -> None:
    rundir = a_run(tmp_path)
    hub.repos["me/kd"] = Repo(private=True, commits={"c" * 40: {"config.json": b"{}"}})
    (tmp_path / "there").mkdir()
    empty = tmp_path / "empty"
    empty.mkdir()
    push, pull = ["push", rundir.path, "me/new"], ["pull", "me/kd", "--to", tmp_path / "kd"]
    for words, token, code, said in (
        (push, "", 2, "pushing needs a token that may write: set HF_TOKEN"),
        (push, "hf_other", 2, "does the token in HF_TOKEN allow it?"),
        (
            [*push, "--step", 30],
            "hf_test",
            2,
            "no complete checkpoint of step 30: there are 20, 40",
        ),
        (["push", empty, "me/new"], "hf_test", 2, "is no checkpoint: expected model.safetensors"),
        (["push", empty, "a/b/c"], "hf_test", 2, "is no checkpoint"),
        (["push", rundir.path, "a b"], "hf_test", 2, "is no name for a repository"),
        (pull, "", 2, f"there is no me/kd at {hub.url}, or the token may not see it (HF_TOKEN)"),
        ([*pull[:1], "me/none", *pull[2:]], "hf_test", 2, "there is no me/none at"),
        ([*pull, "--revision", "v9"], "hf_test", 2, "has no revision 'v9'"),
        ([*pull[:3], tmp_path / "there"], "hf_test", 2, "is there already: move it away"),
    ):
        done = ran(hub, tmp_path, *words, token=token)
        assert said in done.stderr, done.stderr
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert not (tmp_path / "kd").exists()


def test_a_hub_that_is_away_or_fails_is_said_in_a_line(hub: HubDouble, tmp_path: Path) -> None:
    rundir = a_run(tmp_path)
    away = "http://127.0.0.1:9"
    for words in (["push", rundir.path, "me/kd"], ["pull", "me/kd", "--to", tmp_path / "kd"]):
        done = ran(away, tmp_path, *words)
        assert f"{away} cannot be reached: " in done.stderr, done.stderr
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    hub.fail["lfs-storage"] = 403
    done = ran(hub, tmp_path, "push", rundir.path, "me/kd")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert hub.repos["me/kd"].commits == {}
