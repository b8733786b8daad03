"""The part of a machine that is not the first of several: `python -m train.follow RUN --url URL`.

The first one begins the run, publishes and writes; this one only computes, and starts its learners
again as the first one does. Which machine it is says the environment.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from train import children
from train.errors import TrainError
from train.run import RunDir
from train.supervise import launcher

_POLL_S = 0.2


def main() -> int:
    """Compute until the run ends; return the learners' exit code."""
    parser = argparse.ArgumentParser(prog="python -m train.follow")
    parser.add_argument("run", type=Path)
    parser.add_argument("--url", required=True)
    options = parser.parse_args()
    run = RunDir(options.run)
    config = run.config()
    argv = (*launcher(config.learn.processes), "train.learner", str(run.path), "--url", options.url)
    code = 0
    for _ in range(config.restarts + 1):
        child = children.spawn(argv, env=os.environ, death_signal=signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *_, child=child: child.terminate())
        while (code := child.poll() or 0) == 0 and child.returncode is None:
            time.sleep(_POLL_S)
        if code in (0, 1, 2):
            break
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TrainError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
