"""How a learner's process begins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
BEGINS = """
import sys, warnings
from train.learner.__main__ import leave_vllm_out
warnings.simplefilter("ignore")
leave_vllm_out()
import train.learner.session, train.learner.sync_mode
print("vllm" in sys.modules, train.learner.session.GrpoTrainer.__name__)
"""


@pytest.mark.slow
def test_it_trains_without_loading_vllm() -> None:
    done = subprocess.run([sys.executable, "-c", BEGINS], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "GrpoTrainer"], done.stderr[-2000:]
