"""The wheel, as a user gets it: built, installed into a clean environment, imported there."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = """
import sys, envs, evalkit, evalkit.cli, serve, serve.cli, serve.testing, train
loaded = {name.split(".")[0] for name in sys.modules}
assert loaded.isdisjoint({"torch", "vllm", "modal", "pandas", "trl", "transformers"}), loaded
from envs.registry import SHIPPED
assert all(envs.make(name).reset(seed=0)[0] for name in SHIPPED)
from evalkit import evaluate
run = evaluate("oracle", "key_door", seeds="0:20", out=sys.argv[1])
assert run.summary[0]["success_rate"] == 1.0
print(evalkit.__file__)
"""


def _run(*command: str | Path) -> str:
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


@pytest.mark.slow
def test_wheel_installs_and_imports_in_a_clean_environment(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    _run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"envs", "evalkit", "serve", "train", f"{wheel.name.split('-py3')[0]}.dist-info"}

    _run(sys.executable, "-m", "venv", tmp_path / "clean")
    python = tmp_path / "clean" / "bin" / "python"
    quiet = ("-m", "pip", "--disable-pip-version-check", "install", "-q")
    _run(python, *quiet, "-c", ROOT / "requirements" / "base.txt", wheel)
    where = subprocess.run(
        [python, "-c", IMPORTED, tmp_path / "results"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert where.returncode == 0, where.stderr
    assert str(tmp_path / "clean") in where.stdout
    _run(tmp_path / "clean" / "bin" / "evalkit", "--help")
