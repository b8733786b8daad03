import json

import httpx
import pytest

from serve.deploy.smoke_test import check
from serve.errors import DeployError

CHAT = {"choices": [{"message": {"content": "hello"}}]}
STREAM = b'data: {"choices":[{"delta":{"content":"he"}}]}\n\ndata: [DONE]\n\n'


class Edge(httpx.BaseTransport):
    """Answers as told, and as a gateway when there is nothing more to tell."""

    def __init__(self, *answers: httpx.Response | Exception, stream: bytes = STREAM) -> None:
        self._answers = list(answers)
        self._stream = stream
        self.keys: set[str] = set()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.keys.add(request.headers.get("authorization", ""))
        if self._answers:
            answer = self._answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        if request.url.path == "/health":
            return httpx.Response(200, json={"version": "0.1.0"})
        if json.loads(request.content).get("stream"):
            return httpx.Response(200, content=self._stream)
        return httpx.Response(200, json=CHAT, headers={"x-policy-version": "3"})


def lines(edge: Edge, waits: list[float], within_s: float = 60.0, key: str = "k") -> list[str]:
    found = check(
        "http://edge/v1", key, "mine", within_s=within_s, transport=edge, sleep=waits.append
    )
    return list(found)


def test_it_says_who_answered_what() -> None:
    edge = Edge()
    first, second, third = lines(edge, [])
    assert first == "gateway  http://edge/v1 answers, version 0.1.0"
    assert second.startswith("chat     mine@3 said 'hello' after")
    assert third == "stream   1 pieces"
    assert edge.keys == {"Bearer k"}


def test_a_cold_start_is_waited_out() -> None:
    waits: list[float] = []
    edge = Edge(
        httpx.Response(503),
        httpx.ConnectError("refused"),
        httpx.Response(503, headers={"retry-after": "7"}),
        httpx.Response(429, headers={"retry-after": "nonsense"}),
    )
    assert len(lines(edge, waits)) == 3
    assert waits == [1.0, 1.0, 7.0, 1.0]


@pytest.mark.parametrize(
    ("edge", "said"),
    [
        (Edge(httpx.Response(401, json={"error": {"message": "no key"}})), "PALAESTRA_API_KEY"),
        (Edge(httpx.Response(404, text="nothing here")), "refused with 404: nothing here"),
        (Edge(*[httpx.Response(503, text="")] * 9), "in time; the last: 503"),
        (Edge(*[httpx.ReadTimeout("slow")] * 9), "ReadTimeout: slow"),
        (Edge(stream=b"data: {}\n\n"), "ended without [DONE]"),
        (Edge(stream=b'data: {"choices":[]}\n\ndata: [DONE]\n\n'), "no text"),
    ],
)
def test_what_is_wrong_is_one_telling_line(edge: Edge, said: str) -> None:
    with pytest.raises(DeployError) as caught:
        lines(edge, [], within_s=0.5)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
