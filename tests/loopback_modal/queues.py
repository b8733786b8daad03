"""Dicts and queues: names for what containers and clients share in memory."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.loopback_modal.plane import Plane

_POLL_S = 0.02


@dataclass(slots=True)
class Dicts:
    """`modal.Dict`; entries never expire here."""

    plane: Plane
    entries: dict[str, dict[bytes, bytes]] = field(default_factory=dict)

    async def DictGetOrCreate(
        self, request: pb.DictGetOrCreateRequest, caller: str
    ) -> pb.DictGetOrCreateResponse:
        name = request.deployment_name
        _refuse_unless_known(self.plane, "dict", name, request.object_creation_type)
        dict_id = self.plane.id_of("dict", "di", name)
        self.entries.setdefault(dict_id, {})
        return pb.DictGetOrCreateResponse(dict_id=dict_id, metadata=pb.DictMetadata(name=name))

    async def DictUpdate(self, request: pb.DictUpdateRequest, caller: str) -> pb.DictUpdateResponse:
        entries = self.entries[request.dict_id]
        new = {entry.key: entry.value for entry in request.updates}
        if request.if_not_exists and any(key in entries for key in new):
            return pb.DictUpdateResponse(created=False)
        entries |= new
        return pb.DictUpdateResponse(created=True)

    async def DictGet(self, request: pb.DictGetRequest, caller: str) -> pb.DictGetResponse:
        value = self.entries[request.dict_id].get(request.key)
        return pb.DictGetResponse(found=value is not None, value=value)

    async def DictPop(self, request: pb.DictPopRequest, caller: str) -> pb.DictPopResponse:
        value = self.entries[request.dict_id].pop(request.key, None)
        return pb.DictPopResponse(found=value is not None, value=value)

    async def DictContains(
        self, request: pb.DictContainsRequest, caller: str
    ) -> pb.DictContainsResponse:
        return pb.DictContainsResponse(found=request.key in self.entries[request.dict_id])

    async def DictLen(self, request: pb.DictLenRequest, caller: str) -> pb.DictLenResponse:
        return pb.DictLenResponse(len=len(self.entries[request.dict_id]))

    async def DictContents(
        self, request: pb.DictContentsRequest, caller: str
    ) -> AsyncIterator[pb.DictEntry]:
        for key, value in list(self.entries[request.dict_id].items()):
            yield pb.DictEntry(key=key, value=value)

    async def DictClear(self, request: pb.DictClearRequest, caller: str) -> Empty:
        self.entries[request.dict_id].clear()
        return Empty()


@dataclass(slots=True)
class Queues:
    """`modal.Queue` with its partitions."""

    plane: Plane
    items: dict[tuple[str, bytes], deque[bytes]] = field(default_factory=dict)

    async def QueueGetOrCreate(
        self, request: pb.QueueGetOrCreateRequest, caller: str
    ) -> pb.QueueGetOrCreateResponse:
        name = request.deployment_name
        _refuse_unless_known(self.plane, "queue", name, request.object_creation_type)
        queue_id = self.plane.id_of("queue", "qu", name)
        return pb.QueueGetOrCreateResponse(queue_id=queue_id, metadata=pb.QueueMetadata(name=name))

    async def QueuePut(self, request: pb.QueuePutRequest, caller: str) -> Empty:
        self._partition(request.queue_id, request.partition_key).extend(request.values)
        return Empty()

    async def QueueGet(self, request: pb.QueueGetRequest, caller: str) -> pb.QueueGetResponse:
        partition = self._partition(request.queue_id, request.partition_key)
        deadline = time.monotonic() + request.timeout
        while not partition and time.monotonic() < deadline:  # noqa: ASYNC110  # simple enough
            await asyncio.sleep(_POLL_S)
        count = min(len(partition), request.n_values or 1)
        return pb.QueueGetResponse(values=[partition.popleft() for _ in range(count)])

    async def QueueLen(self, request: pb.QueueLenRequest, caller: str) -> pb.QueueLenResponse:
        wanted = None if request.total else request.partition_key
        lengths = [
            len(items)
            for (queue_id, key), items in self.items.items()
            if queue_id == request.queue_id and wanted in {None, key}
        ]
        return pb.QueueLenResponse(len=sum(lengths))

    def _partition(self, queue_id: str, key: bytes) -> deque[bytes]:
        return self.items.setdefault((queue_id, key), deque())


def _refuse_unless_known(
    plane: Plane, kind: str, name: str, creation: pb.ObjectCreationType.ValueType
) -> None:
    if creation == pb.OBJECT_CREATION_TYPE_UNSPECIFIED and (kind, name) not in plane.named:
        raise GRPCError(
            Status.NOT_FOUND, f"{kind.title()} '{name}' not found in environment 'main'"
        )
