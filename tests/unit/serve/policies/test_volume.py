"""The store where machines share it by a volume: what one commits, another sees when it looks."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.errors import PolicyError, VersionConflict
from serve.policies.store import COMPLETE, LATEST, PolicyStore
from serve.policies.volume import Shared, SharedVolume, VolumeFailed
from serve.wire import SwapMode
from tests.unit.serve.policies.conftest import MakeFull


class TwoViews(SharedVolume):
    """One machine's mount of a volume whose committed state is a folder elsewhere."""

    def __init__(self, root: Path, committed: Path) -> None:
        self.root = root
        self.committed = committed
        self.reloads = self.commits = 0
        self.fail_reload = self.fail_commit = 0
        """So many of the next calls fail."""
        self.commit_at: Callable[[int], bool] = lambda _: True
        """Whether the commit of that number works at all."""
        root.mkdir()
        committed.mkdir(exist_ok=True)

    def reload(self) -> None:
        self.reloads += 1
        if self.fail_reload:
            self.fail_reload -= 1
            raise VolumeFailed("there are open files")
        shutil.copytree(self.committed, self.root, dirs_exist_ok=True)

    def commit(self) -> None:
        self.commits += 1
        if self.fail_commit:
            self.fail_commit -= 1
            raise VolumeFailed("away for a moment")
        if not self.commit_at(self.commits):
            raise VolumeFailed("the quota is used up")
        shutil.copytree(self.root, self.committed, dirs_exist_ok=True)


@pytest.fixture
def writer(tmp_path: Path) -> TwoViews:
    return TwoViews(tmp_path / "writer", tmp_path / "committed")


@pytest.fixture
def reader(tmp_path: Path) -> TwoViews:
    return TwoViews(tmp_path / "reader", tmp_path / "committed")


@pytest.fixture
def ours(writer: TwoViews) -> PolicyStore:
    return PolicyStore(writer.root / "policies", volume=writer)


@pytest.fixture
def theirs(reader: TwoViews) -> PolicyStore:
    return PolicyStore(reader.root / "policies", volume=reader, read_only=True)


def test_what_is_published_is_seen_after_a_look(
    ours: PolicyStore, theirs: PolicyStore, make_full: MakeFull
) -> None:
    ours.publish("p", make_full("one"))
    assert theirs.latest("p") is None
    theirs.refresh()
    assert theirs.latest("p") == 1
    ours.publish("p", make_full("two", 2), swap=SwapMode.KEEP)
    theirs.refresh()
    assert (theirs.latest("p"), theirs.swap("p")) == (2, SwapMode.KEEP)
    theirs.verify(theirs.info("p", 2))
    ours.rollback("p", 1)
    theirs.refresh()
    assert (theirs.latest("p"), theirs.swap("p")) == (1, SwapMode.WAIT)


def test_the_weights_are_committed_before_the_name_means_them(
    ours: PolicyStore, writer: TwoViews, make_full: MakeFull
) -> None:
    ours.publish("p", make_full("one"))
    seen: list[tuple[bool, str]] = []

    def look(_: int) -> bool:
        folder = ours.root / "p"
        seen.append(((folder / "000002" / COMPLETE).is_file(), (folder / LATEST).read_text()))
        return True

    writer.commit_at = look
    ours.publish("p", make_full("two", 2))
    assert [('"version": 2' in pointer, whole) for whole, pointer in seen] == [
        (False, True),
        (True, True),
    ]


@pytest.mark.parametrize(
    ("failing", "said"), [(3, "means what it did"), (4, "still means version 1")]
)
def test_a_commit_that_fails_moves_no_name(
    ours: PolicyStore,
    theirs: PolicyStore,
    writer: TwoViews,
    make_full: MakeFull,
    failing: int,
    said: str,
) -> None:
    """Of the second version the third commit of all is for its weights, the fourth for the name."""
    ours.publish("p", make_full("one"))
    second = make_full("two", 2)
    writer.commit_at = lambda number: number < failing
    with pytest.raises(VolumeFailed, match=said) as caught:
        ours.publish("p", second)
    assert "the quota is used up" in str(caught.value)
    theirs.refresh()
    assert (ours.latest("p"), theirs.latest("p")) == (1, 1)
    writer.commit_at = lambda _: True
    assert ours.publish("p", second).version == 2
    theirs.refresh()
    assert (ours.latest("p"), theirs.latest("p")) == (2, 2)
    assert len(theirs.versions("p")) == 2


