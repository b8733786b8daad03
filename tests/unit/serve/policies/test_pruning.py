"""Weights that nobody needs are deleted; what the version was stays on record."""

from collections.abc import Callable
from pathlib import Path

import pytest

from serve.errors import BadCheckpoint, UnknownPolicy, VersionConflict
from serve.policies import disk
from serve.policies.store import COMPLETE, MANIFEST, PolicyStore
from serve.wire import Probes

Make = Callable[..., Path]


@pytest.fixture
def five(store: PolicyStore, make_full: Make) -> PolicyStore:
    """Five full versions, of which the name means the last."""
    probes = Probes(tokens=((1, 2),), logprobs=((-0.1,),), tolerance=1e-3)
    for seed in range(5):
        store.publish("p", make_full(str(seed), seed), metrics={"n": seed}, probes=probes)
    return store


def files(store: PolicyStore, version: int) -> list[str]:
    return sorted(path.name for path in (store.root / "p" / f"{version:06d}").iterdir())


def test_the_weights_go_and_the_manifest_stays(five: PolicyStore) -> None:
    sizes = [five.info("p", version).size_bytes for version in (2, 3)]
    pruned = five.prune("p", (3, 2))
    assert (pruned.versions, pruned.kept) == ((2, 3), {})
    assert pruned.freed_bytes > sum(sizes)
    for store in (five, PolicyStore(five.root)):
        assert [info.version for info in store.versions("p")] == [1, 2, 3, 4, 5]
        info = store.info("p", 3)
        assert (info.path, info.is_pruned, info.metrics) == (None, True, {"n": 2})
        assert info.size_bytes == sizes[1]
        with pytest.raises(UnknownPolicy, match="the weights of p@3 were pruned"):
            store.rollback("p", 3)
        with pytest.raises(BadCheckpoint):
            store.probes(info)
    assert files(five, 3) == [COMPLETE, MANIFEST]
    assert len(files(five, 4)) > 2


def test_what_is_in_use_stays_and_it_says_why(five: PolicyStore, make_lora: Make) -> None:
    five.publish("p", make_lora("a", 1), parent=2)
    five.publish("p", make_lora("b", 2), parent=4)
    five.rollback("p", 6)
    five.holders.append(lambda name: {3: "r0 serves it"} if name == "p" else {})
    pruned = five.prune("p", range(1, 10))
    assert pruned.versions == (1, 4, 5, 7)
    gone = "there is no such version"
    assert pruned.kept == {
        2: "version 6 is a LoRA over it",
        3: "r0 serves it",
        6: "'p' means it",
        8: gone,
        9: gone,
    }
    assert five.prune("p", (1,)).kept == {1: "it is pruned already"}


def test_a_base_goes_only_with_what_is_over_it(five: PolicyStore, make_lora: Make) -> None:
    five.publish("p", make_lora("a", 1), parent=2)
    five.rollback("p", 5)
    assert five.prune("p", (2,)).kept == {2: "version 6 is a LoRA over it"}
    assert five.prune("p", (2, 6)).versions == (2, 6)


def test_what_lies_elsewhere_is_not_the_stores_to_delete(
    store: PolicyStore, make_full: Make
) -> None:
    folder = make_full("boot")
    store.register("p", folder)
    store.publish("p", make_full("a", 1))
    store.register("q", None)
    store.publish("q", make_full("b", 1))
    assert store.prune("p", (1,)).kept == {
        1: f"its files are not the store's: they lie at {folder}"
    }
    assert (folder / "model.safetensors").is_file()
    assert store.prune("q", (1,)).kept == {1: "its weights are not here"}


def test_pruned_weights_are_published_anew(five: PolicyStore, tmp_path: Path) -> None:
    five.rollback("p", 4)
    five.prune("p", (5,))
    assert five.publish("p", tmp_path / "4").version == 6
    with pytest.raises(VersionConflict, match="version 5 of 'p' was pruned"):
        five.publish("p", tmp_path / "4", version=5)


def test_one_that_dies_in_the_middle_leaves_no_version_that_cannot_be_served(
    five: PolicyStore,
) -> None:
    order: list[str] = []
    real = disk.replace

    def dying(path: Path, text: str) -> None:
        real(path, text)
        order.extend(files(five, 2))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            five.prune("p", (2,))
    assert "model.safetensors" in order
    assert PolicyStore(five.root).info("p", 2).is_pruned


def test_an_unknown_name_is_none(store: PolicyStore) -> None:
    with pytest.raises(UnknownPolicy):
        store.prune("p", (1,))
    with pytest.raises(UnknownPolicy):
        store.rollback("p", 1)
