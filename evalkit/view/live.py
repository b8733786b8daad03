"""What a run has played so far, from files that grow: each line is read once, however often asked.

Counting reads of an episode only how it ended; statistics read it whole, and are asked for more
seldom. A file that was replaced (put into order, merged) or cut is read anew from its beginning.
"""

from __future__ import annotations

import copy
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from evalkit.errors import DamagedRun
from evalkit.record.numbers import ArmNumbers
from evalkit.record.trajectory import FORMAT, UNSCORED, Key, Trajectory, parsed

T = TypeVar("T")
Place = tuple[Path, int]
"""A file, and where in it an episode begins, in bytes."""


class _HeadKey(msgspec.Struct):
    env_seed: int
    repetition: int
    arm: str


class _Head(msgspec.Struct):
    """How an episode ended; its turns are skipped."""

    format: str
    key: _HeadKey
    success: bool
    stop_reason: str


_decode = msgspec.json.Decoder(_Head).decode


@dataclass(slots=True)
class Count:
    """What an arm has done so far."""

    n: int = 0
    """Episodes that count."""
    successes: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How an episode ended, and where it lies."""

    place: Place
    success: bool
    scored: bool


@dataclass(slots=True)
class _Growth:
    """How far a file was read."""

    inode: int = 0
    offset: int = 0


@dataclass(slots=True)
class Played:
    """The episodes of one run, followed while it is played; safe to ask from several threads."""

    path: Path
    arms: tuple[str, ...]
    ended: dict[Key, Ended] = field(default_factory=dict)
    """Every episode that is finished; do not change it."""
    version: int = 0
    """Grows whenever an episode was added."""
    counts: dict[str, Count] = field(default_factory=dict)
    _files: dict[Path, _Growth] = field(default_factory=dict)
    _unread: dict[Key, Place] = field(default_factory=dict)
    _numbers: dict[str, ArmNumbers] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._forget()

    def look(self) -> int:
        """Take in what is new; return the version that this makes.

        Raises:
            DamagedRun: a line is not a trajectory of one of the run's arms.

        """
        with self._lock:
            files = self._present()
            if any(_is_another(file, self._files[file]) for file in self._files):
                self._forget()
            for file in files:
                for offset, line in _new_lines(file, self._files.setdefault(file, _Growth())):
                    self._take_in(file, offset, line)
            return self.version

    def numbers(self) -> dict[str, ArmNumbers]:
        """Return what statistics need of the episodes that `look` took in, by arm.

        For one caller at a time: what is returned goes on growing with the next call.

        Raises:
            DamagedRun: an episode cannot be read.

        """
        with self._lock:
            grown, unread, places = self._numbers, self._unread, dict(self._unread)
            lost = [ended.place for ended in self.ended.values() if not ended.scored]
        for key, played in zip(places, _read(places.values(), parsed), strict=True):
            grown[played["key"]["arm"]].add(played)
            del unread[key]  # what cannot be read stays: it is damage each time
        numbers = {arm: _with_own_counters(each) for arm, each in grown.items()}
        for played in _read(lost, parsed):  # may be played again, so it is never counted for good
            numbers[played["key"]["arm"]].add(played)
        return numbers

    def episodes(self, seed: int, repetition: int) -> dict[str, Trajectory]:
        """Return what the arms played on a seed, as far as it is finished."""
        keys = [Key(env_seed=seed, repetition=repetition, arm=arm) for arm in self.arms]
        with self._lock:
            places = [self.ended[key].place for key in keys if key in self.ended]
        return {played.key.arm: played for played in _read(places, Trajectory.from_json)}

    def _present(self) -> list[Path]:
        """Return the files that episodes are in: the run's own, and those of its shards."""
        shards = sorted(self.path.glob("shards/*/trajectories.jsonl"))
        return list(filter(self._is_own, [self.path / "trajectories.jsonl", *shards]))

    def _is_own(self, file: Path) -> bool:
        """Whether a file is there and lies, links followed, in the run's directory."""
        return file.is_file() and file.resolve().is_relative_to(self.path.resolve())

    def _take_in(self, file: Path, offset: int, line: bytes) -> None:
        try:
            head = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DamagedRun(f"{file}, byte {offset}: {error}") from error
        if head.format != FORMAT or head.key.arm not in self._numbers:
            raise DamagedRun(f"{file}, byte {offset}: not a {FORMAT} line of this run's arms")
        key = Key(env_seed=head.key.env_seed, repetition=head.key.repetition, arm=head.key.arm)
        scored = head.stop_reason not in UNSCORED
        before = self.ended.get(key)
        if before is not None and before.scored:
            return
        count = self.counts[key.arm]
        count.errors += (not scored) - (before is not None)
        count.n += scored
        count.successes += scored and head.success
        self.ended[key] = Ended((file, offset), head.success, scored)
        if scored:
            self._unread[key] = (file, offset)
        self.version += 1

    def _forget(self) -> None:
        self.ended, self._files, self._unread = {}, {}, {}
        self.counts = {arm: Count() for arm in self.arms}
        self._numbers = {arm: ArmNumbers() for arm in self.arms}
        self.version += 1


def _read(places: Iterable[Place], made: Callable[[bytes], T]) -> Iterator[T]:
    """Read episodes, in the order given, each `made` of its line.

    Raises:
        DamagedRun: one is not there any more, or no trajectory.

    """
    with ExitStack() as stack:
        files: dict[Path, IO[bytes]] = {}
        for path, offset in places:
            if path not in files:
                try:
                    files[path] = stack.enter_context(path.open("rb"))
                except OSError as error:
                    raise DamagedRun(f"{path}: {error}") from error
            files[path].seek(offset)
            try:
                yield made(files[path].readline().rstrip(b"\n"))
            except DamagedRun as error:
                raise DamagedRun(f"{path}, byte {offset}: {error}") from error


def _with_own_counters(numbers: ArmNumbers) -> ArmNumbers:
    """Copy what an episode that is not scored changes."""
    copied = copy.copy(numbers)
    for each in fields(numbers):
        value = getattr(numbers, each.name)
        if isinstance(value, Counter):
            setattr(copied, each.name, value.copy())
    return copied


def _is_another(path: Path, growth: _Growth) -> bool:
    """Whether the file that was read is gone, replaced or shorter than what was read of it."""
    try:
        found = path.stat()
    except OSError:
        return growth.inode != 0
    return growth.inode not in {0, found.st_ino} or found.st_size < growth.offset


def _new_lines(path: Path, growth: _Growth) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line) of the whole lines that were not read before."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        growth.inode = os.fstat(file.fileno()).st_ino
        file.seek(growth.offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield growth.offset, line[:-1]
            growth.offset += len(line)  # a line that could not be taken in is read again
