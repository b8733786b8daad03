"""A publisher to be killed: `publisher.py ROOT CHECKPOINT...` publishes them for ever."""

import sys
from itertools import cycle
from pathlib import Path

from serve.policies.store import PolicyStore


def run(root: str, *checkpoints: str) -> None:
    store = PolicyStore(Path(root))
    print("ready", flush=True)
    for checkpoint in cycle(checkpoints):
        store.publish("p", Path(checkpoint))


if __name__ == "__main__":
    run(*sys.argv[1:])
