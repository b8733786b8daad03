"""Images, and the files that clients ship: mounts and their contents. Nothing is built."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2 as pb

from tests.loopback_modal.plane import BUILDER_VERSION, HOME, Plane

_SUCCESS = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)
_METADATA = pb.ImageMetadata(
    image_builder_version=BUILDER_VERSION, python_version_info="3.11.9", workdir=str(HOME)
)


@dataclass(slots=True)
class Images:
    """An image is its recipe: equal recipes are one image."""

    plane: Plane

    async def ImageGetOrCreate(
        self, request: pb.ImageGetOrCreateRequest, caller: str
    ) -> pb.ImageGetOrCreateResponse:
        digest = hashlib.sha256(request.image.SerializeToString(deterministic=True)).hexdigest()
        image_id = self.plane.id_of("image", "im", digest)
        self.plane.images[image_id] = request.image
        return pb.ImageGetOrCreateResponse(image_id=image_id, result=_SUCCESS, metadata=_METADATA)

    async def ImageJoinStreaming(
        self, request: pb.ImageJoinStreamingRequest, caller: str
    ) -> AsyncIterator[pb.ImageJoinStreamingResponse]:
        yield pb.ImageJoinStreamingResponse(eof=True, result=_SUCCESS, metadata=_METADATA)

    async def MountGetOrCreate(
        self, request: pb.MountGetOrCreateRequest, caller: str
    ) -> pb.MountGetOrCreateResponse:
        mount_id = self.plane.id_of("mount", "mo", request.deployment_name)
        self.plane.mounts[mount_id] = {file.filename: file.sha256_hex for file in request.files}
        names = sorted(self.plane.mounts[mount_id].items())
        checksum = hashlib.sha256(repr(names).encode()).hexdigest()
        metadata = pb.MountHandleMetadata(content_checksum_sha256_hex=checksum)
        return pb.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=metadata)

    async def MountBatchedCheckExistence(
        self, request: pb.MountBatchedCheckExistenceRequest, caller: str
    ) -> pb.MountBatchedCheckExistenceResponse:
        missing = [name for name in request.sha256_hex_hashes if name not in self.plane.blobs]
        return pb.MountBatchedCheckExistenceResponse(
            missing_sha256_hex_hashes=missing, checked_at=_now()
        )

    async def MountPutFile(
        self, request: pb.MountPutFileRequest, caller: str
    ) -> pb.MountPutFileResponse:
        which = request.WhichOneof("data_oneof")
        if which == "data":
            self.plane.blobs[request.sha256_hex] = request.data
        elif which == "data_blob_id":
            self.plane.blobs[request.sha256_hex] = self.plane.blobs[request.data_blob_id]
        return pb.MountPutFileResponse(
            exists=request.sha256_hex in self.plane.blobs, checked_at=_now()
        )


def recipe(plane: Plane, image_id: str) -> list[str]:
    """The Dockerfile lines of an image, those of the images below it first."""
    image = plane.images.get(image_id)
    if image is None:
        return []
    below = [line for base in image.base_images for line in recipe(plane, base.image_id)]
    return [*below, *image.dockerfile_commands]


def build_secrets(plane: Plane, image_id: str) -> list[str]:
    """The ids of the secrets that the image and those below it were built with."""
    image = plane.images.get(image_id)
    if image is None:
        return []
    below = [secret for base in image.base_images for secret in build_secrets(plane, base.image_id)]
    return [*below, *image.secret_ids]


def environment(lines: list[str]) -> dict[str, str]:
    """What the recipe's ENV lines set."""
    found: dict[str, str] = {}
    for line in lines:
        if line.startswith("ENV "):
            pairs = (word.partition("=") for word in shlex.split(line.removeprefix("ENV ")))
            found |= {name: value for name, _, value in pairs}
    return found


def workdir(lines: list[str]) -> PurePosixPath:
    """The recipe's last WORKDIR, else the home."""
    named = [line.removeprefix("WORKDIR ").strip() for line in lines if line.startswith("WORKDIR ")]
    return PurePosixPath(named[-1]) if named else HOME


def copied(plane: Plane, image_id: str) -> dict[str, str]:
    """Files that the recipe copies into the image: remote path -> digest."""
    image = plane.images.get(image_id)
    if image is None:
        return {}
    files: dict[str, str] = {}
    for base in image.base_images:
        files |= copied(plane, base.image_id)
    targets = [line.split()[2] for line in image.dockerfile_commands if line.startswith("COPY . ")]
    for target in targets:
        context = plane.mounts.get(image.context_mount_id, {})
        files |= {
            str(PurePosixPath(target) / name.lstrip("/")): digest
            for name, digest in context.items()
        }
    return files


def _now() -> Timestamp:
    stamp = Timestamp()
    stamp.GetCurrentTime()
    return stamp
