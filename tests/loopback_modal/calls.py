"""Calls of functions as clients make them and containers serve them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.loopback_modal.inputs import FunctionCall, Input, Work, failure
from tests.loopback_modal.plane import Container, ContainerState, Plane

_LONGEST_POLL_S = 10.0
_SUCCESS = pb.GenericResult.GENERIC_STATUS_SUCCESS
_TERMINATED = pb.GenericResult.GENERIC_STATUS_TERMINATED
_TIMEOUT = pb.GenericResult.GENERIC_STATUS_TIMEOUT


@dataclass(slots=True)
class Calls:
    """`wanted` is told of each function that has something to do; `kill` ends a container."""

    plane: Plane
    work: Work
    wanted: Callable[[str], None]
    kill: Callable[[Container], None]

    async def FunctionMap(
        self, request: pb.FunctionMapRequest, caller: str
    ) -> pb.FunctionMapResponse:
        if request.function_id not in self.plane.functions:
            raise GRPCError(Status.NOT_FOUND, f"Function '{request.function_id}' not found")
        call = self.work.open(request)
        accepted = self._accept(call, list(request.pipelined_inputs))
        return pb.FunctionMapResponse(
            function_call_id=call.id,
            pipelined_inputs=accepted,
            function_call_jwt=call.id,
            retry_policy=call.function.definition.retry_policy,
            sync_client_retries_enabled=False,
            max_inputs_outstanding=1000,
        )

    async def FunctionPutInputs(
        self, request: pb.FunctionPutInputsRequest, caller: str
    ) -> pb.FunctionPutInputsResponse:
        call = self._call(request.function_call_id)
        return pb.FunctionPutInputsResponse(inputs=self._accept(call, list(request.inputs)))

    async def FunctionFinishInputs(
        self, request: pb.FunctionFinishInputsRequest, caller: str
    ) -> Empty:
        return Empty()

    async def FunctionGetOutputs(
        self, request: pb.FunctionGetOutputsRequest, caller: str
    ) -> pb.FunctionGetOutputsResponse:
        call = self._call(request.function_call_id)
        deadline = time.monotonic() + min(request.timeout, _LONGEST_POLL_S)
        while not (found := _outputs(call, request)):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            await self.work.wait(left_s)
        return pb.FunctionGetOutputsResponse(
            outputs=found,
            idxs=[item.idx for item in found],
            last_entry_id=f"{len(call.finished)}-0",
            num_unfinished_inputs=call.unfinished,
        )

    async def FunctionCallFromId(
        self, request: pb.FunctionCallFromIdRequest, caller: str
    ) -> pb.FunctionCallFromIdResponse:
        call = self._call(request.function_call_id)
        metadata = pb.FunctionCallHandleMetadata(
            app_id=call.function.app_id, function_id=call.function.id
        )
        return pb.FunctionCallFromIdResponse(
            function_call_id=call.id, num_inputs=len(call.inputs), metadata=metadata
        )

    async def FunctionCallGetInfo(
        self, request: pb.FunctionCallGetInfoRequest, caller: str
    ) -> pb.FunctionCallGetInfoResponse:
        call = self._call(request.function_call_id)
        kinds = Counter(item.output.result.status for item in call.inputs if item.output)
        info = pb.FunctionCallInfo(
            function_call_id=call.id,
            created_at=call.created_at,
            total_inputs=len(call.inputs),
            pending_inputs=pb.InputCategoryInfo(total=call.unfinished),
            succeeded_inputs=pb.InputCategoryInfo(total=kinds.pop(_SUCCESS, 0)),
            timeout_inputs=pb.InputCategoryInfo(total=kinds.pop(_TIMEOUT, 0)),
            cancelled_inputs=pb.InputCategoryInfo(total=kinds.pop(_TERMINATED, 0)),
            failed_inputs=pb.InputCategoryInfo(total=kinds.total()),
        )
        return pb.FunctionCallGetInfoResponse(info=info)

    async def FunctionCallCancel(self, request: pb.FunctionCallCancelRequest, caller: str) -> Empty:
        call = self._call(request.function_call_id)
        call.cancelled = True
        self.cancel([item for item in call.inputs if not item.done], request.terminate_containers)
        return Empty()

    async def FunctionGetCurrentStats(
        self, request: pb.FunctionGetCurrentStatsRequest, caller: str
    ) -> pb.FunctionStats:
        live = self.plane.live(request.function_id)
        return pb.FunctionStats(
            backlog=len(self.work.queue(request.function_id)),
            num_total_tasks=len(live),
            num_running_inputs=sum(len(container.inputs) for container in live),
        )

    async def FunctionGetInputs(
        self, request: pb.FunctionGetInputsRequest, caller: str
    ) -> pb.FunctionGetInputsResponse:
        container = self.plane.containers[caller]
        container.entered = True
        if container.state is ContainerState.STARTING:
            container.state = ContainerState.READY
            container.idle_since = time.monotonic()
        deadline = time.monotonic() + _LONGEST_POLL_S
        while container.state is ContainerState.READY:
            taken = self.work.take(container, max(1, request.batch_max_size))
            left_s = deadline - time.monotonic()
            if taken or left_s <= 0:
                return pb.FunctionGetInputsResponse(inputs=[_delivery(item) for item in taken])
            await self.work.wait(left_s)
        return pb.FunctionGetInputsResponse(inputs=[pb.FunctionGetInputsItem(kill_switch=True)])

    async def FunctionPutOutputs(self, request: pb.FunctionPutOutputsRequest, caller: str) -> Empty:
        for output in request.outputs:
            item = self.work.inputs.get(output.input_id)
            if item is not None and item.container == caller:
                self.work.settle(item, output.result, output.data_format)
                self.wanted(item.call.function.id)
        return Empty()

    async def FunctionGetDynamicConcurrency(
        self, request: pb.FunctionGetDynamicConcurrencyRequest, caller: str
    ) -> pb.FunctionGetDynamicConcurrencyResponse:
        return pb.FunctionGetDynamicConcurrencyResponse(concurrency=request.max_concurrency)

    async def FunctionCallPutDataOut(
        self, request: pb.FunctionCallPutDataRequest, caller: str
    ) -> Empty:
        self._call(request.function_call_id).chunks.extend(request.data_chunks)
        self.work.notify()
        return Empty()

    async def FunctionCallGetDataOut(
        self, request: pb.FunctionCallGetDataRequest, caller: str
    ) -> AsyncIterator[pb.DataChunk]:
        call, seen = self._call(request.function_call_id), request.last_index
        deadline = time.monotonic() + _LONGEST_POLL_S
        while time.monotonic() < deadline:
            for chunk in [chunk for chunk in call.chunks if chunk.index > seen]:
                seen = chunk.index
                yield chunk
            await self.work.wait(deadline - time.monotonic())

    def cancel(self, items: list[Input], terminate: bool) -> None:
        """End inputs by their callers' wish; containers that run them are told, or killed."""
        for item in items:
            container = self.plane.containers.get(item.container)
            self.work.finish(item, failure(_TERMINATED, "Input was cancelled by user"))
            if container is not None and terminate:
                self.kill(container)
            elif container is not None:
                container.cancelled.append(item.id)
                container.heard.set()

    def _accept(
        self, call: FunctionCall, items: list[pb.FunctionPutInputsItem]
    ) -> list[pb.FunctionPutInputsResponseItem]:
        accepted = [(item.idx, self.work.put(call, item)) for item in items]
        self.wanted(call.function.id)
        return [
            pb.FunctionPutInputsResponseItem(idx=idx, input_id=item.id, input_jwt=item.id)
            for idx, item in accepted
        ]

    def _call(self, call_id: str) -> FunctionCall:
        if call_id not in self.work.calls:
            raise GRPCError(Status.NOT_FOUND, f"Function call '{call_id}' not found")
        return self.work.calls[call_id]


