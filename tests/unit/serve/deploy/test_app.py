"""Importing the app: what every Modal command and every container does first."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from serve.deploy.config import load
from tests.unit.serve.deploy.configs import ALL

GATE = """
import sys, warnings, modal
warnings.simplefilter("error", modal.exception.DeprecationError)
import serve.modal_app
heavy = {"torch", "vllm", "transformers", "fastapi", "sqlalchemy"} & set(sys.modules)
assert not heavy, heavy
"""


def cpu_s(code: str, environment: dict[str, str]) -> float:
    """Return the CPU time of a python that runs the code; the wall clock is others' business."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_the_app_imports_without_deprecations_and_without_anything_heavy(path: Path) -> None:
    cpu_s(GATE, {"PALAESTRA_SERVE_CONFIG": str(path)})


def test_the_import_takes_less_than_a_second() -> None:
    cpu_s("import serve.modal_app", {})
    assert min(cpu_s("import serve.modal_app", {}) for _ in range(3)) < 1.0


def test_a_container_finds_the_same_objects() -> None:
    config = load(ALL[0], environ={}, sets=["deploy.volumes.runs=theirs"])
    code = """
import serve.modal_app as made
print(len(made.Policy._get_service_function()._deps_(only_explicit_mounts=True))
      if hasattr(made.Policy, "_get_service_function") else 0)
print(sorted(made.Policy.info().volumes), sorted(made.Gateway.info().volumes))
"""
    told = {"PALAESTRA_SERVE_CONFIG": config.to_json(), "PATH": "/usr/bin:/bin"}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], env={**told, **more}, capture_output=True, text=True
        )
        for more in ({}, {"MODAL_IS_REMOTE": "1"})
    ]
    assert [done.returncode for done in outputs] == [0, 0], outputs
    assert outputs[0].stdout == outputs[1].stdout
    assert "/palaestra/runs" in outputs[0].stdout
