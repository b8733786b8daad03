"""What each address shows."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import orjson
import pytest

from evalkit.view.app import View
from evalkit.view.folder import RunFolder
from evalkit.view.reports import Reports
from evalkit.view.routes import Request, Response, Route

from .conftest import EVIL, Get, text, unfinished

OWN = {"host": "localhost", "origin": "http://localhost", "content-type": "application/json"}


class Tags(HTMLParser):
    """What a browser would make of a page: tags, their attributes, and the links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def links(self) -> list[str]:
        return [attrs["href"] or "" for tag, attrs in self.seen if tag == "a" and "href" in attrs]


def test_the_index_lists_the_runs(get: Get) -> None:
    page = text(get("/"))
    assert {"/runs/pair", "/runs/evil", "/runs/ttt"} <= set(Tags(page).links())
    assert "3 runs" in page
    assert "good is better than bad: +" in page
    assert page.count('class="state finished"') == 3


@pytest.mark.parametrize(
    ("query", "listed"),
    [
        ({"env": "tic_tac_toe"}, ["ttt"]),
        ({"env": "key_door", "sort": "name"}, ["evil", "pair"]),
        ({"model": "oracle"}, ["pair"]),
        ({"model": "random", "sort": "success"}, ["pair", "ttt"]),
        ({"sort": "name"}, ["evil", "pair", "ttt"]),
        ({"env": "<b>"}, []),
    ],
)
def test_the_index_is_filtered_and_sorted(
    get: Get, query: dict[str, str], listed: list[str]
) -> None:
    page = text(get("/", **query))
    links = [link for link in Tags(page).links() if link.startswith("/runs/")]
    assert links == [f"/runs/{name}" for name in listed]
    assert ("No run is like that" in page) is (listed == [])


def test_a_run_alone_is_opened_at_once(runs: Path) -> None:
    view = View(runs / "pair")
    answer = view.answer(Request(path="/", headers={"host": "localhost"}))
    assert (answer.status, dict(answer.headers)["Location"]) == (303, "/runs/.")
    page = view.answer(Request(path="/runs/.", headers={"host": "localhost"}))
    assert (page.status, "/" in Tags(text(page)).links()) == (200, False)


def test_a_run_has_its_report_in_a_frame(get: Get) -> None:
    tags = Tags(text(get("/runs/pair"))).seen
    frames = [attrs for tag, attrs in tags if tag == "iframe"]
    assert frames == [{"title": "Report", "src": "/runs/pair/report"}]
    report = get("/runs/pair/report")
    assert report.status == 200
    assert "good is better than bad" in text(report)
    policy = dict(report.headers)["Content-Security-Policy"]
    assert "frame-ancestors 'self'" in policy


def test_the_report_of_a_finished_run_is_what_compare_and_summary_say(get: Get, runs: Path) -> None:
    (line, *_) = [
        line for line in (runs / "pair" / "report.md").read_text().splitlines() if "**" in line
    ]
    claim = line.strip("-* ").partition(":")[0]
    assert claim in text(get("/runs/pair/report"))


def test_two_runs_of_one_env_are_compared(get: Get, runs: Path) -> None:
    again = runs / "again"
    (runs / "pair").rename(again)
    page = get("/compare", a="again", b="evil")
    assert page.status == 400
    assert "did not play the same env" in text(page)
    assert get("/compare", a="again").status == 400
    assert get("/compare", a="again", b="nope").status == 404
    assert "compared with itself" in text(get("/compare", a="again", b="again"))


def test_two_runs_are_shown_side_by_side(get: Get, runs: Path, made: Path) -> None:
    shutil.copytree(made / "ttt", runs / "sub" / "other")
    tags = Tags(text(get("/compare", a="ttt", b="sub/other"))).seen
    (frame,) = [attrs["src"] for tag, attrs in tags if tag == "iframe"]
    assert frame == "/compare/report?a=ttt&b=sub%2Fother"
    assert "between A and B" in text(get("/compare/report", a="ttt", b="sub/other"))
    assert "/runs/sub%2Fother" in Tags(text(get("/"))).links()
    assert get("/runs/sub%2Fother/report").status == 200


