"""The debugger's pages, asked without a socket."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from evalkit.debug.check import check_run
from evalkit.debug.page import MAX_BENCHES, DebugPages
from evalkit.debug.workbench import MAX_FUTURES
from evalkit.record.rundir import RunDir
from evalkit.run import evaluate
from evalkit.testing import FakePolicy, FakeServer
from evalkit.view.app import View
from evalkit.view.routes import Request, Response

OWN = {"host": "localhost:1", "origin": "http://localhost:1", "content-type": "application/json"}
Post = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with one run of random play."""
    small = {"size": 2, "max_turns": 6}
    run = evaluate("random", "key_door", seeds="3:5", out=tmp_path / "made", env_args=small)
    return Path(shutil.move(run.path, tmp_path / "results" / "run")).parent


@pytest.fixture
def view(results: Path) -> Iterator[View]:
    view = View(results)
    pages = DebugPages(view.folder)
    view.add(*pages.routes())
    yield view
    pages.close()


@pytest.fixture
def post(view: View) -> Post:
    """Post JSON as a page of the server does, to /api/debug and below."""

    def send(path: str = "", **body: Any) -> tuple[int, dict[str, Any]]:
        asked = Request(
            method="POST", path=f"/api/debug{path}", headers=OWN, body=orjson.dumps(body)
        )
        return data(view.answer(asked))

    return send


def data(response: Response) -> tuple[int, dict[str, Any]]:
    assert isinstance(response.body, bytes)
    return response.status, orjson.loads(response.body)


def get(view: View, path: str, **query: str) -> Response:
    return view.answer(Request(path=path, query=query, headers={"host": "localhost:1"}))


def test_an_episode_is_stepped_changed_forked_compared_and_saved(
    view: View, post: Post, results: Path
) -> None:
    status, seen = post(run="run", seed=3, arm="random", repetition=0, turn=2)
    assert (status, seen["turn"], seen["follows_record"]) == (200, 2, True)
    assert seen["model"] == "random=random"
    at = f"/{seen['bench']}"
    assert post(at, verb="do", text="interact")[1]["reply"] == "<action>interact</action>"
    assert post(at, verb="fork", text="1 oracle")[1]["name"] == "oracle"
    assert post(at, verb="model", text="oracle")[1]["model"] == "oracle"
    seen = post(at, verb="run")[1]
    assert (seen["phase"], seen["success"]) == ("over", True)
    assert [branch["name"] for branch in seen["branches"]] == ["main", "oracle"]
    found = get(view, f"/api/debug{at}/futures", left="recorded", right="oracle")
    assert data(found)[1]["parts_at"] == 1
    saved = Path(post(at, verb="save")[1]["saved"])
    assert saved.parent == results
    assert asyncio.run(check_run(saved)).differences == []
    assert data(get(view, f"/api/debug{at}"))[1]["saved"] == str(saved)


def test_what_cannot_be_done_is_said_and_nothing_is_lost(view: View, post: Post) -> None:
    at = f"/{post(run='run', seed=3)[1]['bench']}"
    assert post(at, verb="jump")[0] == 400
    assert post(at, verb="back", text="9") == (
        400,
        {"error": "turn 9 was not reached: turns 0 to 0 were"},
    )
    assert post(at, verb="do", text="jump")[0] == 400
    assert post("/nowhere", verb="step")[0] == 404
    assert data(get(view, f"/api/debug{at}/futures", left="main", right="b"))[0] == 400
    assert post(at, verb="step")[1]["turn"] == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"run": "no", "seed": 3}, "there is no run no"),
        ({"run": "../made", "seed": 3}, "there is no run ../made"),
        ({"run": "run", "seed": 99}, "no finished episode of seed 99"),
        ({"run": "run", "seed": -1}, "seed is a whole number from 0 on, not -1"),
        ({"run": "run", "seed": "3"}, "seed is a whole number from 0 on, not '3'"),
        ({"run": "run", "seed": 3, "arm": "B"}, "no finished episode of seed 3, repetition 0, arm"),
    ],
)
def test_an_episode_that_is_not_there(post: Post, asked: dict[str, Any], said: str) -> None:
    status, answer = post(**asked)
    assert status in {400, 404}
    assert said in answer["error"]


def test_other_sites_can_do_nothing(view: View) -> None:
    body = orjson.dumps({"run": "run", "seed": 3})
    for changed in ({"origin": "http://evil.example"}, {"content-type": "text/plain"}):
        asked = Request(method="POST", path="/api/debug", headers={**OWN, **changed}, body=body)
        assert view.answer(asked).status == 403
    assert view.answer(Request(path="/api/debug", headers=OWN)).status == 405


