"""Every command of the README does what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if line.strip()
]
ELSEWHERE = {
    "make demo": "tests/e2e/test_demo.py",
    "make demo-train": "tests/e2e/test_training.py",
    "python -m train grpo --config train/configs/key_door_tiny.yaml": "tests/e2e/test_training.py",
    "make test": "this very run",
    ". .venv/bin/activate": "tests/e2e/test_readme.py",
    "python -m serve pull smollm2-135m-instruct": "tests/e2e/test_demo.py",
    "python -m serve up --model smollm2-135m-instruct --port 8000": "tests/e2e/test_demo.py",
}
"""Commands that another test runs."""


def _run(command: list[str], folder: Path) -> str:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _here(command: str, tmp_path: Path, url: str = "") -> list[str]:
    """Point a README command at this interpreter, this checkout and the server that is up."""
    words = shlex.split(command.replace("http://127.0.0.1:8000", url or "http://127.0.0.1:8000"))
    ours = ("tests/", "train/configs/")
    words = [str(ROOT / word) if word.startswith(ours) else word for word in words]
    return [sys.executable if word == "python" else word for word in words]


def test_commands_that_other_tests_run_are_still_in_the_readme() -> None:
    assert set(ELSEWHERE) <= set(COMMANDS)
    for test in ELSEWHERE.values():
        assert not test.endswith(".py") or (ROOT / test).is_file()


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c not in ELSEWHERE and "127.0.0.1" not in c]
)
def test_command_without_a_server(command: str, tmp_path: Path) -> None:
    # A config names its model by a path from the project's root.
    _run(_here(command, tmp_path), ROOT if "--dry-run" in command else tmp_path)


@pytest.mark.vllm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", [c for c in COMMANDS if "127.0.0.1" in c])
def test_command_against_the_server(command: str, tmp_path: Path, vllm_url: str) -> None:
    printed = _run(_here(command, tmp_path, vllm_url.removesuffix("/v1")), tmp_path)
    assert "valid actions" in printed
    assert list((tmp_path / "results").glob("*/summary.csv"))


@pytest.mark.parametrize("program", [block for language, block in BLOCKS if language == "python"])
def test_python_example(program: str, tmp_path: Path) -> None:
    assert _run([sys.executable, "-c", program], tmp_path).startswith("1.0 ")


def test_the_environment_is_where_the_readme_says() -> None:
    program = ". .venv/bin/activate && python -m evalkit envs && evalkit --help"
    assert "key_door" in _run(["bash", "-c", program], ROOT)


def test_the_benchmark_runs() -> None:
    small = ["--episodes", "20", "--turns", "2", "--repeats", "1"]
    assert "turns/s" in _run([sys.executable, "bench/evalkit.py", *small], ROOT)


def test_measured_commands_exist() -> None:
    named = set(re.findall(r"`(?:python|pytest) ((?:bench|tests)/[\w/.]+\.py)`", README))
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []
