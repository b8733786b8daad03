import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve.errors import BadCheckpoint, StateError, UnknownPolicy, VersionConflict
from serve.policies.store import COMPLETE, LATEST, MANIFEST, PolicyStore
from serve.wire import BadReference, PolicyKind

Make = Callable[..., Path]


def test_a_version_is_a_folder_with_its_manifest(store: PolicyStore, make_full: Make) -> None:
    source = make_full("a")
    info = store.publish("org/p", source, metrics={"won": 0.5}, git_sha="abc")
    folder = store.root / "org--p" / "000001"
    assert sorted(path.name for path in folder.iterdir()) == [
        *(COMPLETE, "config.json", MANIFEST, "model.safetensors", "tokenizer.json")
    ]
    manifest = json.loads((folder / MANIFEST).read_text())
    assert {key: manifest[key] for key in ("format", "name", "version", "kind", "base")} == {
        "format": "policy/1",
        "name": "org/p",
        "version": 1,
        "kind": "full",
        "base": 1,
    }
    assert manifest["created"].endswith("Z")
    assert (info.metrics, info.git_sha, info.parent, info.path) == (
        {"won": 0.5},
        "abc",
        None,
        folder,
    )
    assert info.source == str(source)
    assert info.size_bytes == sum(file.size_bytes for file in info.files)
    assert (store.policies(), store.latest("org/p")) == (("org/p",), 1)
    assert PolicyStore(store.root).info("org/p", 1) == info
    store.verify(info)


def test_versions_count_up_and_the_name_means_the_newest(
    store: PolicyStore, make_full: Make
) -> None:
    infos = [store.publish("p", make_full(str(seed), seed)) for seed in range(3)]
    assert [(info.version, info.parent, info.base) for info in infos] == [
        *((1, None, 1), (2, 1, 2), (3, 2, 3))
    ]
    assert (store.latest("p"), store.versions("p")) == (3, tuple(infos))


def test_publishing_the_same_again_changes_nothing(store: PolicyStore, make_full: Make) -> None:
    first, second = make_full("a", 1), make_full("b", 2)
    one = store.publish("p", first)
    two = store.publish("p", second)
    assert store.publish("p", second, metrics={"other": 1}) == two
    assert store.publish("p", second, version=2) == two
    assert store.publish("p", first, version=1) == one
    assert (store.latest("p"), len(store.versions("p"))) == (2, 2)


def test_an_older_checkpoint_without_a_number_is_a_new_version(
    store: PolicyStore, make_full: Make
) -> None:
    first = make_full("a", 1)
    store.publish("p", first)
    store.publish("p", make_full("b", 2))
    assert store.publish("p", first).version == 3


def test_numbers_may_be_chosen_upwards_only(store: PolicyStore, make_full: Make) -> None:
    store.publish("p", make_full("a", 1), version=100)
    assert store.publish("p", make_full("b", 2), version=200).version == 200
    with pytest.raises(VersionConflict, match="version 200 of 'p' exists with other bytes"):
        store.publish("p", make_full("c", 3), version=200)
    with pytest.raises(VersionConflict, match="version 150 of 'p' lies behind the newest, 200"):
        store.publish("p", make_full("d", 3), version=150)
    assert [info.version for info in store.versions("p")] == [100, 200]


def test_rollback_moves_the_pointer_only(store: PolicyStore, make_full: Make) -> None:
    folders = [make_full(str(seed), seed) for seed in range(3)]
    for folder in folders[:2]:
        store.publish("p", folder)
    assert store.rollback("p", 1).version == 1
    assert (store.latest("p"), len(store.versions("p"))) == (1, 2)
    # A publisher that tries again does not undo what was decided since.
    assert store.publish("p", folders[1]).version == 2
    assert store.latest("p") == 1
    third = store.publish("p", folders[2])
    assert (third.version, third.parent, store.latest("p")) == (3, 1, 3)
    assert store.rollback("p", 2).version == store.latest("p")


def test_a_lora_sits_on_a_full_version(
    store: PolicyStore, make_full: Make, make_lora: Make
) -> None:
    with pytest.raises(BadCheckpoint, match="no full version for a LoRA"):
        store.publish("p", make_lora("early"))
    store.publish("p", make_full("a", 1))
    loras = [store.publish("p", make_lora(str(seed), seed)) for seed in (1, 2)]
    assert [(info.version, info.kind, info.parent, info.base) for info in loras] == [
        (2, PolicyKind.LORA, 1, 1),
        (3, PolicyKind.LORA, 2, 1),
    ]
    store.publish("p", make_full("b", 2))
    # The same bytes over another base are another policy.
    adapter = loras[1].path
    assert adapter is not None
    assert store.publish("p", adapter).base == 4
    assert store.publish("p", adapter, parent=2).base == 1
    with pytest.raises(BadCheckpoint, match="no version 9 to be the parent"):
        store.publish("p", make_lora("c", 3), parent=9)


@pytest.mark.parametrize("link", [False, True])
def test_a_version_does_not_change_when_its_source_is_replaced(
    store: PolicyStore, make_full: Make, link: bool
) -> None:
    source = make_full("a", 1)
    info = store.publish("p", source, link=link)
    assert info.path is not None
    weights = info.path / "model.safetensors"
    before = weights.read_bytes()
    assert (weights.stat().st_nlink == 2) is link
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").write_bytes(b"new")
    assert weights.read_bytes() == before
    store.verify(info)


