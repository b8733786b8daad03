"""Apps: created, published, looked up, listed, stopped."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.loopback_modal.plane import App, Plane

AppHook = Callable[[App], Awaitable[None]]
_ENDS_WITH_ITS_CLIENT = {pb.APP_STATE_EPHEMERAL, pb.APP_STATE_INITIALIZING}


@dataclass(slots=True)
class Apps:
    """`on_publish` is told when an app's objects stand, `on_stop` when nothing of it may run."""

    plane: Plane
    on_publish: AppHook
    on_stop: AppHook

    async def AppCreate(self, request: pb.AppCreateRequest, caller: str) -> pb.AppCreateResponse:
        app = self._new(request.description, request.app_state, dict(request.tags))
        return pb.AppCreateResponse(app_id=app.id, app_page_url=_page(app))

    async def AppGetOrCreate(
        self, request: pb.AppGetOrCreateRequest, caller: str
    ) -> pb.AppGetOrCreateResponse:
        app = self.plane.app_named(request.app_name)
        if app is None:
            if request.object_creation_type == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' not found")
            app = self._new(request.app_name, pb.APP_STATE_DEPLOYED, {})
        metadata = pb.AppHandleMetadata(description=app.name, app_id=app.id)
        return pb.AppGetOrCreateResponse(app_id=app.id, handle_metadata=metadata)

    async def AppGetByDeploymentName(
        self, request: pb.AppGetByDeploymentNameRequest, caller: str
    ) -> pb.AppGetByDeploymentNameResponse:
        app = self.plane.app_named(request.name)
        if app is None or not app.deployed:
            return pb.AppGetByDeploymentNameResponse()
        return pb.AppGetByDeploymentNameResponse(
            app_id=app.id, environment_name="main", lifecycle=_lifecycle(app)
        )

    async def AppGetLayout(
        self, request: pb.AppGetLayoutRequest, caller: str
    ) -> pb.AppGetLayoutResponse:
        return pb.AppGetLayoutResponse(app_layout=layout(self.plane, self._app(request.app_id)))

    async def AppHeartbeat(self, request: pb.AppHeartbeatRequest, caller: str) -> Empty:
        return Empty()

    async def AppPublish(self, request: pb.AppPublishRequest, caller: str) -> pb.AppPublishResponse:
        app = self._app(request.app_id)
        app.function_ids = dict(request.function_ids)
        app.class_ids = dict(request.class_ids)
        app.tags = dict(request.tags)
        app.name = request.name or app.name
        app.state = request.app_state or app.state
        app.version += 1
        await self.on_publish(app)
        return pb.AppPublishResponse(url=_page(app), deployed_at=time.time())

    async def AppClientDisconnect(
        self, request: pb.AppClientDisconnectRequest, caller: str
    ) -> Empty:
        app = self._app(request.app_id)
        if app.state in _ENDS_WITH_ITS_CLIENT:
            await self._stop(app)
        app.logs_done = True
        return Empty()

    async def AppStop(self, request: pb.AppStopRequest, caller: str) -> Empty:
        await self._stop(self._app(request.app_id))
        return Empty()

    async def AppList(self, request: pb.AppListRequest, caller: str) -> pb.AppListResponse:
        return pb.AppListResponse(apps=[self._listed(app) for app in self.plane.apps.values()])

    async def AppGetLifecycle(
        self, request: pb.AppGetLifecycleRequest, caller: str
    ) -> pb.AppGetLifecycleResponse:
        return pb.AppGetLifecycleResponse(lifecycle=_lifecycle(self._app(request.app_id)))

    async def AppGetInfo(self, request: pb.AppGetInfoRequest, caller: str) -> pb.AppGetInfoResponse:
        return pb.AppGetInfoResponse(info=_handle(self._app(request.app_id)))

    async def AppGetTags(self, request: pb.AppGetTagsRequest, caller: str) -> pb.AppGetTagsResponse:
        return pb.AppGetTagsResponse(tags=self._app(request.app_id).tags)

    async def AppSetTags(self, request: pb.AppSetTagsRequest, caller: str) -> Empty:
        self._app(request.app_id).tags = dict(request.tags)
        return Empty()

    def _new(self, name: str, state: pb.AppState.ValueType, tags: dict[str, str]) -> App:
        app = App(id=self.plane.new_id("ap"), name=name, state=state, tags=tags)
        self.plane.apps[app.id] = app
        return app

    async def _stop(self, app: App) -> None:
        if not app.stopped:
            app.state, app.stopped_at = pb.APP_STATE_STOPPED, time.time()
            await self.on_stop(app)
        app.logs_done = True

    def _app(self, app_id: str) -> App:
        if app_id not in self.plane.apps:
            raise GRPCError(Status.NOT_FOUND, f"App with ID '{app_id}' not found")
        return self.plane.apps[app_id]

    def _listed(self, app: App) -> pb.AppListResponse.AppListItem:
        running = [
            container
            for container in self.plane.containers.values()
            if container.alive and container.function.app_id == app.id
        ]
        return pb.AppListResponse.AppListItem(
            app_id=app.id,
            description=app.name,
            name=app.name if app.deployed else "",
            state=app.state,
            created_at=app.created_at,
            stopped_at=app.stopped_at,
            n_running_tasks=len(running),
            metadata=_handle(app),
        )


def layout(plane: Plane, app: App) -> pb.AppLayout:
    """The app's objects as a container or a redeploying client is told of them."""
    result = pb.AppLayout(function_ids=app.function_ids, class_ids=app.class_ids)
    dependencies: dict[str, None] = {}
    for function_id in app.function_ids.values():
        function = plane.functions[function_id]
        result.objects.append(
            pb.Object(object_id=function_id, function_handle_metadata=function.metadata)
        )
        for dependency in function.definition.object_dependencies:
            dependencies[dependency.object_id] = None
    for class_id in app.class_ids.values():
        result.objects.append(
            pb.Object(object_id=class_id, class_handle_metadata=pb.ClassHandleMetadata())
        )
    known = {thing.object_id for thing in result.objects}
    result.objects.extend(_object(plane, name) for name in dependencies if name not in known)
    return result


def _object(plane: Plane, object_id: str) -> pb.Object:
    if object_id in plane.volumes:
        volume = plane.volumes[object_id]
        metadata = pb.VolumeMetadata(version=volume.version, name=volume.name)
        return pb.Object(object_id=object_id, volume_metadata=metadata)
    return pb.Object(object_id=object_id)


def _page(app: App) -> str:
    return f"http://modal.invalid/{app.id}"


def _lifecycle(app: App) -> pb.AppLifecycle:
    return pb.AppLifecycle(
        app_state=app.state,
        created_at=app.created_at,
        deployed_at=app.created_at,
        stopped_at=app.stopped_at,
        version=app.version,
    )


def _handle(app: App) -> pb.AppHandleMetadata:
    return pb.AppHandleMetadata(
        description=app.name, app_id=app.id, environment_name="main", lifecycle=_lifecycle(app)
    )
