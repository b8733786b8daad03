"""`python -m train.learner RUN --url URL`: one learner; started by `python -m train grpo`.

Exit codes: 0 done or stopped on request, 1 it cannot go on, 2 it was asked something impossible.
Anything else is a crash.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from train import children
from train.errors import TrainError, UsageError
from train.rollouts.worker import Interrupted
from train.run import RunDir, State

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def leave_vllm_out() -> None:
    """Let TRL believe that there is no vLLM, before it loads all of it, which costs two seconds.

    The engines are elsewhere: nothing in this process asks vLLM for anything.
    """
    import trl.import_utils as asked  # noqa: PLC0415  # seconds

    asked.is_vllm_available = lambda *_, **__: False


def main() -> int:
    """Train; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m train.learner")
    parser.add_argument("run", type=Path)
    parser.add_argument("--url", required=True)
    options = parser.parse_args()
    run = RunDir.open(options.run)
    if run.config().learn.processes > 1:
        # torchrun gives its workers sessions of their own, in which they would outlive it.
        children.die_with_parent(signal.SIGKILL, os.getppid())
    leave_vllm_out()
    from transformers.utils import logging  # noqa: PLC0415  # seconds

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    from train.learner.session import learn  # noqa: PLC0415
    from train.publish import processes  # noqa: PLC0415

    try:
        learn(run, options.url)
    except Interrupted:
        return 0
    except TrainError as error:  # the parent says it
        if processes.is_main():
            run.update_status(State.FAILED, str(error))
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
