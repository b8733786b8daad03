"""Spans of finished requests."""

from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from serve.front.sight.trace import Tracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
REQUEST: dict[str, Any] = {
    "path": "/v1/chat/completions",
    "status": 200,
    "duration_s": 0.5,
    "first_byte_s": 0.125,
    "key": "ak_1a2b3c4d",
    "model": "m",
    "version": 3,
    "replica": "r0",
    "request_id": "q1",
    "traceparent": f"00-{TRACE}-{PARENT}-01",
    "prompt_tokens": 10,
    "completion_tokens": 4,
    "streamed": True,
    "retries": 1,
    "bytes": 900,
}
NOW_NS = 2_000_000_000


def _spans(**changes: object) -> tuple[ReadableSpan, ...]:
    exporter = InMemorySpanExporter()
    tracer = Tracer(SimpleSpanProcessor(exporter), clock_ns=lambda: NOW_NS)
    tracer.record({**REQUEST, **changes})
    spans = exporter.get_finished_spans()
    tracer.stop()
    return spans


def test_a_span_says_what_happened() -> None:
    (span,) = _spans()
    assert (span.name, span.kind) == ("chat m", SpanKind.SERVER)
    assert (span.start_time, span.end_time) == (NOW_NS - 500_000_000, NOW_NS)
    assert span.attributes is not None
    for name, value in {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 4,
        "http.response.status_code": 200,
        "palaestra.policy.version": 3,
        "palaestra.replica": "r0",
        "palaestra.retries": 1,
    }.items():
        assert span.attributes[name] == value
    (event,) = span.events
    assert (event.name, event.timestamp) == ("first_byte", NOW_NS - 375_000_000)
    assert span.resource.attributes["service.name"] == "palaestra-gateway"


@pytest.mark.parametrize(
    ("traceparent", "goes_on"),
    [(REQUEST["traceparent"], True), ("", False), ("nonsense", False), ("00-0-0-00", False)],
)
def test_the_clients_trace_goes_on(traceparent: str, goes_on: bool) -> None:
    (span,) = _spans(traceparent=traceparent)
    assert span.context is not None
    assert (f"{span.context.trace_id:032x}" == TRACE) is goes_on
    parent = None if span.parent is None else f"{span.parent.span_id:016x}"
    assert parent == (PARENT if goes_on else None)


def test_what_the_client_did_not_sample_is_not_sent() -> None:
    assert _spans(traceparent=f"00-{TRACE}-{PARENT}-00") == ()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (200, StatusCode.UNSET, None),
        (429, StatusCode.UNSET, "429"),
        (499, StatusCode.UNSET, "499"),
        (502, StatusCode.ERROR, "502"),
    ],
)
def test_errors_are_marked(status: int, code: StatusCode, error: str | None) -> None:
    (span,) = _spans(status=status)
    assert span.status.status_code is code
    assert span.attributes is not None
    assert span.attributes.get("error.type") == error