def test_the_page_begins_nothing_and_is_linked(view: View) -> None:
    page = get(view, "/debug", run="run", seed="3")
    assert isinstance(page.body, bytes)
    assert b"/assets/debug.js" in page.body
    assert get(view, "/debug", run="no").status == 404
    for name in ("debug.js", "debug.css"):
        assert get(view, f"/assets/{name}").status == 200
    episodes = get(view, "/runs/run/episodes", seed="3").body
    assert isinstance(episodes, bytes)
    assert b"/debug?run=run&amp;seed=3&amp;arm=random&amp;repetition=0" in episodes


def test_a_page_reads_no_file_and_asks_no_terminal(post: Post, tmp_path: Path) -> None:
    at = f"/{post(run='run', seed=3)[1]['bench']}"
    secret = tmp_path / "secret"
    secret.write_text("x")
    for model in (f"script:{secret}", "human", "nope"):
        status, answer = post(at, verb="model", text=model)
        assert status == 400
        assert (
            "a page may ask a URL" in answer["error"] or "neither an http(s) URL" in answer["error"]
        )


def test_only_shipped_envs_are_played_by_a_page(post: Post, results: Path) -> None:
    rundir = RunDir(results / "run")
    manifest = rundir.manifest()
    evil = results / "evil.py"
    evil.write_text(f"open({str(results / 'ran')!r}, 'w')")
    manifest["config"]["env"] = f"{evil}:Env"
    rundir.write_manifest(manifest)
    status, answer = post(run="run", seed=3)
    assert (status, "an env of your own" in answer["error"]) == (400, True)
    assert not (results / "ran").exists()


def test_no_key_is_sent_and_what_a_python_object_played_can_be_looked_at(
    post: Post, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "secret")
    with FakeServer(lambda _: "<action>up</action>") as server:
        made: dict[str, Any] = {"seeds": "3:4", "out": tmp_path / "more"}
        run = evaluate(server.url, "key_door", api_key_env=["SECRET"], **made)
        shutil.move(run.path, results / "keyed")
        server.received.clear()
        at = f"/{post(run='keyed', seed=3)[1]['bench']}"
        assert server.received == []
        post(at, verb="live")
        assert post(at, verb="step")[1]["turn"] == 1
        assert {request.headers.get("authorization") for request in server.received} == {None}
    run = evaluate(FakePolicy(lambda _: "<action>up</action>"), "key_door", **made)
    shutil.move(run.path, results / "own")
    seen = post(run="own", seed=3, turn=2)[1]
    assert (seen["turn"], seen["model"]) == (2, "noop")


def test_what_plays_can_be_seen_and_paused(view: View, post: Post) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow(_: dict[str, Any]) -> str:
        asked.set()
        answer.wait(10)
        return "<action>up</action>"

    with FakeServer(slow) as server:
        at = f"/{post(run='run', seed=3)[1]['bench']}"
        post(at, verb="model", text=server.url)
        ended: list[tuple[int, dict[str, Any]]] = []
        playing = threading.Thread(target=lambda: ended.append(post(at, verb="run")))
        playing.start()
        assert asked.wait(10)
        assert data(get(view, f"/api/debug{at}"))[1]["playing"] is True
        assert post(at, verb="step") == (400, {"error": "it is playing: pause it first"})
        assert post(f"{at}/pause")[1]["playing"] is False
        playing.join(10)
        answer.set()
    assert [(status, seen["turn"]) for status, seen in ended] == [(200, 0)]


def test_sessions_are_few(post: Post) -> None:
    first = post(run="run", seed=3)[1]["bench"]
    for _ in range(MAX_BENCHES):
        last = post(run="run", seed=4)[1]["bench"]
    assert post(f"/{first}", verb="step")[0] == 404
    assert post(f"/{last}", verb="step")[0] == 200


def test_a_session_that_is_worked_at_stays(post: Post) -> None:
    first = post(run="run", seed=3)[1]["bench"]
    for _ in range(2 * MAX_BENCHES):
        post(run="run", seed=4)
        assert post(f"/{first}", verb="back", text="0")[0] == 200


def test_futures_are_few_and_numbers_short(post: Post) -> None:
    at = f"/{post(run='run', seed=3)[1]['bench']}"
    assert post(at, verb="run", text="9" * 5000)[1]["error"].startswith("expected a turn")
    for _ in range(MAX_FUTURES - 1):
        assert post(at, verb="fork")[0] == 200
    status, answer = post(at, verb="fork")
    assert (status, answer) == (
        400,
        {"error": f"there are {MAX_FUTURES} futures already: go back in one of them"},
    )
