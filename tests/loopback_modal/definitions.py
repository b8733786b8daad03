"""Functions, classes and servers as apps define them, and variants made by `with_options`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.loopback_modal.plane import App, Function, Plane

Expose = Callable[[Function], Awaitable[str]]
Resettled = Callable[[Function], Awaitable[None]]
Shared = Literal["autoscaler_settings", "http_config", "schedule"]

# Fields that a list of GPUs moves from the function to the data around its ranked copies.
_SHARED_MESSAGES: tuple[Shared, ...] = ("autoscaler_settings", "http_config", "schedule")


@dataclass(slots=True)
class Definitions:
    """`expose` opens a server's public URL; `resettled` is told when autoscaler numbers change."""

    plane: Plane
    expose: Expose
    resettled: Resettled
    _variants: dict[bytes, str] = field(default_factory=dict)

    async def FunctionPrecreate(
        self, request: pb.FunctionPrecreateRequest, caller: str
    ) -> pb.FunctionPrecreateResponse:
        function = self._known(request.existing_function_id, request.app_id, request.function_name)
        function.metadata = _metadata(function, request)
        function.metadata._experimental_flash_urls.extend([function.url] if function.url else [])
        return pb.FunctionPrecreateResponse(
            function_id=function.id, handle_metadata=function.metadata
        )

    async def FunctionCreate(
        self, request: pb.FunctionCreateRequest, caller: str
    ) -> pb.FunctionCreateResponse:
        data = _as_data(request)
        function = self._known(request.existing_function_id, request.app_id, data.function_name)
        function.definition = _merged(data)
        function.gpus = [_gpu(ranked.function) for ranked in data.ranked_functions]
        function.gpus = [gpu for gpu in function.gpus if gpu]
        function.settings = pb.AutoscalerSettings()
        function.settings.CopyFrom(function.definition.autoscaler_settings)
        if function.is_server:
            function.url = await self.expose(function)
            del function.metadata._experimental_flash_urls[:]
            function.metadata._experimental_flash_urls.append(function.url)
        return pb.FunctionCreateResponse(
            function_id=function.id,
            handle_metadata=function.metadata,
            function=function.definition,
            function_data=described(self.plane, function),
        )

    async def ClassCreate(
        self, request: pb.ClassCreateRequest, caller: str
    ) -> pb.ClassCreateResponse:
        class_id = request.existing_class_id or self.plane.new_id("cs")
        return pb.ClassCreateResponse(class_id=class_id, handle_metadata=pb.ClassHandleMetadata())

    async def ClassGet(self, request: pb.ClassGetRequest, caller: str) -> pb.ClassGetResponse:
        app = self._published(request.app_name)
        if request.object_tag not in app.class_ids:
            raise GRPCError(
                Status.NOT_FOUND, f"No Cls '{request.object_tag}' in App '{request.app_name}'"
            )
        return pb.ClassGetResponse(
            class_id=app.class_ids[request.object_tag], handle_metadata=pb.ClassHandleMetadata()
        )

    async def FunctionGet(
        self, request: pb.FunctionGetRequest, caller: str
    ) -> pb.FunctionGetResponse:
        function = self.plane.function_of(self._published(request.app_name), request.object_tag)
        if function is None:
            raise GRPCError(
                Status.NOT_FOUND,
                f"No Function '{request.object_tag}' in App '{request.app_name}'",
            )
        return pb.FunctionGetResponse(
            function_id=function.id,
            handle_metadata=function.metadata,
            function=described(self.plane, function),
        )

    async def FunctionGetById(
        self, request: pb.FunctionGetByIdRequest, caller: str
    ) -> pb.FunctionGetByIdResponse:
        function = self._function(request.function_id)
        return pb.FunctionGetByIdResponse(
            function=described(self.plane, function), handle_metadata=function.metadata
        )

    async def FunctionBindParams(
        self, request: pb.FunctionBindParamsRequest, caller: str
    ) -> pb.FunctionBindParamsResponse:
        base = self._function(request.function_id)
        key = request.SerializeToString(deterministic=True) + str(base.generation).encode()
        if key not in self._variants:
            self._variants[key] = self._vary(base, request).id
        variant = self.plane.functions[self._variants[key]]
        return pb.FunctionBindParamsResponse(
            bound_function_id=variant.id, handle_metadata=variant.metadata
        )

    async def FunctionGetSchedulingParams(
        self, request: pb.FunctionGetSchedulingParamsRequest, caller: str
    ) -> pb.FunctionGetSchedulingParamsResponse:
        configuration = pb.AutoscalerConfiguration(
            settings=self._function(request.function_id).settings
        )
        return pb.FunctionGetSchedulingParamsResponse(autoscaler_configuration=configuration)

    async def FunctionUpdateSchedulingParams(
        self, request: pb.FunctionUpdateSchedulingParamsRequest, caller: str
    ) -> pb.FunctionUpdateSchedulingParamsResponse:
        function = self._function(request.function_id)
        function.settings.MergeFrom(request.settings)
        await self.resettled(function)
        return pb.FunctionUpdateSchedulingParamsResponse(current_settings=function.settings)

    def _known(self, function_id: str, app_id: str, name: str) -> Function:
        """The function of that id; else the app's unpublished one of that name; else a new one."""
        if function_id:
            return self._function(function_id)
        function = Function(id=self.plane.new_id("fu"), app_id=app_id, name=name)
        self.plane.functions[function.id] = function
        return function

    def _function(self, function_id: str) -> Function:
        if function_id not in self.plane.functions:
            raise GRPCError(Status.NOT_FOUND, f"Function with ID '{function_id}' not found")
        return self.plane.functions[function_id]

    def _published(self, name: str) -> App:
        app = self.plane.app_named(name)
        if app is None:
            raise GRPCError(
                Status.NOT_FOUND, f"App '{name}' not found in environment 'main' (or not deployed)"
            )
        return app

    def _vary(self, base: Function, request: pb.FunctionBindParamsRequest) -> Function:
        variant = Function(
            id=self.plane.new_id("fu"),
            app_id=base.app_id,
            name=base.name,
            gpus=list(base.gpus),
            base_id=base.base_id or base.id,
            serialized_params=request.serialized_params or base.serialized_params,
            generation=base.generation,
        )
        variant.definition.CopyFrom(base.definition)
        variant.metadata.CopyFrom(base.metadata)
        variant.settings.CopyFrom(base.settings)
        variant.metadata.base_function_id = variant.base_id
        _apply(request.function_options, variant)
        self.plane.functions[variant.id] = variant
        return variant


