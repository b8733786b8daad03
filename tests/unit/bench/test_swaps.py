"""What bench/swaps.py makes of answers: which are lost, which labels are wrong, who waited."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from bench.swap_parts.clients import Answer, Clients, Form, Span, read
from bench.swap_parts.judge import Claim, Judge, lacks, split
from bench.swap_parts.site import Pinned, Swap
from bench.swaps import PARTS, Result, main, table

PROMPT = (7, 8)
BEST = -0.25


@dataclass(frozen=True)
class Scored:
    logprobs: list[float]
    best: list[float]


def logprob(version: int, token: int) -> float:
    """Of a token by a version, in this file's world."""
    return -version - token / 16


def oracle(
    version: int, answers: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> list[Scored]:
    assert all(prompt == PROMPT for prompt, _ in answers)
    return [
        Scored([logprob(version, token) for token in ids], [BEST] * len(ids)) for _, ids in answers
    ]


def answer(*made_by: int, form: Form = Form.GENERATE, **told: Any) -> Answer:
    """An answer of which each token was made by the version that is named."""
    ids = list(range(len(made_by)))
    about: dict[str, Any] = {
        "form": form,
        "prompt": PROMPT,
        "wanted": len(ids),
        "started_s": 0.0,
        "ended_s": 1.0,
        "status": 200,
        "version": made_by[0] if made_by else 1,
        "ids": ids,
        "logprobs": [logprob(version, token) for version, token in zip(made_by, ids, strict=True)],
        "finish_reason": "length",
    }
    return Answer(**(about | told))


def judged(*answers: Answer, by_spans: bool = True, upper: int = 9) -> Any:
    return Judge(oracle, lambda _: upper, 1e-3, by_spans=by_spans).judge(answers)


def spans(*told: tuple[str, int, int]) -> list[Span]:
    return [Span(label=f"tiny@{label}", start=start, end=end) for label, start, end in told]


def test_an_answer_of_the_version_that_it_names_is_right() -> None:
    verdict = judged(answer(2, 2, 2), answer(3, 3))
    assert (verdict.answers, verdict.tokens, verdict.versions) == (2, 5, {2, 3})
    assert (verdict.failed, verdict.lost, verdict.wrong) == ([], [], [])
    assert (verdict.crossing, verdict.blind) == (0, 0)


@pytest.mark.parametrize("by_spans", [True, False])
@pytest.mark.parametrize("made_by", [(3, 3, 3), (2, 2, 3), (3, 2, 2)])
def test_a_single_token_of_another_version_is_a_wrong_label(
    made_by: tuple[int, ...], by_spans: bool
) -> None:
    assert len(judged(answer(*made_by, version=2), by_spans=by_spans).wrong) == 1


def test_spans_say_which_version_made_which_token() -> None:
    told: dict[str, Any] = {"version": 2, "end": 3}
    right = answer(2, 2, 3, spans=spans(("2", 0, 2), ("3?", 2, 3)), **told)
    early = answer(2, 2, 3, spans=spans(("2", 0, 1), ("3", 1, 3)), **told)
    late = answer(2, 2, 3, spans=spans(("2", 0, 3)), **told)
    hole = answer(2, 2, 3, spans=spans(("2", 0, 1), ("3", 2, 3)), **told)
    assert judged(right).wrong == []
    assert judged(right).versions == {2, 3}
    for wrong in (early, late, hole):
        assert len(judged(wrong).wrong) == 1


def test_spans_must_be_among_what_the_head_says() -> None:
    crossed = spans(("2", 0, 2), ("3", 2, 3))
    hidden = answer(2, 2, 3, version=2, spans=crossed)
    assert "its head" in judged(hidden).wrong[0]
    newer = answer(4, 4, version=2, end=3, spans=spans(("4", 0, 2)))
    assert "its head" in judged(newer).wrong[0]


def test_spans_of_a_base_say_nothing_of_its_adapters() -> None:
    adapted = answer(5, 5, spans=spans(("1", 0, 2)))
    assert judged(adapted, by_spans=False).wrong == []
    assert len(judged(adapted).wrong) == 1


def test_without_spans_an_answer_that_crossed_is_cut_where_it_can_be() -> None:
    told: dict[str, Any] = {"version": 2, "end": 4}
    assert judged(answer(2, 3, 4, **told)).wrong == []
    assert judged(answer(4, 4, **told)).wrong == []
    assert len(judged(answer(2, 5, 5, **told)).wrong) == 1
    assert len(judged(answer(4, 3, 2, **told)).wrong) == 1
    assert judged(answer(2, 3, 4, **told)).crossing == 1


def test_an_answer_that_ended_unproven_may_be_of_what_was_published_by_then() -> None:
    told: dict[str, Any] = {"version": 2, "end": 0}
    assert judged(answer(2, 3, **told), upper=3).wrong == []
    assert len(judged(answer(2, 3, **told), upper=2).wrong) == 1


@pytest.mark.parametrize("by_spans", [True, False])
def test_labels_that_run_backwards_are_wrong(by_spans: bool) -> None:
    backwards = answer(3, 2, end=2, spans=spans(("3", 0, 1), ("2", 1, 2)))
    assert len(judged(backwards, by_spans=by_spans).wrong) == 1


def test_a_greedy_token_must_be_the_likeliest() -> None:
    unlikely = answer(2, 2)
    assert judged(unlikely).wrong == []
    assert len(judged(replace(unlikely, form=Form.CHAT)).wrong) == 1


def test_what_the_version_before_explains_as_well_is_counted() -> None:
    def same(version: int, answers: Sequence[Any]) -> list[Scored]:
        return oracle(max(version, 3), answers)

    judge = Judge(same, lambda _: 9, 1e-3, by_spans=True)
    assert judge.judge([answer(3, 3)]).blind == 1
    assert judge.judge([answer(4, 4)]).blind == 0


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({"wanted": 4}, "2 tokens instead of 4"),
        ({"finish_reason": "abort"}, "ended by abort"),
        ({"finish_reason": None}, "ended by None"),
        ({"logprobs": [0.0]}, "1 logprobs"),
        ({"told_prompt": (7,)}, "prompt"),
    ],
)
def test_tokens_that_are_not_there_are_lost(told: dict[str, Any], what: str) -> None:
    given = answer(2, 2, **told)
    assert what in lacks(given)
    verdict = judged(given)
    assert (len(verdict.lost), verdict.failed, verdict.wrong) == (1, [], [])
    assert lacks(answer(2, 2, told_prompt=PROMPT)) == ""