def test_failures_that_pass_are_tried_again(
    ours: PolicyStore, writer: TwoViews, make_full: MakeFull
) -> None:
    writer.fail_reload = writer.fail_commit = 1
    assert ours.publish("p", make_full("one")).version == 1
    assert (writer.reloads, writer.commits) == (2, 3)


def test_without_a_look_at_the_others_nothing_is_published(
    ours: PolicyStore, writer: TwoViews, make_full: MakeFull
) -> None:
    writer.fail_reload = 3
    with pytest.raises(VolumeFailed, match="cannot see what others wrote: there are open files"):
        ours.publish("p", make_full("one"))
    assert ours.policies() == ()


def test_a_look_that_fails_is_logged_and_the_next_one_works(
    ours: PolicyStore,
    theirs: PolicyStore,
    reader: TwoViews,
    make_full: MakeFull,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours.publish("p", make_full("one"))
    reader.fail_reload = 1
    theirs.refresh()
    assert theirs.latest("p") is None
    assert "could not be reloaded now: there are open files" in caplog.text
    theirs.refresh()
    assert theirs.latest("p") == 1


def test_waits_between_tries_grow() -> None:
    class Away(SharedVolume):
        def reload(self) -> None:
            raise VolumeFailed("away")

        def commit(self) -> None:
            raise VolumeFailed("away")

    waits: list[float] = []
    with pytest.raises(VolumeFailed, match="cannot commit p@1: away"):
        Shared(Away(), sleep=waits.append).commit("p@1")
    assert waits == [0.25, 0.5]


def test_what_lies_on_the_volume_is_linked(
    ours: PolicyStore, writer: TwoViews, make_full: MakeFull
) -> None:
    here = writer.root / "run" / "checkpoint"
    shutil.copytree(make_full("one"), here)
    info = ours.publish("p", here)
    assert info.path is not None
    assert (info.path / "model.safetensors").stat().st_ino == (
        here / "model.safetensors"
    ).stat().st_ino
    elsewhere = make_full("two", 2)
    info = ours.publish("p", elsewhere)
    assert info.path is not None
    assert (info.path / "model.safetensors").stat().st_nlink == 1


def test_what_was_pruned_elsewhere_is_known(
    ours: PolicyStore, theirs: PolicyStore, make_full: MakeFull
) -> None:
    ours.publish("p", make_full("one"))
    ours.publish("p", make_full("two", 2))
    theirs.refresh()
    assert not theirs.info("p", 1).is_pruned
    ours.prune("p", [1])
    theirs.refresh()
    assert theirs.info("p", 1).is_pruned


def test_who_only_follows_writes_nothing(
    ours: PolicyStore, theirs: PolicyStore, make_full: MakeFull
) -> None:
    boot = make_full("boot")
    ours.register("p", boot)
    ours.publish("p", make_full("two", 2))
    theirs.refresh()
    before = sorted(theirs.root.rglob("*"))
    same = shutil.copytree(boot, boot.parent / "the same elsewhere")
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert theirs.register("p", boot).version == 1
    assert theirs.register("p", same).version == 1
    assert theirs.register("p", None).version == 1
    with pytest.raises(
        VersionConflict, match=r"is no version of 'p' in .*python -m serve prefetch"
    ):
        theirs.register("p", make_full("other", 9))
    with pytest.raises(VersionConflict, match="is no version of 'q'"):
        theirs.register("q", boot)
    for change in (
        lambda: theirs.publish("p", same),
        lambda: theirs.rollback("p", 1),
        lambda: theirs.prune("p", [1]),
    ):
        with pytest.raises(PolicyError, match="are only followed here"):
            change()
    assert sorted(theirs.root.rglob("*")) == before
    for path in before:
        path.chmod(0o755 if path.is_dir() else 0o644)