def described(plane: Plane, function: Function) -> pb.FunctionData:
    """The function as `Function.info()` and `Server.info()` read it."""
    definition = function.definition
    data = pb.FunctionData(
        module_name=definition.module_name,
        function_name=definition.function_name,
        function_type=definition.function_type,
        timeout_secs=definition.timeout_secs,
        webhook_config=definition.webhook_config,
        method_definitions=definition.method_definitions,
        is_class=definition.is_class,
        is_server=definition.is_server,
        class_parameter_info=definition.class_parameter_info,
        autoscaler_settings=function.settings,
        startup_timeout_secs=definition.startup_timeout_secs,
        routing_region=definition.routing_region,
        experimental_options=definition.experimental_options,
        _experimental_group_size=definition._experimental_group_size,
        flash_service_urls=[function.url] if function.url else [],
    )
    if definition.HasField("http_config"):
        data.http_config.CopyFrom(definition.http_config)
    if definition.HasField("schedule"):
        data.schedule.CopyFrom(definition.schedule)
    for rank, gpu in enumerate(function.gpus or [""]):
        ranked = data.ranked_functions.add(rank=rank)
        ranked.function.CopyFrom(definition)
        if gpu:
            ranked.function.resources.gpu_config.CopyFrom(_gpu_config(gpu))
    return data