def test_a_failure_is_a_failure() -> None:
    verdict = judged(answer(2, 2, failure="503: busy"))
    assert (len(verdict.failed), verdict.lost, verdict.wrong) == (1, [], [])


def test_an_older_version_takes_what_it_can() -> None:
    off = {1: [0.0, 0.0, 1.0], 2: [1.0, 0.0, 0.0], 3: [1.0, 1.0, 1.0]}
    assert split(off, (1, 2, 3), 0.5) == [
        Claim(version=1, start=0, end=2),
        Claim(version=2, start=2, end=3),
    ]
    assert split(off, (2, 3), 0.5) == []


EVENTS: list[dict[str, Any]] = [
    {"choices": [{"delta": {"role": "assistant"}}], "prompt_token_ids": [7, 8]},
    {"choices": [{"token_ids": [1], "logprobs": {"content": [{"logprob": -0.5}]}}]},
    {
        "choices": [
            {
                "token_ids": [2],
                "logprobs": {"content": [{"logprob": -1.5}]},
                "finish_reason": "length",
                "weight_versions": [{"version": "tiny@3?", "start": 0, "end": 2}],
            }
        ]
    },
]
STREAM = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in EVENTS)
DONE = b"data: [DONE]\n\n"


def blank(form: Form, status: int = 200) -> Answer:
    return Answer(form=form, prompt=PROMPT, wanted=2, started_s=0.0, status=status)


def test_a_stream_is_read_to_its_end() -> None:
    found = blank(Form.CHAT_STREAM)
    read(found, STREAM + DONE)
    assert (found.ids, found.logprobs, found.finish_reason) == ([1, 2], [-0.5, -1.5], "length")
    assert found.told_prompt == PROMPT
    assert [span.version for span in found.spans] == [3]
    assert lacks(found) == ""


@pytest.mark.parametrize("raw", [STREAM, b'data: {"error": {}}\n\n' + DONE])
def test_a_stream_that_is_cut_or_tells_an_error_is_no_answer(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"a stream that ends|an error event"):
        read(blank(Form.CHAT_STREAM), raw)


def test_a_refusal_is_a_failure() -> None:
    found = blank(Form.CHAT, status=503)
    read(found, b"busy")
    assert found.failure == "503: b'busy'"


async def serving(raw: bytes, asked: list[bytes]) -> asyncio.Server:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        asked.append(head + await reader.readexactly(length))
        writer.write(raw)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(talk, "127.0.0.1", 0)


