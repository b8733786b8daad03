"""The store of policies on disk: publish, roll back, look, prune. It knows only the file system.

    ROOT/NAME/NNNNNN/{manifest.json, probes.json, weights..., COMPLETE}    a folder a version
    ROOT/NAME/latest                                             the version that NAME means

A version's folder appears in one rename, whole and on the disk, and only then does `latest` move;
it never changes, unless its weights are pruned. So a reader sees a version or does not, whenever a
publisher dies; several may publish at once, but of machines that share a volume only one.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from serve.errors import BadCheckpoint, PolicyError, StateError, UnknownPolicy, VersionConflict
from serve.policies import disk, manifest, pointer, pruning
from serve.policies import probes as probe_files
from serve.policies.checkpoint import Checkpoint, ensure_fits, read_checkpoint, shapes_in
from serve.policies.draft import digested, draft_of, file_at, is_untouched
from serve.policies.manifest import PolicyInfo
from serve.policies.pointer import LATEST, Pointer
from serve.policies.pruning import Pruned
from serve.policies.volume import Shared, SharedVolume
from serve.wire import BadReference, PolicyKind, PolicyRef, Probes, SwapMode

__all__ = ["COMPLETE", "LATEST", "MANIFEST", "PolicyStore"]

MANIFEST = "manifest.json"
COMPLETE = "COMPLETE"

_NUMBER = re.compile(r"[0-9]{6,9}")
_MOST_REMEMBERED = 4096


class PolicyStore:
    """The policies under one folder. Safe to use from several threads and processes.

    On a `volume` it is brought up to date before it is changed, and committed afterwards. With
    `read_only` it writes nothing, not even a lock: somebody else publishes, this only follows.
    """

    def __init__(
        self, root: Path, *, volume: SharedVolume | None = None, read_only: bool = False
    ) -> None:
        self.root = root
        self.read_only = read_only
        self.holders: list[Callable[[str], Mapping[int, str]]] = []
        """Each tells the versions of a name that must not be pruned, and why; from any thread."""
        self._read: dict[Path, PolicyInfo] = {}
        self._whole: dict[Path, frozenset[int]] = {}
        self._shared = Shared(volume)

    def refresh(self) -> None:
        """See what others published on the volume, if there is one; a failure is only logged."""
        self._shared.look()
        if self.read_only:
            self._read.clear()  # somebody else may have pruned

    def policies(self) -> tuple[str, ...]:
        """Return the names of all policies that have a version."""
        if not self.root.is_dir():
            return ()
        newest = ((folder, self._numbers(folder)) for folder in sorted(self.root.iterdir()))
        return tuple(
            self._load(folder, numbers[-1]).name
            for folder, numbers in newest
            if numbers and pointer.read(folder) is not None
        )

    def versions(self, name: str) -> tuple[PolicyInfo, ...]:
        """Return all versions of a policy, oldest first; raise UnknownPolicy."""
        folder = self._folder(name)
        numbers = self._numbers(folder)
        if not numbers:
            raise UnknownPolicy(f"no policy {name!r} in {self.root}")
        return tuple(self._load(folder, number) for number in numbers)

    def latest(self, name: str) -> int | None:
        """Return the version that the bare name means; None if there is no such policy."""
        found = pointer.read(self._folder(name))
        return found.version if found else None

    def swap(self, name: str) -> SwapMode:
        """Return how the version that the bare name means was to be taken up."""
        found = pointer.read(self._folder(name))
        return found.swap if found else SwapMode.WAIT

    def info(self, name: str, version: int) -> PolicyInfo:
        """Return one version; raise UnknownPolicy."""
        folder = self._folder(name)
        if version not in (numbers := self._numbers(folder)):
            known = ", ".join(map(str, numbers)) or "none"
            raise UnknownPolicy(f"no version {version} of {name!r}; there are: {known}")
        return self._load(folder, version)

    def publish(
        self,
        name: str,
        checkpoint: Path,
        *,
        version: int | None = None,
        kind: PolicyKind | None = None,
        parent: int | None = None,
        metrics: Mapping[str, float] | None = None,
        git_sha: str | None = None,
        link: bool = False,
        probes: Probes | None = None,
        swap: SwapMode = SwapMode.WAIT,
    ) -> PolicyInfo:
        """Make a checkpoint the newest version of a policy, and the one that its name means.

        Publishing the same bytes again returns the version that they are, unless they come with
        other probes. A replica serves a version with probes only after it has passed them. With
        `link` files are linked where possible, not copied: only those that nobody will write to,
        as on the store's own volume. `swap` is how gateways that only follow take it up.
        Raises BadCheckpoint, VersionConflict where `version` is not the next, and VolumeFailed.
        """
        folder = self._folder(name)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._turn())
            found = read_checkpoint(checkpoint.resolve(), kind)
            link = link or self._shared.holds(found.folder)
            staged = stack.enter_context(self._staged(folder))
            files = tuple(
                file_at(staged / file, disk.bring(found.folder / file, staged / file, link=link))
                for file in found.files
            )
            draft = replace(
                draft_of(name, found, files),
                metrics=dict(metrics or {}),
                git_sha=git_sha,
                probes=probe_files.digest_of(probes),
            )
            if probes is not None:
                disk.write(staged / probe_files.PROBES, probe_files.dumps(probes))
            with disk.locked(folder):
                numbers = self._numbers_of(folder, name)
                draft = self._under(draft, found, numbers, parent)
                taken = self._taken(folder, numbers, draft, version)
                if taken is not None:
                    return self._point_to_retried(folder, taken, numbers, swap)
                number = version or (numbers[-1] if numbers else 0) + 1
                info = replace(draft, version=number, base=draft.base or number)
                self._place(folder, staged, info, ".", swap)
                return self.info(name, number)

    def register(self, name: str, checkpoint: Path | None) -> PolicyInfo:
        """Make a checkpoint that is served directly version 1 of its name, where it lies.

        If it is one of the policy's versions already, that one is returned. None stands for the
        weights of an upstream, which are not here. Raises BadCheckpoint and VersionConflict.
        """
        folder = self._folder(name)
        numbers = self._numbers_of(folder, name)
        if checkpoint is None and numbers:
            return self._load(folder, numbers[0])
        found = read_checkpoint(checkpoint.resolve(), PolicyKind.FULL) if checkpoint else None
        for known in (self._load(folder, number) for number in reversed(numbers)):
            if found and is_untouched(known, found.folder):
                return known
        draft = digested(name, found)
        if self.read_only:
            return self._same(folder, name, draft) or self._missing(name, checkpoint)
        with self._turn(), self._staged(folder) as staged, disk.locked(folder):
            if same := self._same(folder, name, draft):
                return same
            if numbers := self._numbers(folder):
                raise VersionConflict(
                    f"{name!r} has {len(numbers)} versions and {checkpoint} is none of them: "
                    "give it another name, or publish it"
                )
            path = str(found.folder) if found else None
            self._place(folder, staged, replace(draft, version=1, base=1), path)
            return self.info(name, 1)

    def rollback(self, name: str, version: int, *, swap: SwapMode = SwapMode.WAIT) -> PolicyInfo:
        """Let the name mean an older version again, or a newer one; raise UnknownPolicy."""
        folder = self._folder(name)
        if not folder.is_dir():
            raise UnknownPolicy(f"no policy {name!r} in {self.root}")
        with self._turn(), disk.locked(folder):
            info = self.info(name, version)
            if info.is_pruned:
                raise UnknownPolicy(f"the weights of {info.label} were pruned")
            to = Pointer(version=version, newest=self._numbers(folder)[-1], swap=swap)
            pointer.move(folder, to, self._shared)
        return info

    def prune(self, name: str, versions: Collection[int]) -> Pruned:
        """Delete the weights of versions, except of those that are in use; raise UnknownPolicy.

        The one that the name means stays, and so do the base of a LoRA that stays and what the
        `holders` hold. Their manifests remain.
        """
        folder = self._folder(name)
        infos = {info.version: info for info in self.versions(name)}
        with self._turn(), disk.locked(folder):
            held = {
                version: why for holder in self.holders for version, why in holder(name).items()
            }
            if (latest := self.latest(name)) is not None:
                held[latest] = f"{name!r} means it"
                held.setdefault(infos[latest].base, f"version {latest} is a LoRA over it")
            kept = pruning.spared(infos, versions, held)
            gone = sorted(set(versions) - kept.keys())
            freed_bytes = 0
            for version in gone:
                info = replace(infos[version], path=None)
                self._read[folder / _digits(version) / MANIFEST] = info
                freed_bytes += pruning.strip(folder / _digits(version), info, (MANIFEST, COMPLETE))
            if gone:
                self._shared.commit(f"that {name} lost the weights of {gone}, which is done here")
        return Pruned(versions=tuple(gone), kept=kept, freed_bytes=freed_bytes)

    def probes(self, info: PolicyInfo) -> Probes | None:
        """Return what a version was published with, if anything; raise BadCheckpoint."""
        if not info.probes:
            return None
        folder = self._folder(info.name) / _digits(info.version)
        return probe_files.load(folder / probe_files.PROBES, info.probes)

    def verify(self, info: PolicyInfo) -> None:
        """Raise BadCheckpoint if a file is not what it was when it was published."""
        for file in info.files:
            assert info.path is not None
            path = info.path / file.name
            try:
                found = path.stat()
                is_same = found.st_size == file.size_bytes and (
                    found.st_mtime_ns == file.mtime_ns or disk.digest_of(path) == file.sha256
                )
            except OSError as error:
                raise BadCheckpoint(f"{info.label}: cannot read {path}: {error}") from error
            if not is_same:
                raise BadCheckpoint(f"{info.label}: {path} has been changed since it was published")

    @contextlib.contextmanager
    def _staged(self, folder: Path) -> Iterator[Path]:
        """Give an empty folder to build a version in."""
        folder.mkdir(parents=True, exist_ok=True)
        with disk.stage(folder) as staged:
            yield staged

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Be the one who writes; raise PolicyError where nothing is written from."""
        if self.read_only:
            raise PolicyError(
                f"the policies in {self.root} are only followed here: publish, roll back and prune "
                "at the gateway in front, which writes them"
            )
        with self._shared.turn():
            yield

    def _same(self, folder: Path, name: str, draft: PolicyInfo) -> PolicyInfo | None:
        """Return the newest version that has these bytes."""
        for number in reversed(self._numbers_of(folder, name)):
            if (known := self._load(folder, number)).is_same(draft):
                return known
        return None

    def _missing(self, name: str, checkpoint: Path | None) -> NoReturn:
        raise VersionConflict(
            f"{checkpoint} is no version of {name!r} in {self.root}, where nothing is written from "
            "here. Register it first: python -m serve prefetch"
        )

    def _folder(self, name: str) -> Path:
        if PolicyRef.parse(name).version is not None:
            raise BadReference(f"expected a policy's NAME without a version, got {name!r}")
        return self.root / name.replace("/", "--")

    def _numbers_of(self, folder: Path, name: str) -> list[int]:
        """Return the versions of `name`, whose folder this must be."""
        numbers = self._numbers(folder)
        if numbers and (other := self._load(folder, numbers[-1]).name) != name:
            raise StateError(f"{name!r} and {other!r} cannot both be kept in {folder}")
        return numbers

    def _numbers(self, folder: Path) -> list[int]:
        """Return the numbers of the whole versions in a policy's folder, ascending.

        What was whole once is: beside a busy event loop each look at the disk costs milliseconds.
        """
        if not folder.is_dir():
            return []
        known = self._whole.get(folder, frozenset())
        there = {int(name) for name in os.listdir(folder) if _NUMBER.fullmatch(name)}  # noqa: PTH208
        new = {
            number for number in there - known if (folder / _digits(number) / COMPLETE).is_file()
        }
        self._whole[folder] = frozenset(there & known | new)
        return sorted(self._whole[folder])

    def _load(self, folder: Path, version: int) -> PolicyInfo:
        file = folder / _digits(version) / MANIFEST
        info = self._read.get(file)
        if info is None:
            info = manifest.load(file)
            if len(self._read) >= _MOST_REMEMBERED:
                self._read.pop(next(iter(self._read)), None)
            self._read[file] = info
        return info

    def _under(
        self, draft: PolicyInfo, found: Checkpoint, numbers: list[int], parent: int | None
    ) -> PolicyInfo:
        """Put a draft under its parent, and an adapter over its base; raise BadCheckpoint."""
        if parent is None:
            parent = self.latest(draft.name)
        elif parent not in numbers:
            raise BadCheckpoint(f"{draft.name!r} has no version {parent} to be the parent")
        if parent is None:
            if found.kind is PolicyKind.LORA:
                raise BadCheckpoint(f"{draft.name!r} has no full version for a LoRA to sit on")
            return draft
        base = self.info(draft.name, self.info(draft.name, parent).base)
        if base.path is not None:
            ensure_fits(found, shapes_in(base.path), base.label)
        over = base.version if found.kind is PolicyKind.LORA else 0
        return replace(draft, parent=parent, base=over)

    def _taken(
        self, folder: Path, numbers: list[int], draft: PolicyInfo, version: int | None
    ) -> PolicyInfo | None:
        """Return the version that the draft is already; raise VersionConflict if it cannot be."""
        if not numbers:
            return None
        known = (
            self._load(folder, numbers[-1] if version is None else version)
            if (version is None or version in numbers)
            else None
        )
        if known is not None and known.can_be(draft):
            return known
        if version is None or version > numbers[-1]:
            return None
        why = f"lies behind the newest, {numbers[-1]}"
        if known is not None:
            why = "was pruned" if known.is_pruned else "exists with other bytes or probes"
        raise VersionConflict(f"version {version} of {draft.name!r} {why}")

    def _point_to_retried(
        self, folder: Path, info: PolicyInfo, numbers: list[int], swap: SwapMode
    ) -> PolicyInfo:
        """Move the pointer if the publisher died before it could; a rollback stays one."""
        found = pointer.read(folder)
        if info.version == numbers[-1] and (found is None or found.newest < info.version):
            self._shared.commit(info.label)
            to = Pointer(version=info.version, newest=info.version, swap=swap)
            pointer.move(folder, to, self._shared)
        return info

    def _place(
        self,
        folder: Path,
        staged: Path,
        info: PolicyInfo,
        path: str | None,
        swap: SwapMode = SwapMode.WAIT,
    ) -> None:
        """Turn the staged folder into a version, and let the name mean it. Under the lock."""
        target = folder / _digits(info.version)
        if target.exists():
            # Without the marker: whoever made it is dead, for the lock is ours.
            shutil.rmtree(target)
        disk.write(staged / MANIFEST, manifest.dumps(info, path) + "\n")
        disk.write(staged / COMPLETE, f"{info.digest}\n")
        disk.sync(staged)
        os.rename(staged, target)  # noqa: PTH104  # what happens is clearer by this name
        disk.sync(folder)
        self._shared.commit(f"{info.label}, so that {info.name!r} means what it did")
        to = Pointer(version=info.version, newest=info.version, swap=swap)
        pointer.move(folder, to, self._shared)


def _digits(version: int) -> str:
    return f"{version:06d}"
