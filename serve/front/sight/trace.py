"""Traces: a span for each request on the data plane, made when it has ended. OpenTelemetry's door.

The trace that a client began goes on: its `traceparent` is the span's parent, and reaches the
engine whether traces are on or not. Imported only where an endpoint is configured; sampling and
limits are OpenTelemetry's own, by its own environment variables.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SERVICE = "palaestra-gateway"

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
    "/v1/embeddings": "embeddings",
    "/inference/v1/generate": "text_completion",
}
"""Path -> OpenTelemetry's `gen_ai.operation.name`."""


class Tracer:
    """Makes spans and hands them to a processor, which sends them from a thread of its own."""

    def __init__(
        self, processor: SpanProcessor, *, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("palaestra.serve")
        self._propagator = TraceContextTextMapPropagator()
        self._clock_ns = clock_ns

    @classmethod
    def to(cls, endpoint: str) -> Self:
        """Send over OTLP and HTTP to `endpoint`, the whole URL, such as `http://H:4318/v1/traces`.

        What the receiver does not take in time is dropped, never waited for.
        """
        return cls(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))

    def record(self, request: Mapping[str, Any]) -> None:
        """Take one finished request: what the access log gets, and `traceparent`."""
        end_ns = self._clock_ns()
        start_ns = end_ns - int(request["duration_s"] * 1e9)
        path = request["path"]
        operation = _OPERATIONS.get(path, path.rpartition("/")[2])
        span = self._tracer.start_span(
            f"{operation} {request['model']}".rstrip(),
            context=self._parent(request["traceparent"]),
            kind=SpanKind.SERVER,
            start_time=start_ns,
            attributes=_attributes(request, operation),
        )
        if request["status"] < 400:
            first_ns = start_ns + int(request["first_byte_s"] * 1e9)
            span.add_event("first_byte", timestamp=first_ns)
        if request["status"] >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_ns)

    def stop(self) -> None:
        """Send what is left. It waits for the receiver: not for an event loop."""
        self._provider.shutdown()

    def _parent(self, traceparent: str) -> Context:
        carrier = {"traceparent": traceparent} if traceparent else {}
        return self._propagator.extract(carrier, context=Context())


def _attributes(request: Mapping[str, Any], operation: str) -> dict[str, str | int | bool]:
    status = request["status"]
    attributes: dict[str, str | int | bool] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": request["model"],
        "gen_ai.usage.input_tokens": request["prompt_tokens"],
        "gen_ai.usage.output_tokens": request["completion_tokens"],
        "http.request.method": "POST",
        "url.path": request["path"],
        "http.response.status_code": status,
        "palaestra.policy.version": request["version"],
        "palaestra.replica": request["replica"],
        "palaestra.key": request["key"],
        "palaestra.request_id": request["request_id"],
        "palaestra.retries": request["retries"],
        "palaestra.streamed": request["streamed"],
    }
    if status >= 400:
        attributes["error.type"] = str(status)
    return attributes