def chunked(*parts: bytes, trailer: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Policy-Version: 2\r\n\r\n"
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return head + body + b"0\r\n" + trailer + b"\r\n"


def asked_once(raw: bytes) -> tuple[Answer, bytes]:
    """What the first of one client's answers is, where everybody gets `raw`."""

    async def talk() -> tuple[Answer, bytes]:
        asked: list[bytes] = []
        server = await serving(raw, asked)
        async with server:
            clients = Clients(server.sockets[0].getsockname()[1], "tiny", [("hi", PROMPT)], 1)
            async with clients.asking():
                while not clients.answers:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        return clients.answers[0], asked[0]

    return asyncio.run(talk())


def test_a_client_notes_the_trailer_and_when_each_chunk_came() -> None:
    raw = chunked(STREAM, DONE, trailer=b"X-Policy-Version-End: 0\r\n")
    found, asked = asked_once(raw)
    assert (found.failure, found.version, found.end, found.ids) == ("", 2, 0, [1, 2])
    assert len(found.came_s) == 2
    assert len(found.gaps_s) == 1
    assert asked.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    body = json.loads(asked.partition(b"\r\n\r\n")[2])
    assert (body["stream"], body["ignore_eos"], body["temperature"]) == (True, True, 0)
    assert body["max_tokens"] == found.wanted


@pytest.mark.parametrize(
    "raw", [b"", chunked(STREAM)[:-20], b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno"]
)
def test_an_answer_that_breaks_off_is_a_failure(raw: bytes) -> None:
    assert asked_once(raw)[0].failure != ""


def swap(version: int, started_s: float, live_s: float) -> Swap:
    return Swap(version=version, started_s=started_s, durable_s=started_s, live_s=live_s)


def result(**told: Any) -> Result:
    streams = [
        answer(1, 1, came_s=[0.1, 0.2, 0.5], ended_s=0.6),
        answer(1, 1, came_s=[10.1, 11.4], ended_s=11.5),
        answer(2, 2, came_s=[11.3, 11.4, 11.6], ended_s=11.7),
        answer(2, 2, came_s=[11.7, 11.8, 12.5], ended_s=12.6, end=3),
    ]
    about: dict[str, Any] = {
        "part": "full",
        "swaps": [swap(2, 10.0, 11.0), swap(3, 11.5, 14.0)],
        "answers": streams,
        "verdict": judged(answer(2, 2)),
        "pinned": [],
    }
    return Result(**(about | told))


def test_who_waited_is_who_saw_a_version_go_live() -> None:
    found = result()
    assert found.quiet_gaps_s == pytest.approx([0.1, 0.3])
    assert found.quiet_pauses_s == pytest.approx([0.3])
    assert found.pauses_s == pytest.approx([1.3, 0.7])


def test_clean_is_what_nothing_can_be_said_against() -> None:
    good = Pinned(version=1, model="tiny@1", rounds=1, turns=4, labels={"1"}, texts=[("a",)])
    assert result(pinned=[good]).is_clean
    for bad in (
        replace(good, errors=1),
        replace(good, labels={"1", "2"}),
        replace(good, texts=[("a",), ("b",)]),
    ):
        assert not result(pinned=[bad]).is_clean
    assert not result(verdict=judged(answer(2, 2, version=3))).is_clean
    assert not result(verdict=judged(answer(2, 2, wanted=3))).is_clean
    assert not result(verdict=judged(answer(2, 2, failure="x"))).is_clean


def test_the_table_has_a_column_for_each_part() -> None:
    early = Pinned(version=2, model="early", rounds=3, turns=12, labels={"2"}, texts=[("a",)] * 3)
    lines = table([result(), result(part="lora", pinned=[early])])
    assert lines[0] == "| | full | lora |"
    assert all(line.count("|") == 4 for line in lines)
    cells = {name: rest for _, name, *rest, _ in (map(str.strip, x.split("|")) for x in lines)}
    assert cells["versions published"] == ["2", "2"]
    assert cells["versions/s"] == ["0.50", "0.50"]
    assert cells["s from publish to live: median, p95, max"][0] == "1.75, 2.42, 2.50"
    assert cells["**wrong labels**"] == ["0", "0"]
    told = cells["evaluation pinned to version 2"]
    assert told == ["", "3 rounds, 12 turns, 0 errors, labels: 2; rounds unlike the first: 0"]


@pytest.fixture
def typed() -> Iterator[list[str]]:
    kept = sys.argv
    sys.argv = ["swaps.py"]
    yield sys.argv
    sys.argv = kept


@pytest.mark.parametrize("words", [["--only", "none"], ["--swaps", "1"], ["--clients", "0"]])
def test_what_cannot_be_measured_is_refused(
    words: list[str], typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed += words
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert ", ".join(PARTS) in capsys.readouterr().err
