"""Secrets and volumes as named objects: found, created, listed, deleted, refused."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.loopback_modal.plane import Plane, Secret, Volume

_CREATES = {
    pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING,
    pb.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS,
    pb.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS,
}


@dataclass(slots=True)
class Secrets:
    """Secrets by name; values reach containers as environment variables."""

    plane: Plane

    def put(self, name: str, values: Mapping[str, str]) -> Secret:
        """Create or replace a secret."""
        secret = Secret(id=self.plane.id_of("secret", "st", name), name=name, values=dict(values))
        self.plane.secrets[secret.id] = secret
        return secret

    async def SecretGetOrCreate(
        self, request: pb.SecretGetOrCreateRequest, caller: str
    ) -> pb.SecretGetOrCreateResponse:
        if request.object_creation_type == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
            secret = self._found(request.deployment_name, list(request.required_keys))
        else:
            secret = self._created(request)
        return pb.SecretGetOrCreateResponse(secret_id=secret.id, metadata=_secret_metadata(secret))

    async def SecretGetInfo(
        self, request: pb.SecretGetInfoRequest, caller: str
    ) -> pb.SecretGetInfoResponse:
        if request.secret_id not in self.plane.secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret '{request.secret_id}' not found")
        secret = self.plane.secrets[request.secret_id]
        return pb.SecretGetInfoResponse(metadata=_secret_metadata(secret))

    async def SecretList(self, request: pb.SecretListRequest, caller: str) -> pb.SecretListResponse:
        items = [
            pb.SecretListItem(
                label=secret.name,
                secret_id=secret.id,
                created_at=secret.created_at,
                metadata=_secret_metadata(secret),
            )
            for secret in self.plane.secrets.values()
            if secret.name
        ]
        return pb.SecretListResponse(items=items, environment_name="main")

    async def SecretDelete(self, request: pb.SecretDeleteRequest, caller: str) -> Empty:
        secret = self.plane.secrets.pop(request.secret_id, None)
        if secret is not None:
            self.plane.named.pop(("secret", secret.name), None)
        return Empty()

    def _found(self, name: str, required: list[str]) -> Secret:
        secret = self.plane.secrets.get(self.plane.named.get(("secret", name), ""))
        if secret is None:
            raise GRPCError(
                Status.NOT_FOUND,
                f"Secret '{name}' not found in environment 'main'. You can create it with "
                f"`modal secret create {name}`.",
            )
        missing = sorted(set(required) - set(secret.values))
        if missing:
            raise GRPCError(
                Status.FAILED_PRECONDITION,
                f"Secret is missing key(s) {', '.join(missing)}: '{name}' has "
                f"{', '.join(sorted(secret.values)) or 'none'}",
            )
        secret.required_keys = sorted({*secret.required_keys, *required})
        return secret

    def _created(self, request: pb.SecretGetOrCreateRequest) -> Secret:
        known = self.plane.named.get(("secret", request.deployment_name), "")
        if known and request.object_creation_type == pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
            return self.plane.secrets[known]
        if known and request.object_creation_type == pb.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(
                Status.ALREADY_EXISTS, f"Secret '{request.deployment_name}' already exists"
            )
        return self.put(request.deployment_name, dict(request.env_dict))


@dataclass(slots=True)
class Volumes:
    """Volumes by name; each is a folder."""

    plane: Plane

    def put(
        self, name: str, version: pb.VolumeFsVersion.ValueType = pb.VOLUME_FS_VERSION_V2
    ) -> Volume:
        """The volume of that name, made if there is none yet."""
        volume_id = self.plane.id_of("volume", "vo", name)
        if volume_id not in self.plane.volumes:
            folder = self.plane.root / "volumes" / (name or volume_id)
            folder.mkdir(parents=True, exist_ok=True)
            self.plane.volumes[volume_id] = Volume(
                id=volume_id, name=name, version=version, folder=folder
            )
        return self.plane.volumes[volume_id]

    async def VolumeGetOrCreate(
        self, request: pb.VolumeGetOrCreateRequest, caller: str
    ) -> pb.VolumeGetOrCreateResponse:
        name, kind = request.deployment_name, request.object_creation_type
        known = ("volume", name) in self.plane.named
        if not known and kind == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{name}' not found in environment 'main'")
        if known and kind == pb.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"Volume '{name}' already exists")
        volume = self.put(name, request.version or pb.VOLUME_FS_VERSION_V2)
        return pb.VolumeGetOrCreateResponse(
            volume_id=volume.id, version=volume.version, metadata=volume_metadata(volume)
        )

    async def VolumeGetById(
        self, request: pb.VolumeGetByIdRequest, caller: str
    ) -> pb.VolumeGetByIdResponse:
        volume = self.plane.volumes.get(request.volume_id)
        if volume is None:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{request.volume_id}' not found")
        return pb.VolumeGetByIdResponse(volume_id=volume.id, metadata=volume_metadata(volume))

    async def VolumeList(self, request: pb.VolumeListRequest, caller: str) -> pb.VolumeListResponse:
        items = [
            pb.VolumeListItem(
                label=volume.name,
                volume_id=volume.id,
                created_at=volume.created_at,
                metadata=volume_metadata(volume),
            )
            for volume in self.plane.volumes.values()
            if volume.name
        ]
        return pb.VolumeListResponse(items=items, environment_name="main")

    async def VolumeDelete(self, request: pb.VolumeDeleteRequest, caller: str) -> Empty:
        volume = self.plane.volumes.pop(request.volume_id, None)
        if volume is not None:
            self.plane.named.pop(("volume", volume.name), None)
            shutil.rmtree(volume.folder)
        return Empty()

    async def VolumeHeartbeat(self, request: pb.VolumeHeartbeatRequest, caller: str) -> Empty:
        return Empty()


def volume_metadata(volume: Volume) -> pb.VolumeMetadata:
    """The volume as clients are told of it."""
    return pb.VolumeMetadata(version=volume.version, name=volume.name)


def _secret_metadata(secret: Secret) -> pb.SecretMetadata:
    return pb.SecretMetadata(name=secret.name, keys=sorted(secret.values), environment_name="main")