@dataclass(slots=True)
class Lifecycle:
    """What containers say of themselves, and what others ask of them."""

    plane: Plane
    ready: Callable[[Container], None]
    stop: Callable[[Container, bool], None]

    async def ContainerHello(self, request: Empty, caller: str) -> Empty:
        return Empty()

    async def ContainerHeartbeat(
        self, request: pb.ContainerHeartbeatRequest, caller: str
    ) -> pb.ContainerHeartbeatResponse:
        """Held until there is something to cancel, so that a cancellation arrives at once."""
        container = self.plane.containers[caller]
        try:
            async with asyncio.timeout(_LONGEST_POLL_S):
                await container.heard.wait()
        except TimeoutError:
            return pb.ContainerHeartbeatResponse()
        if container.alive and container.state is not ContainerState.DRAINING:
            container.heard.clear()
        cancelled, container.cancelled = container.cancelled, []
        if not cancelled:
            return pb.ContainerHeartbeatResponse()
        return pb.ContainerHeartbeatResponse(
            cancel_input_event=pb.CancelInputEvent(input_ids=cancelled)
        )

    async def ContainerServerLifecycleReady(
        self, request: pb.ContainerServerLifecycleReadyRequest, caller: str
    ) -> Empty:
        container = self.plane.containers[caller]
        container.entered = True
        self.ready(container)
        return Empty()

    async def ContainerCheckpoint(
        self, request: pb.ContainerCheckpointRequest, caller: str
    ) -> Empty:
        """No snapshot is taken: the container goes on at once as the restored one would."""
        (self.plane.containers[caller].folder / "restored.json").write_text("{}")
        return Empty()

    async def ContainerStop(
        self, request: pb.ContainerStopRequest, caller: str
    ) -> pb.ContainerStopResponse:
        if request.task_id not in self.plane.containers:
            raise GRPCError(Status.NOT_FOUND, f"Container '{request.task_id}' not found")
        self.stop(self.plane.containers[request.task_id], request.graceful)
        return pb.ContainerStopResponse()

    async def TaskResult(self, request: pb.TaskResultRequest, caller: str) -> Empty:
        if request.result.status != pb.GenericResult.GENERIC_STATUS_SUCCESS:
            self.plane.containers[caller].failure = request.result
        return Empty()

    async def TaskList(self, request: pb.TaskListRequest, caller: str) -> pb.TaskListResponse:
        tasks = [
            pb.TaskStats(
                task_id=container.id,
                app_id=container.function.app_id,
                app_description=self.plane.apps[container.function.app_id].name,
                started_at=container.enqueued_at,
                enqueued_at=container.enqueued_at,
            )
            for container in self.plane.containers.values()
            if container.alive and request.app_id in {"", container.function.app_id}
        ]
        return pb.TaskListResponse(tasks=tasks)

    async def TaskGetInfo(
        self, request: pb.TaskGetInfoRequest, caller: str
    ) -> pb.TaskGetInfoResponse:
        container = self.plane.containers.get(request.task_id)
        if container is None:
            raise GRPCError(Status.NOT_FOUND, f"Container '{request.task_id}' not found")
        info = pb.TaskInfo(id=container.id, enqueued_at=container.enqueued_at)
        return pb.TaskGetInfoResponse(app_id=container.function.app_id, info=info)


def _delivery(item: Input) -> pb.FunctionGetInputsItem:
    return pb.FunctionGetInputsItem(
        input_id=item.id,
        input=item.payload,
        function_call_id=item.call.id,
        function_call_invocation_type=item.call.invocation,
        retry_count=item.attempts,
        function_map_idx=item.idx,
    )


def _outputs(
    call: FunctionCall, request: pb.FunctionGetOutputsRequest
) -> list[pb.FunctionGetOutputsItem]:
    """The outputs asked for: those of a range of inputs, or those after the last one seen."""
    if request.HasField("start_idx"):
        wanted = range(request.start_idx, request.end_idx + 1)
        return [item for item in call.finished if item.idx in wanted]
    seen = int(request.last_entry_id.partition("-")[0] or 0)
    return call.finished[seen:]
