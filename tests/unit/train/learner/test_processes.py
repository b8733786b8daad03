"""Two trainer processes learn what one learns, sharing the rows, or the weights as well."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.unit.train.learner import several
from tests.unit.train.tinies import make_checkpoint
from train.supervise import launcher

ROOT = Path(__file__).resolve().parents[4]
CASES: dict[str, dict[str, Any]] = {
    "whole": {"learn__steps": 3, "checkpoints__every": 2},
    "rows": {"learn__loss": "grpo", "learn__accumulation": 2, "learn__steps": 2},
    "adapter": {"lora": True, "learn__steps": 2},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where one process has left what it learned."""
    out = tmp_path_factory.mktemp("alone")
    for name, told in CASES.items():
        several.case({"checkpoint": str(checkpoint), "out": str(out), "shard": False}, name, told)
    return out


@pytest.fixture(scope="module", params=[False, True], ids=["gloo", "gloo and FSDP2"])
def together(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return where two processes have left it."""
    out = tmp_path_factory.mktemp("together")
    goes_on = CASES["whole"] | {"resume": str(out / "whole" / "saved-2"), "first": 3}
    order = {
        "checkpoint": str(checkpoint),
        "out": str(out),
        "shard": request.param,
        "cases": CASES | {"resumed": goes_on},
    }
    path = out / "order.json"
    path.write_text(json.dumps(order))
    done = subprocess.run(
        [*launcher(2), several.__name__, str(path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert json.loads((out / "whole.json").read_text())["sharded"] is request.param
    return out


def said(folder: Path, name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return told


@pytest.mark.parametrize("name", CASES)
def test_the_weights_are_those_of_one_process(alone: Path, together: Path, name: str) -> None:
    expected, found = (load_file(at / f"{name}.safetensors") for at in (alone, together))
    assert found.keys() == expected.keys()
    for key, each in expected.items():
        assert (each - found[key]).abs().max() < 1e-5, key


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_of_a_step_are_those_of_all_its_rows(
    alone: Path, together: Path, name: str
) -> None:
    one, two = said(alone, name), said(together, name)
    assert one["tokens"] == two["tokens"]
    assert len(one["logs"]) == len(two["logs"]) == CASES[name]["learn__steps"]
    for mine, theirs in zip(one["logs"], two["logs"], strict=True):
        for key in ("loss", "grad_norm", "learning_rate", "entropy"):
            assert theirs[key] == pytest.approx(mine[key], abs=1e-5), key
    assert two["gap"] == pytest.approx(one["gap"], abs=1e-5)


def test_a_checkpoint_is_whole_and_can_be_gone_on_from(checkpoint: Path, together: Path) -> None:
    saved = together / "whole" / "saved-2"
    names = {file.name for file in saved.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "trainer_state.json"} <= names
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= names
    assert load_file(saved / "model.safetensors").keys() == (
        load_file(checkpoint / "model.safetensors").keys()
    )
    expected, found = (load_file(together / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert expected.keys() == found.keys()
    for key, each in expected.items():
        assert (each - found[key]).abs().max() < 1e-6, key
    assert len(said(together, "resumed")["logs"]) == 3  # two of them out of the checkpoint
