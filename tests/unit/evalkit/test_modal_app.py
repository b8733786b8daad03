"""The Modal app as its definitions say it, without a control plane."""

from __future__ import annotations

import os
import subprocess
import sys

GATE = """
import sys, warnings, modal
warnings.simplefilter("error", modal.exception.DeprecationError)
import evalkit.modal_app
print(*sys.modules)
"""
HEAVY = {"torch", "vllm", "trl", "fastapi", "pandas", "numpy", "transformers"}


def ran(program: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "MODAL_CONFIG_PATH": "absent", **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_app_imports_without_deprecated_names_and_without_weight() -> None:
    done = ran(GATE)
    assert (done.returncode, done.stderr) == (0, "")
    assert HEAVY.isdisjoint(done.stdout.split())


def test_the_app_costs_less_than_a_second_with_modal_itself() -> None:
    """Of CPU time, the best of several: the machine may be busy."""
    program = "import time, evalkit.modal_app; print(time.process_time())"
    took: list[float] = []
    while len(took) < 7 and min(took, default=9.0) >= 1.0:
        took.append(float(ran(program).stdout))
    assert min(took) < 1.0


def test_a_shard_gets_a_cpu_the_results_volume_and_more_than_one_try() -> None:
    program = (
        "from evalkit import modal_app as m\n"
        "info = m.evaluate_shard.info()\n"
        "[(at, volume)] = info.volumes.items()\n"
        "print(info.cpu, info.gpus, info.timeout, info.max_retries, at, volume.name)\n"
        "print(m.evaluate_run.info().volumes, m.evaluate_run.info().gpus)\n"
    )
    done = ran(program, EXPERIMENTER="ada l", EXPERIMENT_NAME="", PALAESTRA_VOLUMES_ROOT="/p")
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == "1.0 [] 86400 3 /p/runs palaestra-runs-ada-l-default"
    assert second == "{} []"
