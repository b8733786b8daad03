"""Base URLs, request targets, redirects and the choice of a proxy."""

from __future__ import annotations

import pytest

from evalkit.play.urls import BaseUrl, environment_proxy, redirect, request_target


@pytest.mark.parametrize(
    ("url", "expected", "origin"),
    [
        (
            "http://localhost:8000/v1",
            ("http", "localhost", 8000, "/v1"),
            "http://localhost:8000",
        ),
        ("HTTPS://Example.COM/", ("https", "example.com", 443, ""), "https://example.com"),
        ("http://[::1]:8000/a/b//", ("http", "::1", 8000, "/a/b"), "http://[::1]:8000"),
        ("http://10.0.0.1:80", ("http", "10.0.0.1", 80, ""), "http://10.0.0.1"),
        ("https://h:80/%20x", ("https", "h", 80, "/%20x"), "https://h:80"),
    ],
)
def test_a_base_url_is_read(url: str, expected: tuple[str, str, int, str], origin: str) -> None:
    base = BaseUrl.parse(url)
    assert (base, base.origin) == (expected, origin)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:8000", "http:// or https://"),
        ("ftp://host", "http:// or https://"),
        ("", "http:// or https://"),
        ("http://", "host"),
        ("http:///v1", "host"),
        ("http://me:secret@host/v1", "Authorization"),
        ("http://host:99999", "port"),
        ("http://host:secret", "port"),
        ("http://host/v1?key=secret", "no query"),
        ("http://host/v1#secret", "no query"),
        ("http://host/é", "percent-encoded"),
        ("http://hôst/", "ASCII host"),
        ("http://host/ v1", "blanks"),
        ("http://host/\r\nX-A: 1", "blanks"),
        ("http://[::1/v1", "IPv6"),
    ],
)
def test_a_wrong_base_url_says_what_was_expected(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BaseUrl.parse(url)


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="user:password") as caught:
        BaseUrl.parse("http://me:secret@host")
    assert "secret" not in str(caught.value)


def test_a_target_is_prefix_and_path() -> None:
    assert request_target("/v1", "/models?limit=1") == "/v1/models?limit=1"
    assert request_target("", b"/models") == "/models"


@pytest.mark.parametrize("path", ["", "models", "/a b", "/a\r\nX: 1", "/é", "/a#b", b"/\xff", b""])
def test_a_target_cannot_reach_beyond_its_line(path: str | bytes) -> None:
    with pytest.raises(ValueError, match="path"):
        request_target("/v1", path)


@pytest.mark.parametrize(
    ("method", "status", "location", "expected"),
    [
        ("POST", 303, "/poll?id=1", ("GET", "/poll?id=1")),
        ("POST", 303, "https://host/poll", ("GET", "/poll")),
        ("POST", 303, "https://HOST:443/poll#x", ("GET", "/poll")),
        ("POST", 303, "//host", ("GET", "/")),
        ("POST", 303, "poll", ("GET", "/v1/poll")),
        ("POST", 303, "?id=2", ("GET", "/v1/chat?id=2")),
        ("GET", 303, "/poll", ("GET", "/poll")),
        ("POST", 307, "/v2/chat", ("POST", "/v2/chat")),
        ("POST", 308, "/v2/chat", ("POST", "/v2/chat")),
        ("GET", 301, "/models/", ("GET", "/models/")),
        ("GET", 302, "/models/", ("GET", "/models/")),
        ("POST", 301, "/v2/chat", None),
        ("POST", 302, "/v2/chat", None),
        ("GET", 300, "/a", None),
        ("GET", 304, "/a", None),
        ("POST", 303, "", None),
        ("POST", 303, "http://host/poll", None),
        ("POST", 303, "https://host:444/poll", None),
        ("POST", 303, "https://other/poll", None),
        ("POST", 303, "//other/poll", None),
        ("POST", 303, "https://me@host/poll", None),
        ("POST", 307, "https://host.other/poll", None),
        ("POST", 303, "/a b", None),
        ("POST", 303, "http://[", None),
        ("POST", 303, "javascript:alert(1)", None),
    ],
)
def test_redirects_are_followed_within_the_origin(
    method: str, status: int, location: str, expected: tuple[str, str] | None
) -> None:
    base = BaseUrl.parse("https://host/v1")
    assert redirect(base, method, "/v1/chat", status, location) == expected


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("http://host/v1", {}, None),
        ("http://host/v1", {"HTTP_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ("http://host/v1", {"http_proxy": "proxy:3128"}, "http://proxy:3128"),
        ("http://host/v1", {"HTTPS_PROXY": "http://proxy:3128"}, None),
        ("https://host/v1", {"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ("https://host/v1", {"ALL_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ("http://host/v1", {"HTTP_PROXY": ""}, None),
        ("http://host/v1", {"HTTP_PROXY": "p:1", "NO_PROXY": "host"}, None),
        ("http://a.host/v1", {"HTTP_PROXY": "p:1", "NO_PROXY": "x, .host"}, None),
        ("http://host:8000/v1", {"HTTP_PROXY": "p:1", "NO_PROXY": "host:8000"}, None),
        ("http://host/v1", {"HTTP_PROXY": "p:1", "NO_PROXY": "*"}, None),
        ("http://host/v1", {"HTTP_PROXY": "p:1", "NO_PROXY": "other"}, "http://p:1"),
        ("http://localhost:8000/v1", {"HTTP_PROXY": "p:1"}, None),
        ("http://127.0.0.1:8000/v1", {"HTTP_PROXY": "p:1"}, None),
        ("http://[::1]:8000/v1", {"HTTP_PROXY": "p:1"}, None),
    ],
)
def test_the_environment_names_the_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str, environment: dict[str, str], expected: str | None
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert environment_proxy(BaseUrl.parse(url)) == expected