def test_a_file_that_somebody_wrote_to_is_found_out(store: PolicyStore, make_full: Make) -> None:
    source = make_full("a", 1)
    info = store.register("p", source)
    weights = source / "model.safetensors"
    weights.touch()
    store.verify(info)
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BadCheckpoint, match="has been changed since it was published"):
        store.verify(info)
    weights.unlink()
    with pytest.raises(BadCheckpoint, match="cannot read"):
        store.verify(info)


def test_a_served_checkpoint_is_version_1_where_it_lies(
    store: PolicyStore, make_full: Make, make_lora: Make
) -> None:
    source = make_full("a", 1)
    info = store.register("p", source)
    assert (info.version, info.path, store.latest("p")) == (1, source, 1)
    assert sorted(path.name for path in (store.root / "p" / "000001").iterdir()) == [
        *(COMPLETE, MANIFEST)
    ]
    second = store.publish("p", make_full("b", 2))
    assert store.register("p", source) == info
    (source / "model.safetensors").touch()
    assert store.register("p", source) == info
    assert second.path is not None
    assert store.register("p", second.path) == second
    assert store.latest("p") == 2
    with pytest.raises(VersionConflict, match=r"'p' has 2 versions and .* is none of them"):
        store.register("p", make_full("c", 3))
    with pytest.raises(BadCheckpoint, match="of kind lora, not full"):
        store.register("q", make_lora("l"))


def test_an_upstreams_weights_are_a_version_without_a_path(
    store: PolicyStore, make_full: Make
) -> None:
    info = store.register("gpt", None)
    assert (info.version, info.path, info.files, info.digest) == (1, None, (), "")
    assert store.register("gpt", None) == info
    store.verify(info)
    assert store.publish("gpt", make_full("a")).version == 2


def test_what_is_incomplete_is_not_seen_and_makes_way(store: PolicyStore, make_full: Make) -> None:
    left = store.root / "p" / "000001"
    left.mkdir(parents=True)
    (left / MANIFEST).write_text("{")
    (left / "model.safetensors").write_bytes(b"half")
    assert (store.policies(), store.latest("p")) == ((), None)
    with pytest.raises(UnknownPolicy, match="no policy 'p'"):
        store.versions("p")
    with pytest.raises(UnknownPolicy, match="no version 1 of 'p'; there are: none"):
        store.info("p", 1)
    assert store.publish("p", make_full("a")).version == 1
    assert (left / "model.safetensors").stat().st_size > 4


def test_a_publisher_that_died_before_the_pointer_is_helped_on(
    store: PolicyStore, make_full: Make
) -> None:
    store.publish("p", make_full("a", 1))
    pointer = (store.root / "p" / LATEST).read_bytes()
    again = make_full("b", 2)
    store.publish("p", again)
    (store.root / "p" / LATEST).write_bytes(pointer)
    assert store.latest("p") == 1
    assert store.publish("p", again).version == store.latest("p") == 2


@pytest.mark.parametrize("publishers", [2, 8])
def test_publishers_at_once_get_a_number_each(
    store: PolicyStore, make_full: Make, publishers: int
) -> None:
    folders = [make_full(str(seed), seed) for seed in range(publishers)]
    with ThreadPoolExecutor(publishers) as threads:
        infos = list(threads.map(lambda folder: store.publish("p", folder), folders))
    assert sorted(info.version for info in infos) == list(range(1, publishers + 1))
    assert store.latest("p") == publishers
    for info, folder in zip(infos, folders, strict=True):
        assert info.path is not None
        copied = (info.path / "model.safetensors").read_bytes()
        assert copied == (folder / "model.safetensors").read_bytes()


def test_one_of_two_gets_the_number_that_both_want(store: PolicyStore, make_full: Make) -> None:
    def publish(folder: Path) -> object:
        try:
            return store.publish("p", folder, version=7).source
        except VersionConflict:
            return None

    folders = [make_full(str(seed), seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        sources = [source for source in threads.map(publish, folders) if source]
    assert sources == [store.info("p", 7).source]


def test_metrics_must_be_numbers(store: PolicyStore, make_full: Make) -> None:
    with pytest.raises(BadCheckpoint, match="finite numbers as metrics"):
        store.publish("p", make_full("a"), metrics={"loss": float("nan")})
    assert store.policies() == ()
    assert [path.name for path in (store.root / "p").iterdir()] == []


def test_names(store: PolicyStore, make_full: Make) -> None:
    made = make_full("x", 1)
    store.publish("a/b", made)
    with pytest.raises(StateError, match="'a--b' and 'a/b' cannot both be kept"):
        store.publish("a--b", make_full("y", 2))
    for odd in ("/../up", "llama3:8b", "/data/checkpoint"):
        published = store.publish(odd, made)
        assert published.path is not None
        assert store.root in published.path.parents
    for bad in ("../up", "", "p@3", "p q"):
        with pytest.raises(BadReference):
            store.latest(bad)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (LATEST, "{}"),
        (LATEST, '{"format": "latest/2", "version": 1, "newest": 1}'),
        ("000001/manifest.json", "{}"),
        ("000001/manifest.json", '{"format": "policy/1", "path": null, "name": "p", "more": 1}'),
    ],
)
def test_a_damaged_store_says_where(
    store: PolicyStore, make_full: Make, file: str, text: str
) -> None:
    store.publish("p", make_full("a"))
    (store.root / "p" / file).write_text(text)
    with pytest.raises(StateError, match=f"cannot read .*{file}"):
        PolicyStore(store.root).policies()
