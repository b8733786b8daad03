"""Publishes ever new children of itself to death: `dying_publisher.py ROOT CHECKPOINT...`.

Child n is killed by SIGKILL at the n-th thing that it does to the file system; the first one that
gets through ends it. Prints how many died.
"""

import os
import signal
import sys
from itertools import count
from pathlib import Path

from serve.policies.store import PolicyStore


def run(root: str, *checkpoints: str) -> None:
    PolicyStore(Path(root)).publish("p", Path(checkpoints[0]))
    for number in count(1):
        child = os.fork()
        if not child:
            die_at(number)
            PolicyStore(Path(root)).publish("p", Path(checkpoints[number % len(checkpoints)]))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not status:
            print(number - 1)
            return
        latest = PolicyStore(Path(root)).latest("p")
        assert latest is not None
        PolicyStore(Path(root)).verify(PolicyStore(Path(root)).versions("p")[-1])


def die_at(number: int) -> None:
    """Let this process be killed at its n-th audited call into the file system."""
    seen = 0

    def watch(event: str, _: object) -> None:
        nonlocal seen
        seen += event == "open" or event.startswith(("os.", "fcntl.", "shutil.", "tempfile."))
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


if __name__ == "__main__":
    run(*sys.argv[1:])
