"""Calls about running servers: their containers, their numbers, a token for `modal curl`."""

from __future__ import annotations

from dataclasses import dataclass

from modal_proto import api_pb2 as pb

from tests.loopback_modal.plane import ContainerState, Plane
from tests.loopback_modal.servers import Servers


@dataclass(slots=True)
class ServerCalls:
    """What `Server._experimental_list_containers()` and `Server.stats()` ask for."""

    plane: Plane
    servers: Servers

    async def FlashContainerList(
        self, request: pb.FlashContainerListRequest, caller: str
    ) -> pb.FlashContainerListResponse:
        containers = [
            pb.FlashContainerListResponse.Container(
                task_id=container.id, host="127.0.0.1", port=container.port
            )
            for container in self.plane.live(request.function_id)
            if container.state is ContainerState.READY
        ]
        return pb.FlashContainerListResponse(containers=containers)

    async def ServerGetTimeRangeStats(
        self, request: pb.ServerGetTimeRangeStatsRequest, caller: str
    ) -> pb.ServerGetTimeRangeStatsResponse:
        server = self.servers.known[request.function_id]
        seconds = request.until.ToMilliseconds() - request.since.ToMilliseconds()
        total = sum(server.statuses.values())
        return pb.ServerGetTimeRangeStatsResponse(
            since=request.since,
            until=request.until,
            request_count=total,
            request_count_by_status_code=[
                pb.ServerGetTimeRangeStatsResponse.ServerStatusCodeCount(
                    status_code=status, count=count
                )
                for status, count in sorted(server.statuses.items())
            ],
            request_rate_per_second=total / max(seconds / 1000, 1),
            container_started_count=server.started,
            container_error_count=len(server.failures),
            container_total_count=len(self.plane.live(request.function_id)),
        )

    async def FunctionGetFlashAuthToken(
        self, request: pb.FunctionGetFlashAuthTokenRequest, caller: str
    ) -> pb.FunctionGetFlashAuthTokenResponse:
        return pb.FunctionGetFlashAuthTokenResponse(token="loopback")
