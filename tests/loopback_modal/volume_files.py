"""Files of volumes as clients list, read, write, copy and remove them; commits and reloads.

The files of a volume are those of its folder. Version 2's calls only: a client makes version 1's
for volumes that were made with `version=1`.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.loopback_modal.block_store import BLOCK_BYTES, BlockStore
from tests.loopback_modal.open_files import first_open_file
from tests.loopback_modal.plane import Plane

OPEN_FILES = "there are open files preventing the operation"


@dataclass(slots=True)
class VolumeFiles:
    """A reload by a container that holds a file of the volume open fails, as Modal's does."""

    plane: Plane
    store: BlockStore

    async def VolumeCommit(
        self, request: pb.VolumeCommitRequest, caller: str
    ) -> pb.VolumeCommitResponse:
        self._folder(request.volume_id)
        return pb.VolumeCommitResponse()

    async def VolumeReload(self, request: pb.VolumeReloadRequest, caller: str) -> Empty:
        folder = self._folder(request.volume_id)
        container = self.plane.containers.get(caller)
        held = first_open_file(container.process.pid, folder) if container is not None else None
        if held is not None:
            raise GRPCError(Status.FAILED_PRECONDITION, f"{OPEN_FILES}: {held}")
        return Empty()

    async def VolumeListFiles2(
        self, request: pb.VolumeListFiles2Request, caller: str
    ) -> AsyncIterator[pb.VolumeListFiles2Response]:
        root = self._folder(request.volume_id)
        path = self._existing(root, request.path)
        found = _below(path, request.recursive) if path.is_dir() else iter([path])
        yield pb.VolumeListFiles2Response(entries=[_entry(root, one) for one in found])

    async def VolumeGetFile2(
        self, request: pb.VolumeGetFile2Request, caller: str
    ) -> pb.VolumeGetFile2Response:
        path = self._existing(self._folder(request.volume_id), request.path)
        if path.is_dir():
            raise GRPCError(Status.INVALID_ARGUMENT, f"{request.path} is a directory")
        size = path.stat().st_size
        return pb.VolumeGetFile2Response(
            get_urls=self.store.block_urls(path), size=size, start=0, len=size
        )

    async def VolumePutFiles2(
        self, request: pb.VolumePutFiles2Request, caller: str
    ) -> pb.VolumePutFiles2Response:
        folder = self._folder(request.volume_id)
        if request.disallow_overwrite_existing_files:
            for file in request.files:
                if _inside(folder, file.path).exists():
                    raise GRPCError(Status.ALREADY_EXISTS, f"{file.path}: already exists")
        missing = [
            pb.VolumePutFiles2Response.MissingBlock(
                file_index=file_index,
                block_index=block_index,
                put_url=self.store.put_url(block.contents_sha256.hex()),
            )
            for file_index, file in enumerate(request.files)
            for block_index, block in enumerate(file.blocks)
            if block.contents_sha256.hex() not in self.plane.blobs
        ]
        if not missing:
            for file in request.files:
                self._write(_inside(folder, file.path), file)
        return pb.VolumePutFiles2Response(missing_blocks=missing)

    async def VolumeRemoveFile2(self, request: pb.VolumeRemoveFile2Request, caller: str) -> Empty:
        path = self._existing(self._folder(request.volume_id), request.path)
        if not path.is_dir():
            path.unlink()
        elif request.recursive:
            shutil.rmtree(path)
        else:
            raise GRPCError(
                Status.FAILED_PRECONDITION, f"{request.path} is a directory: remove it recursively"
            )
        return Empty()

    async def VolumeCopyFiles2(self, request: pb.VolumeCopyFiles2Request, caller: str) -> Empty:
        folder = self._folder(request.volume_id)
        target = _inside(folder, request.dst_path)
        for name in request.src_paths:
            source = self._existing(folder, name)
            where = target / source.name if target.is_dir() else target
            where.parent.mkdir(parents=True, exist_ok=True)
            if not source.is_dir():
                shutil.copy2(source, where)
            elif request.recursive:
                shutil.copytree(source, where, dirs_exist_ok=True)
            else:
                raise GRPCError(Status.FAILED_PRECONDITION, f"{name} is a directory")
        return Empty()

    def _write(self, path: Path, file: pb.VolumePutFiles2Request.File) -> None:
        """Blocks come without their trailing zeros; all but the last are of full size."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            for index, block in enumerate(file.blocks):
                out.seek(index * BLOCK_BYTES)
                out.write(self.plane.blobs[block.contents_sha256.hex()])
            out.truncate(file.size)
        if file.HasField("mode"):
            path.chmod(file.mode & 0o777)

    def _folder(self, volume_id: str) -> Path:
        if volume_id not in self.plane.volumes:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{volume_id}' not found")
        return self.plane.volumes[volume_id].folder

    def _existing(self, folder: Path, name: str) -> Path:
        path = _inside(folder, name)
        if not path.exists():
            raise GRPCError(Status.NOT_FOUND, f"{name}: no such file or directory")
        return path


def _inside(folder: Path, name: str) -> Path:
    """The path in the volume's folder; refuses to leave it."""
    relative = PurePosixPath(name.lstrip("/"))
    if ".." in relative.parts:
        raise GRPCError(Status.INVALID_ARGUMENT, f"{name}: '..' is not allowed")
    return folder / relative


def _below(folder: Path, recursive: bool) -> Iterator[Path]:
    return iter(sorted(folder.rglob("*") if recursive else folder.iterdir()))


def _entry(root: Path, path: Path) -> pb.FileEntry:
    status = path.lstat()
    kind = pb.FileEntry.DIRECTORY if path.is_dir() else pb.FileEntry.FILE
    if path.is_symlink():
        kind = pb.FileEntry.SYMLINK
    return pb.FileEntry(
        path=str(path.relative_to(root)),
        type=kind,
        mtime=int(status.st_mtime),
        size=0 if path.is_dir() else status.st_size,
    )