def test_episodes_are_shown_turn_by_turn(get: Get) -> None:
    page = text(get("/runs/pair/episodes", seed="3"))
    assert page.index("bad") < page.index("good")
    assert "<h4>turn 0</h4>" in page
    assert page.count("aria-current=page") == 1
    assert "no arm" in text(get("/runs/pair/episodes", seed="77")).lower()
    refused = get("/runs/pair/episodes", seed="x")
    assert (refused.status, "?seed= is a whole number" in text(refused)) == (400, True)


@pytest.mark.parametrize("path", ["/runs/evil/episodes", "/runs/evil/report", "/", "/runs/evil"])
def test_what_a_model_wrote_is_text(get: Get, path: str) -> None:
    page = text(get(path))
    assert EVIL not in page
    tags = Tags(page).seen
    assert [tag for tag, _ in tags if tag == "img"] == []
    assert not any(name.startswith("on") for _, attrs in tags for name in attrs)


def test_what_a_manifest_says_is_text(get: Get, runs: Path) -> None:
    manifest = orjson.loads((runs / "ttt" / "manifest.json").read_bytes())
    manifest["env"]["id"] = manifest["config_digest"] = manifest["started_at"] = EVIL
    manifest["env"]["params"] = {EVIL: EVIL}
    for name in ("model", "strategy"):
        manifest["arms"][0][name] = EVIL
    (runs / "ttt" / "manifest.json").write_bytes(orjson.dumps(manifest))
    (runs / "pair" / "manifest.json").write_text(f'{{"format":"run/1","finished_at":"{EVIL}"')
    for path in ("/", "/runs/ttt/files", "/runs/ttt", "/runs/ttt/episodes", "/runs/pair"):
        tags = Tags(text(get(path, env=EVIL if path == "/" else "")) + text(get("/"))).seen
        assert [tag for tag, _ in tags if tag == "img"] == [], path
        assert {attrs.get("src") for tag, attrs in tags if tag == "script"} <= {"/assets/view.js"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/runs/pair/files/summary.csv", 200),
        ("/runs/pair/files/report.md", 200),
        ("/runs/pair/files/trajectories.jsonl", 404),
        ("/runs/pair/files/..%2f..%2fttt%2fsummary.csv", 404),
        ("/runs/..%2fmade/files/summary.csv", 404),
        ("/runs/%2fetc/files/passwd", 404),
        ("/runs/nope", 404),
        ("/runs/pair%00", 404),
        ("/assets/view.css", 200),
        ("/assets/style.css", 200),
        ("/assets/..%2fapp.py", 404),
        ("/assets/app.py", 404),
        ("/nowhere", 404),
        ("//", 404),
    ],
)
def test_only_what_is_meant_to_be_read_is(get: Get, path: str, status: int) -> None:
    assert get(path).status == status


def test_a_file_is_something_to_keep(get: Get, runs: Path) -> None:
    answer = get("/runs/pair/files/summary.csv")
    headers = dict(answer.headers)
    assert answer.body == runs.resolve() / "pair" / "summary.csv"
    assert headers["Content-Disposition"] == "attachment"
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_damaged_run_breaks_only_itself(get: Get, runs: Path) -> None:
    with (runs / "evil" / "trajectories.jsonl").open("ab") as file:
        file.write(b"{}\n")
    (runs / "ttt" / "manifest.json").write_text("{")
    index = text(get("/"))
    assert index.count('class="state finished"') == 2
    assert index.count('class="state damaged"') == 1
    broken = get("/runs/evil/report")
    assert (broken.status, "byte" in text(broken)) == (500, True)
    assert get("/runs/ttt").status == 400
    assert orjson.loads(text(get("/api/runs/ttt/progress")))["state"] == "damaged"
    assert get("/runs/pair/report").status == 200


