"""Who may look."""

from __future__ import annotations

import pytest

from evalkit.errors import BadConfig
from evalkit.view.guard import Guard, required_token
from evalkit.view.routes import Request

TOKEN = "abcdef0123456789"
GUARD = Guard(token=TOKEN, port=8780)
COOKIE = f"evalkit_view_8780={TOKEN}"


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:8780", True),
        ("127.0.0.1:8780", True),
        ("127.0.0.1", True),
        ("[::1]:8780", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example:8780", False),
        ("localhost@evil.example", False),
        ("[", False),
        ("", False),
    ],
)
def test_only_names_of_this_machine_are_answered(host: str, allowed: bool) -> None:
    refusal = Guard(port=8780).refusal(Request(path="/", headers={"host": host}))
    assert (refusal is None) is allowed
    assert refusal is None or refusal.status == 403


@pytest.mark.parametrize(
    ("origin", "kind", "allowed"),
    [
        ("http://localhost:8780", "application/json", True),
        ("http://localhost:8780", "application/json; charset=utf-8", True),
        ("http://localhost:8780", "text/plain", False),
        ("http://localhost:9999", "application/json", False),
        ("http://evil.example", "application/json", False),
        ("null", "application/json", False),
        ("http://[x", "application/json", False),
        ("", "application/json", False),
    ],
)
def test_what_changes_something_comes_from_a_page_of_ours(
    origin: str, kind: str, allowed: bool
) -> None:
    headers = {"host": "localhost:8780", "origin": origin, "content-type": kind}
    refusal = Guard(port=8780).refusal(Request(path="/api", method="POST", headers=headers))
    assert (refusal is None) is allowed


def test_a_token_becomes_a_cookie_and_leaves_the_address() -> None:
    asked = Request(path="/runs/x", query={"token": TOKEN, "a": "1 2"}, headers={"host": "any"})
    answer = GUARD.refusal(asked)
    assert answer is not None
    headers = dict(answer.headers)
    assert (answer.status, headers["Location"]) == (303, "/runs/x?a=1+2")
    assert headers["Set-Cookie"] == f"{COOKIE}; Path=/; HttpOnly; SameSite=Strict"


@pytest.mark.parametrize("path", ["//evil.example/x", "/\\evil.example", "/a\tb"])
def test_a_token_sends_nobody_elsewhere(path: str) -> None:
    answer = GUARD.refusal(Request(path=path, query={"token": TOKEN}))
    assert answer is not None
    assert dict(answer.headers)["Location"] == "/"


@pytest.mark.parametrize(
    ("query", "cookie", "passes"),
    [
        ({}, COOKIE, True),
        ({}, f"other=1; {COOKIE}", True),
        ({}, f'theirs={{"a": 1}}; @; {COOKIE}; last', True),
        ({}, "", False),
        ({}, "evalkit_view_8780=wrong", False),
        ({}, f"evalkit_view_1={TOKEN}", False),
        ({"token": "wrong"}, "", False),
        ({"token": "\udcff"}, "", False),
    ],
)
def test_pages_ask_for_the_token(query: dict[str, str], cookie: str, passes: bool) -> None:
    answer = GUARD.refusal(Request(path="/", query=query, headers={"cookie": cookie}))
    assert (answer is None) is passes
    if answer is not None:
        assert answer.status == 401
        assert isinstance(answer.body, bytes)
        assert TOKEN not in answer.body.decode()
        assert 'name="token"' in answer.body.decode()


def test_listening_elsewhere_needs_a_token() -> None:
    assert required_token("127.0.0.1", None, "") is None
    assert required_token("0.0.0.0", "T", TOKEN) == TOKEN
    with pytest.raises(BadConfig, match=r"--host 0\.0\.0\.0 lets others in.*--token-env"):
        required_token("0.0.0.0", None, "")
    for short in ("", "short", "with space and more text", "ümlautümlautümlaut"):
        with pytest.raises(BadConfig, match="T holds no token: expected 16"):
            required_token("127.0.0.1", "T", short)
