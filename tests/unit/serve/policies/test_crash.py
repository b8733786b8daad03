"""Whenever a publisher is killed, readers see whole versions, and the next one goes on."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.policies import disk
from serve.policies.store import PolicyStore

PUBLISHER = Path(__file__).with_name("publisher.py")
DYING = Path(__file__).with_name("dying_publisher.py")
LARGE = {"model.embed_tokens.weight": (256, 1024)}


def ensure_whole(root: Path) -> int:
    """Look at everything as a new reader would; return how many versions there are."""
    store = PolicyStore(root)
    latest = store.latest("p")
    if latest is None:
        return 0
    infos = store.versions("p")
    assert latest in {info.version for info in infos}
    for info in infos:
        assert info.path is not None
        for file in info.files:
            assert disk.digest_of(info.path / file.name) == file.sha256
    return len(infos)


@pytest.mark.parametrize("publishers", [1, 2])
def test_killed_at_random_moments(
    store: PolicyStore, make_full: Callable[..., Path], publishers: int
) -> None:
    rng = random.Random(publishers)
    folders = [str(make_full(str(seed), seed, LARGE)) for seed in range(3)]
    argv = [sys.executable, str(PUBLISHER), str(store.root), *folders]
    for number in range(40):
        # On a busy machine the first ones may be killed before they could do anything.
        if number >= 4 and ensure_whole(store.root) > 1:
            break
        running = [
            subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(publishers)
        ]
        try:
            for process in running:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.0, 0.08))
            ensure_whole(store.root)
        finally:
            for process in running:
                process.kill()
                process.communicate()
        ensure_whole(store.root)
    versions = ensure_whole(store.root)
    assert versions > 1
    assert store.publish("p", another(folders, store)).version == versions + 1
    assert list((store.root / "p").glob(".new-*")) == []


def test_killed_at_every_call(store: PolicyStore, make_full: Callable[..., Path]) -> None:
    folders = [str(make_full(str(seed), seed)) for seed in range(2)]
    argv = [sys.executable, str(DYING), str(store.root), *folders]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 30
    versions = ensure_whole(store.root)
    # Most die before there is anything to see, and what they leave is cleared away.
    assert 1 < versions < int(ran.stdout)
    assert len(list((store.root / "p").glob(".new-*"))) <= 1


def another(folders: list[str], store: PolicyStore) -> Path:
    """Return one of the checkpoints that is not the newest version."""
    newest = store.versions("p")[-1].source
    return next(Path(folder) for folder in folders if folder != newest)
