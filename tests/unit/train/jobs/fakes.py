"""A program in the place of `python -m train grpo`: does what a word in its config's model says.

The model's path is the script: `finish`, `fail`, `refuse`, `wait` (until SIGTERM), `die`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from train.config import load
from train.run import RunDir, State, Status


def main() -> int:
    words = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    config = load(Path(words["--config"]), {})
    script = config.model.path
    if script == "refuse":
        print("error: no such env", file=sys.stderr, flush=True)
        return 2
    folder = Path(words["--run"])
    print(f"{'going on' if RunDir.is_begun(folder) else 'begun'} {folder.name}", flush=True)
    run = RunDir.create_at(folder, config, {})
    settings = [name for name in os.environ if name.startswith("PALAESTRA_TRAIN__")]
    print(f"settings {settings}", flush=True)
    if script == "wait":
        signal.signal(signal.SIGTERM, lambda *_: stop(run))
        run.write_status(Status(state=State.RUNNING, step=2))
        print("waiting", flush=True)
        while True:
            time.sleep(0.01)
    if script == "die":
        run.write_status(Status(state=State.RUNNING, step=1))
        os.kill(os.getpid(), signal.SIGKILL)
    if script == "fail":
        run.write_status(Status(state=State.FAILED, step=3, message="no disk"))
        print("error: no disk", file=sys.stderr, flush=True)
        return 1
    if script == "spend":
        run.write_status(Status(state=State.INTERRUPTED, step=3, message="the budget is spent"))
        return 1
    run.checkpoint_path(4).mkdir(exist_ok=True)
    run.write_status(Status(state=State.FINISHED, step=4, version=5))
    return 0


def stop(run: RunDir) -> None:
    run.write_status(Status(state=State.INTERRUPTED, step=2, message="stopped by SIGTERM"))
    print("saved", flush=True)
    sys.exit(143)


if __name__ == "__main__":
    sys.exit(main())
