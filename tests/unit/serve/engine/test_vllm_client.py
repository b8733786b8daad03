"""The client against a vLLM of a few lines; tests/contract has it against a real one."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
import pytest

from serve.engine.vllm import CHANGING, ServedModel, VllmAdmin
from serve.errors import EngineNotReady, SwapFailed
from serve.wire import SwapMode

T = TypeVar("T")
Answers = dict[str, tuple[int, object]]


class Engine(httpx.AsyncBaseTransport):
    """Answers 200 `{}` to everything but `answers`, and notes what it was asked."""

    def __init__(self, answers: Answers) -> None:
        self.answers: Answers = {"/weight_info": (200, {"weight_version": "p@1"}), **answers}
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        values = [*request.url.params.values(), *map(str, body.values())]
        self.asked.append(" ".join([request.url.path, *values]))
        status, answer = self.answers.get(request.url.path, (200, {}))
        if not status:
            raise httpx.ConnectError("refused")
        if isinstance(answer, str):
            return httpx.Response(status, text=answer)
        return httpx.Response(status, json=answer)


def ask(engine: Engine, question: Callable[[VllmAdmin], Awaitable[T]]) -> T:
    async def run() -> T:
        async with VllmAdmin("http://127.0.0.1:1", transport=engine) as admin:
            return await question(admin)

    return asyncio.run(run())


BEGUN = ["/weight_info", "/start_weight_update"]
READ = [*BEGUN, "/update_weights {'path': '/w', 'apply': False}"]
PAUSED = [*READ, "/pause keep true"]
LABELLED = [*PAUSED, f"/update_weight_version {CHANGING}"]
UPDATED = [*LABELLED, "/update_weights {'path': '/w', 'apply': True}"]


def swap(engine: Engine, mode: SwapMode = SwapMode.WAIT) -> list[str]:
    """Swap to p@2, noting in the order of the calls when the new weights were in."""
    applied = lambda: engine.asked.append("applied")  # noqa: E731
    ask(engine, lambda admin: admin.swap_weights("/w", "p@2", mode, applied))
    return engine.asked


@pytest.mark.parametrize(
    ("mode", "pause"),
    [(SwapMode.WAIT, "keep"), (SwapMode.KEEP, "keep"), (SwapMode.ABORT, "abort")],
)
def test_a_swap_is_told_of_between_the_new_weights_and_the_next_token(
    mode: SwapMode, pause: str
) -> None:
    asked = swap(Engine({}), mode)
    assert asked[:4] == [*READ, f"/pause {pause} true"]
    assert asked[4:] == [*UPDATED[4:], "/finish_weight_update p@2", "applied", "/resume"]


@pytest.mark.parametrize(
    ("answers", "asked", "reason"),
    [
        ({"/pause": (500, {"error": "no"})}, [*PAUSED, "/resume"], "500 no"),
        (
            {"/start_weight_update": (500, "Internal\nServer Error")},
            [*BEGUN, "/finish_weight_update", BEGUN[1]],
            "500 Internal Server Error",
        ),
        (
            {"/update_weights": (500, {"error": {"message": "does not fit"}})},
            READ,
            "update_weights: 500 does not fit",
        ),
        ({"/weight_info": (404, {"detail": "Not Found"})}, BEGUN[:1], "has no routes to change"),
    ],
)
def test_a_swap_that_is_refused_leaves_label_and_tokens_as_they_were(
    answers: Answers, asked: list[str], reason: str
) -> None:
    engine = Engine(answers)
    with pytest.raises(SwapFailed, match=reason):
        swap(engine)
    assert engine.asked == asked


class Turning(Engine):
    """Answers otherwise from the first time on that it was asked for `path`."""

    def __init__(self, answers: Answers, path: str, then: Answers) -> None:
        super().__init__(answers)
        self.path = path
        self.then = then

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        if request.url.path == self.path:
            self.answers.update(self.then)
        return answer


def test_weights_that_were_read_and_refused_leave_label_and_tokens_as_they_were() -> None:
    engine = Turning({}, "/pause", {"/update_weights": (500, "no")})
    with pytest.raises(SwapFailed, match="update_weights: 500 no"):
        swap(engine)
    assert engine.asked == [*UPDATED, "/update_weight_version p@1", "/resume"]


def test_an_update_left_open_is_closed_first() -> None:
    engine = Turning(
        {"/start_weight_update": (500, {"error": "already active"})},
        "/finish_weight_update",
        {"/start_weight_update": (200, {})},
    )
    assert swap(engine)[1:4] == [BEGUN[1], "/finish_weight_update", BEGUN[1]]
    assert engine.asked[-2:] == ["applied", "/resume"]


@pytest.mark.parametrize("path", ["/update_weights", "/finish_weight_update"])
def test_an_engine_lost_in_the_middle_does_not_keep_the_old_label(path: str) -> None:
    engine = Turning({}, "/pause", {path: (0, "")})
    with pytest.raises(EngineNotReady, match="refused"):
        swap(engine)
    labels = [asked for asked in engine.asked if asked.startswith("/update_weight_version")]
    assert labels == [f"/update_weight_version {CHANGING}"]
    assert engine.asked[-1] == "/resume"


@pytest.mark.parametrize(
    "then",
    [
        {"/finish_weight_update": (500, "no")},
        {"/resume": (500, "no")},
        {"/update_weights": (500, "bad"), "/resume": (500, "no")},
    ],
)
def test_an_engine_in_between_is_not_taken_for_one_that_goes_on(then: Answers) -> None:
    with pytest.raises(EngineNotReady, match="500 no"):
        swap(Turning({}, "/pause", then))


def test_models_with_their_adapters() -> None:
    cards = [{"id": "p", "root": "/w", "parent": None}, {"id": "p@2", "root": "/l", "parent": "p"}]
    engine = Engine({"/v1/models": (200, {"data": [*cards, {"id": "q"}]})})
    assert ask(engine, lambda admin: admin.models()) == (
        ServedModel(name="p", root="/w"),
        ServedModel(name="p@2", root="/l", parent="p"),
        ServedModel(name="q"),
    )


@pytest.mark.parametrize(
    "answer", [(200, "<html>"), (200, {}), (200, []), (200, {"data": ["p"]}), (401, {}), (0, "")]
)
def test_no_list_of_models(answer: tuple[int, object]) -> None:
    with pytest.raises(EngineNotReady, match="v1/models"):
        ask(Engine({"/v1/models": answer}), lambda admin: admin.models())


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ((200, {"weight_version": "p@3"}), "p@3"),
        ((404, {"detail": "Not Found"}), None),
        ((200, "<html>a front page</html>"), None),
        ((200, {"other": 1}), None),
    ],
)
def test_label(answer: tuple[int, object], label: str | None) -> None:
    assert ask(Engine({"/weight_info": answer}), lambda admin: admin.weight_info()) == label


def test_adapters() -> None:
    engine = Engine({"/v1/unload_lora_adapter": (404, {"error": {"message": "not found"}})})
    ask(engine, lambda admin: admin.load_lora("p@2", "/l"))
    ask(engine, lambda admin: admin.unload_lora("p@2"))
    assert engine.asked == ["/v1/load_lora_adapter p@2 /l", "/v1/unload_lora_adapter p@2"]
    engine.answers["/v1/load_lora_adapter"] = (400, {"error": {"message": "already loaded"}})
    with pytest.raises(SwapFailed, match="400 already loaded"):
        ask(engine, lambda admin: admin.load_lora("p@2", "/l"))
    engine.answers["/v1/unload_lora_adapter"] = (500, {})
    with pytest.raises(SwapFailed, match="500"):
        ask(engine, lambda admin: admin.unload_lora("p@2"))


@pytest.mark.parametrize(
    ("answer", "resumed"),
    [((200, {"is_paused": True}), True), ((200, {"is_paused": False}), False), ((404, {}), False)],
)
def test_a_pause_left_behind_is_ended(answer: tuple[int, object], resumed: bool) -> None:
    engine = Engine({"/is_paused": answer})
    ask(engine, lambda admin: admin.resume())
    assert ("/resume" in engine.asked) is resumed


def test_metrics_are_summed_over_engines() -> None:
    text = """# HELP vllm:num_requests_running Number of requests
vllm:num_requests_running{engine="0",model_name="p"} 3.0
vllm:num_requests_running{engine="1",model_name="p"} 2.0
vllm:prefix_cache_hits_total{engine="0",model_name="p"} 1.5e+3
vllm:prefix_cache_hits_created{engine="0",model_name="p"} 1.7e+09
vllm:kv_cache_usage_perc{engine="0",model_name="p"} 0.25
other 1
"""
    found = ask(Engine({"/metrics": (200, text)}), lambda admin: admin.metrics())
    assert found == {"running": 5.0, "prefix_cache_hits": 1500.0, "kv_cache_usage": 0.25}


def test_small_questions() -> None:
    engine = Engine({"/version": (200, {"version": "0.32.0"})})
    assert ask(engine, lambda admin: admin.version()) == "0.32.0"
    ask(engine, lambda admin: admin.reset_prefix_cache())
    ask(engine, lambda admin: admin.label_weights("p@1"))
    assert engine.asked[1:] == ["/reset_prefix_cache", "/update_weight_version p@1"]
