"""The main job, end to end, with the two commands that a user would type.

A real language model on real vLLM plays key_door in two arms on the same seeds: answers as they
come, and answers that the server keeps in the env's format. Ends with the table, the verdicts and
the place of the CSVs, and leaves no process behind.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

MODEL = "smollm2-135m-instruct"
EVALUATION = (
    "--env key_door --env-arg size=3 --env-arg max_turns=20 -n 20 --guided off,on "
    "--temperature 0.7 --max-tokens 40 -c 40"
).split()


def main() -> int:
    """Run the demo; return the exit code of the evaluation."""
    signal.signal(signal.SIGTERM, _stop)
    _say("a checkpoint: python -m serve pull", MODEL)
    subprocess.run(_python("serve", "pull", MODEL), check=True)
    with served() as url:
        _say("the evaluation: python -m evalkit --model", url, *EVALUATION)
        return subprocess.run(
            _python("evalkit", "--model", url, *EVALUATION), check=False
        ).returncode


@contextmanager
def served() -> Iterator[str]:
    """Serve the model while the block runs; yield the base URL."""
    _say("a gateway and an engine: python -m serve up --port 0 --model", MODEL)
    with tempfile.TemporaryDirectory() as state:  # not the user's: it may ask for keys
        command = _python("serve", "up", "--port", "0", "--model", MODEL, "--state", state)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                yield _base_url(server)
            finally:
                server.terminate()
                server.wait()


def _base_url(server: subprocess.Popen[str]) -> str:
    """Pass on what the server says until it is ready; return the URL it names."""
    assert server.stdout is not None
    url = ""
    for line in server.stdout:
        sys.stdout.write(f"  {line}")
        sys.stdout.flush()
        if line.startswith("base URL"):
            url = line.split()[-1]
        if line.startswith("ready"):
            return url
    sys.exit(f"the server ended before it was ready (exit code {server.wait()})")


def _python(*words: str) -> list[str]:
    return [sys.executable, "-m", *words]


def _say(*words: str) -> None:
    sys.stdout.write(f"\n== {' '.join(words)}\n")
    sys.stdout.flush()


def _stop(signum: int, frame: FrameType | None) -> None:
    """Leave by way of every `finally`."""
    del frame
    sys.exit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
