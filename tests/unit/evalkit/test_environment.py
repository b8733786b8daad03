"""What is read from the environment and from a `.env` file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evalkit.environment import load_env_file
from evalkit.errors import BadConfig

LINES = """
# a comment
PALAESTRA_A=one
export PALAESTRA_B = "two words"
PALAESTRA_C='th#ree'
PALAESTRA_D=
not an assignment
1X=no
PALAESTRA_E=a=b
"""


def test_a_file_adds_what_is_not_set(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(LINES)
    program = (
        "import os; from pathlib import Path; from evalkit.environment import load_env_file\n"
        "load_env_file(Path('.env'))\n"
        "print([os.environ.get(f'PALAESTRA_{name}') for name in 'ABCDE'], '1X' in os.environ)"
    )
    root = Path(__file__).resolve().parents[3]
    env = {**os.environ, "PALAESTRA_A": "mine", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "['mine', 'two words', 'th#ree', '', 'a=b'] False\n"


def test_no_file_is_fine_and_another_encoding_is_not(tmp_path: Path) -> None:
    load_env_file(tmp_path / ".env")
    (tmp_path / ".env").write_bytes(b"A=\xff")
    with pytest.raises(BadConfig, match="expected UTF-8"):
        load_env_file(tmp_path / ".env")
