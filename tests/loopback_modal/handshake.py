"""Calls that every client makes first: hello, a token, the environment, the workspace's name."""

from __future__ import annotations

import base64
import json
import time

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2 as pb

from tests.loopback_modal.plane import BUILDER_VERSION


class Handshake:
    """The one workspace `loopback` with the one environment `main`."""

    async def ClientHello(self, request: Empty, caller: str) -> pb.ClientHelloResponse:
        return pb.ClientHelloResponse()

    async def AuthTokenGet(
        self, request: pb.AuthTokenGetRequest, caller: str
    ) -> pb.AuthTokenGetResponse:
        head, body = _part({"alg": "none"}), _part({"exp": int(time.time()) + 3600})
        return pb.AuthTokenGetResponse(token=f"{head}.{body}.")

    async def EnvironmentGetOrCreate(
        self, request: pb.EnvironmentGetOrCreateRequest, caller: str
    ) -> pb.EnvironmentGetOrCreateResponse:
        settings = pb.EnvironmentSettings(image_builder_version=BUILDER_VERSION)
        metadata = pb.EnvironmentMetadata(name=request.deployment_name or "main", settings=settings)
        return pb.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    async def EnvironmentList(self, request: Empty, caller: str) -> pb.EnvironmentListResponse:
        item = pb.EnvironmentListItem(name="main", webhook_suffix="", default=True)
        return pb.EnvironmentListResponse(items=[item])

    async def WorkspaceNameLookup(
        self, request: Empty, caller: str
    ) -> pb.WorkspaceNameLookupResponse:
        return pb.WorkspaceNameLookupResponse(workspace_name="loopback", username="loopback")


def _part(content: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()
