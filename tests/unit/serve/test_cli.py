import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve.cli import main


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["up", "--model", "/nope"], 2, "no model '/nope'"),
        (["up", "--model", "smollm2-135m-instruct"], 2, "smollm2-135m-instruct is not on this"),
        (["up", "--model", "MODEL", "--port", "99999"], 2, "port: Input should be less than 65536"),
        (["up"], 2, "give either --model or --upstream"),
        (["up", "--model", "MODEL", "--port", "0"], 2, "MODEL"),
        (["up", "--model", "MODEL", "--host", "0.0.0.0"], 2, "refusing to listen on 0.0.0.0"),
        (["pull", "nope"], 2, "nothing to pull under 'nope'"),
        (["pull", "smollm2-135m-instruct"], 1, "pip could not download"),
    ],
    ids=["path", "unpulled", "port", "nothing", "weightless", "host", "name", "index"],
)
def test_errors_are_one_line_and_a_code(
    argv: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PALAESTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "config.json").write_text("{}")
    assert main([str(tmp_path) if word == "MODEL" else word for word in argv]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {message.replace('MODEL', str(tmp_path))}")


@pytest.mark.parametrize("argv", [["nope"], [], ["up", "--model", "m", "--port", "x"]])
def test_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: python -m serve" in capsys.readouterr().err


def test_help_is_instant() -> None:
    took_s = []
    for _ in range(3):
        started = time.perf_counter()
        done = run("-m", "serve", "--help")
        took_s.append(time.perf_counter() - started)
        assert done.returncode == 0
        assert "python -m serve pull smollm2-135m-instruct" in done.stdout
    assert min(took_s) < 0.25


@pytest.mark.parametrize("module", ["serve", "serve.cli", "serve.testing", "serve.models"])
def test_imports_are_light(module: str) -> None:
    heavy = ["torch", "vllm", "transformers", "huggingface_hub", "fastapi", "pandas", "numpy"]
    script = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert run("-c", script).stdout == "[]\n"


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllm_that_dies_says_why(pulled_model: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / f"{pulled_model.name}-0.log"
    argv = ["-m", "serve", "up", "--model", str(pulled_model), "--port", "0"]
    argv += ["--state", str(tmp_path)]
    done = run(*argv, "--", "--kv-cache-dtype", "nonsense")
    assert done.returncode == 1
    assert "ended by itself (exit code" in done.stderr
    assert "nonsense" in done.stderr
    assert "nonsense" in log.read_text()