def _as_data(request: pb.FunctionCreateRequest) -> pb.FunctionData:
    if request.function_data.ranked_functions:
        return request.function_data
    ranked = pb.FunctionData.RankedFunction(rank=0, function=request.function)
    return pb.FunctionData(function_name=request.function.function_name, ranked_functions=[ranked])


def _merged(data: pb.FunctionData) -> pb.Function:
    """The first-choice function, with what the data around the ranked ones says of all of them."""
    definition = pb.Function()
    definition.CopyFrom(data.ranked_functions[0].function)
    definition.is_server |= data.is_server
    definition.is_class |= data.is_class
    for name in _SHARED_MESSAGES:
        if data.HasField(name):
            getattr(definition, name).CopyFrom(getattr(data, name))
    return definition


def _metadata(
    function: Function, request: pb.FunctionPrecreateRequest
) -> pb.FunctionHandleMetadata:
    metadata = pb.FunctionHandleMetadata(
        function_name=request.function_name,
        function_type=request.function_type,
        app_id=request.app_id,
        definition_id=f"de-{function.id}",
        function_schema=request.function_schema,
        supported_input_formats=request.supported_input_formats,
        supported_output_formats=request.supported_output_formats,
    )
    for name, method in request.method_definitions.items():
        metadata.method_handle_metadata[name].CopyFrom(
            pb.FunctionHandleMetadata(
                use_method_name=name,
                is_method=True,
                function_name=method.function_name,
                function_type=method.function_type,
                app_id=request.app_id,
                function_schema=method.function_schema,
                supported_input_formats=method.supported_input_formats,
                supported_output_formats=method.supported_output_formats,
            )
        )
    return metadata


def _gpu(definition: pb.Function) -> str:
    """`H100` or `H100:8`; empty without a GPU."""
    config = definition.resources.gpu_config
    if not config.count:
        return ""
    return config.gpu_type if config.count == 1 else f"{config.gpu_type}:{config.count}"


def _gpu_config(gpu: str) -> pb.GPUConfig:
    kind, _, count = gpu.partition(":")
    return pb.GPUConfig(gpu_type=kind, count=int(count or 1))


def _apply(options: pb.FunctionOptions, variant: Function) -> None:
    """Change the variant by the options that were given, and by those only."""
    definition = variant.definition
    if options.HasField("resources"):
        definition.resources.MergeFrom(options.resources)
        variant.gpus = [gpu] if (gpu := _gpu(definition)) else []
    if options.HasField("retry_policy"):
        definition.retry_policy.CopyFrom(options.retry_policy)
    given = {descriptor.name for descriptor, _ in options.ListFields()}
    for name in _SCALARS & given:
        setattr(definition, name, getattr(options, name))
    for ours, theirs in _NUMBERS.items():
        if theirs in given:
            setattr(variant.settings, ours, getattr(options, theirs))
    if options.HasField("scheduler_placement"):
        definition.scheduler_placement.CopyFrom(options.scheduler_placement)
    if options.replace_secret_ids or options.secret_ids:
        del definition.secret_ids[:]
        definition.secret_ids.extend(options.secret_ids)
    if options.replace_volume_mounts or options.volume_mounts:
        del definition.volume_mounts[:]
        definition.volume_mounts.extend(options.volume_mounts)


_SCALARS = {
    *("timeout_secs", "max_concurrent_inputs", "target_concurrent_inputs", "batch_max_size"),
    *("batch_linger_ms", "routing_region", "cloud_provider_str"),
}
_NUMBERS = {
    "max_containers": "concurrency_limit",
    "min_containers": "warm_pool_size",
    "buffer_containers": "buffer_containers",
    "scaledown_window": "task_idle_timeout_secs",
}
