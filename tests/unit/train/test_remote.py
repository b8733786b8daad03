"""A gateway that somebody else runs: whether it can be used, and why not."""

from __future__ import annotations

import httpx
import pytest

from train.config import TrainConfig, resolve
from train.errors import BadConfig
from train.remote import base_url, ensure_serves


def config(url: str) -> TrainConfig:
    tree = {"env": {"name": "key_door"}, "model": {"path": "models/m"}}
    return resolve(tree, {"gateway.url": url})


def serving(*names: str, status: int = 200) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        if status != 200:
            return httpx.Response(status, json={"error": {"message": "no"}})
        if names[:1] == ("garbage",):
            return httpx.Response(200, text="<html>")
        assert request.url.path == "/v1/models"
        cards = [{"id": name, "key": request.headers.get("authorization")} for name in names]
        return httpx.Response(200, json={"data": cards})

    return httpx.MockTransport(answer)


URL = "http://127.0.0.1:1/v1"


@pytest.mark.parametrize(
    ("transport", "key", "said"),
    [
        (serving(status=401), None, r"\$PALAESTRA_API_KEY is where .* it is not set"),
        (serving(status=401), "ak_1", "the key in it is not taken"),
        (serving(status=403), "ak_1", "of the scopes train and admin"),
        (serving("a", "b"), None, "does not serve m, but a, b; .*model.name"),
        (serving(), None, "does not serve m, but nothing"),
        (serving("garbage"), None, "http://127.0.0.1:1/v1 is no gateway"),
        (serving(status=404), None, "http://127.0.0.1:1/v1 is no gateway: .*404"),
        (None, None, "no gateway answers at http://127.0.0.1:1/v1: .*refused"),
    ],
)
def test_a_gateway_that_cannot_be_used(
    transport: httpx.MockTransport | None, key: str | None, said: str
) -> None:
    with pytest.raises(BadConfig, match=said):
        ensure_serves(config(URL), key, transport=transport)


def test_a_gateway_that_can_be_used() -> None:
    ensure_serves(config(URL), "ak_1", transport=serving("x", "m"))


@pytest.mark.parametrize("url", ["http://", "nonsense", "http://[::1/v1", "ftp://x/v1"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(BadConfig, match="no gateway answers at"):
        ensure_serves(config(url), None)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_a_url_may_end_with_v1_or_not(url: str) -> None:
    assert base_url(url) == "http://h:1/v1"