def test_a_run_that_goes_on_is_shown_as_it_grows(runs: Path, made: Path) -> None:
    rest = unfinished(runs / "pair", 6)
    view = View(runs)
    now = [100.0]
    view._reports = Reports(view.folder, clock=lambda: now[0])

    def ask(path: str) -> str:
        return text(view.answer(Request(path=path, headers={"host": "localhost"})))

    assert "data-going-on" in ask("/runs/pair")
    assert "interrupted after 6 of 16 episodes" in ask("/runs/pair/report")
    progress = orjson.loads(ask("/api/runs/pair/progress"))
    assert (progress["played"], progress["arms"][0]["n"]) == (6, 3)
    with (runs / "pair" / "trajectories.jsonl").open("ab") as file:
        file.writelines(rest)
    then = orjson.loads(ask("/api/runs/pair/progress"))
    assert (then["played"], then["report"]) == (16, progress["report"])
    assert "after 6 of 16" in ask("/runs/pair/report")
    now[0] += 10.0
    later = orjson.loads(ask("/api/runs/pair/progress"))
    assert later["report"] != progress["report"]
    assert "16 of 16 episodes" in ask("/runs/pair/report")
    for name in ("summary.csv", "compare.csv", "manifest.json"):
        (runs / "pair" / name).write_bytes((made / "pair" / name).read_bytes())
    assert orjson.loads(ask("/api/runs/pair/progress"))["state"] == "finished"
    assert "16 of 16 episodes" not in ask("/runs/pair/report")
    assert "data-going-on" not in ask("/runs/pair")


def test_a_run_before_its_first_episode_has_a_report(get: Get, runs: Path) -> None:
    unfinished(runs / "pair", 0)
    (runs / "pair" / "trajectories.jsonl").unlink()
    assert get("/runs/pair").status == 200
    report = get("/runs/pair/report")
    assert (report.status, "0 of 16 episodes" in text(report)) == (200, True)
    assert "No arm has finished seed 0" in text(get("/runs/pair/episodes"))


def test_more_pages_are_added(runs: Path) -> None:
    view = View(runs)

    def echo(request: Request, names: Mapping[str, str]) -> Response:
        return Response.json({"names": dict(names), "body": request.json()})

    view.add(Route("POST", "/api/debug/{run}", echo))
    asked = Request(path="/api/debug/a%2Fb", method="POST", headers=OWN, body=b'{"x":1}')
    answer = view.answer(asked)
    assert orjson.loads(text(answer)) == {"names": {"run": "a/b"}, "body": {"x": 1}}
    bad = view.answer(Request(path="/api/debug/a", method="POST", headers=OWN, body=b"{"))
    assert (bad.status, "JSON" in orjson.loads(text(bad))["error"]) == (400, True)
    other = view.answer(Request(path="/api/debug/a", headers={"host": "localhost"}))
    assert (other.status, dict(other.headers)["Allow"]) == (405, "POST")


def test_a_page_that_fails_is_said_to(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    view = View(runs)

    def fail(_: Request, __: Mapping[str, str]) -> Response:
        raise ZeroDivisionError("<b>")

    view.add(Route("GET", "/fails", fail))
    with caplog.at_level(logging.ERROR):
        answer = view.answer(Request(path="/fails", headers={"host": "localhost"}))
    assert (answer.status, "<b>" in text(answer)) == (500, False)
    assert "ZeroDivisionError" in caplog.text


def test_every_answer_carries_the_policy(get: Get) -> None:
    for path in ("/", "/nowhere", "/api/runs", "/assets/view.js", "/runs/pair"):
        headers = dict(get(path).headers)
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["Referrer-Policy"] == "same-origin"


def test_a_long_list_has_pages(made: Path, runs: Path) -> None:
    manifest = (made / "ttt" / "manifest.json").read_bytes()
    summary = (made / "ttt" / "summary.csv").read_bytes()
    for number in range(201):
        run = runs / f"run{number:03}"
        run.mkdir()
        (run / "manifest.json").write_bytes(manifest)
        (run / "summary.csv").write_bytes(summary)
    view = View(runs)
    headers = {"host": "localhost"}
    first = text(view.answer(Request(path="/", headers=headers, query={"sort": "name"})))
    links = Tags(first).links()
    assert len([link for link in links if link.startswith("/runs/")]) == 200
    assert "/?env=&model=&sort=name&page=1" in links
    query = {"sort": "name", "page": "1"}
    second = Tags(text(view.answer(Request(path="/", headers=headers, query=query)))).links()
    assert [link for link in second if link.startswith("/runs/")][-1] == "/runs/ttt"
    assert RunFolder(runs).names()[-1] == "ttt"
