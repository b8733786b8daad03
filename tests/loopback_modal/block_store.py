"""Contents too large for a message: a small HTTP server for blobs and for the blocks of volumes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from modal_proto import api_pb2 as pb

from tests.loopback_modal.plane import Plane

BLOCK_BYTES = 8 * 1024 * 1024  # the client's own block size


@dataclass(slots=True)
class BlockStore:
    """`plane.blobs` by digest or blob id, and byte ranges of volumes' files, behind URLs."""

    plane: Plane
    url: str = ""
    _runner: web.AppRunner | None = None
    _files: dict[str, Path] = field(default_factory=dict)

    async def open(self) -> None:
        """Listen; `url` says where."""
        application = web.Application(client_max_size=2**32)
        application.router.add_put("/blob/{name}", self._put)
        application.router.add_get("/blob/{name}", self._get)
        application.router.add_get("/file/{name}/{block}", self._get_block)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def close(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    def put_url(self, name: str) -> str:
        """Where a client puts, and gets, the content of that name."""
        return f"{self.url}/blob/{name}"

    def block_urls(self, path: Path) -> list[str]:
        """Where a client gets a file, block by block."""
        name = self.plane.new_id("file")
        self._files[name] = path
        blocks = -(-path.stat().st_size // BLOCK_BYTES)
        return [f"{self.url}/file/{name}/{block}" for block in range(blocks)]

    async def BlobCreate(self, request: pb.BlobCreateRequest, caller: str) -> pb.BlobCreateResponse:
        blob_id = self.plane.new_id("bl")
        return pb.BlobCreateResponse(
            blob_ids=[blob_id], upload_urls=pb.UploadUrlList(items=[self.put_url(blob_id)])
        )

    async def BlobGet(self, request: pb.BlobGetRequest, caller: str) -> pb.BlobGetResponse:
        return pb.BlobGetResponse(download_url=self.put_url(request.blob_id))

    async def _put(self, request: web.Request) -> web.Response:
        content = await request.read()
        self.plane.blobs[request.match_info["name"]] = content
        etag = hashlib.md5(content).hexdigest()
        return web.Response(text=request.match_info["name"], headers={"ETag": f'"{etag}"'})

    async def _get(self, request: web.Request) -> web.Response:
        return web.Response(body=self.plane.blobs[request.match_info["name"]])

    async def _get_block(self, request: web.Request) -> web.Response:
        start = int(request.match_info["block"]) * BLOCK_BYTES
        with self._files[request.match_info["name"]].open("rb") as file:
            file.seek(start)
            return web.Response(body=file.read(BLOCK_BYTES))
