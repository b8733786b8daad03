"""`evalkit view` as a person meets it: in a real browser, on a desk and on a phone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import evalkit
from evalkit.play.policy import Ask
from evalkit.record.journal import Appender
from evalkit.testing import FakePolicy, Reply
from tests.e2e.chromium import IN_CHROMIUM, chromium

ROOT = Path(__file__).resolve().parents[2]
EVIL = "<img src=x onerror=window.hacked=1>"

pytestmark = IN_CHROMIUM


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """A folder of runs, and where it is shown."""

    url: str
    results: Path


def _evil(ask: Ask) -> Reply:
    return f"{EVIL}<action>{('up', 'interact', 'left')[(ask.seed + ask.turn) % 3]}</action>"


def _make(out: Path) -> None:
    both = ["lucky=random", "expert=oracle"]
    small = {"size": 3, "max_turns": 12}
    done = evalkit.evaluate(both, "key_door", out=str(out), env_args=small, seeds="0:20")
    done.path.rename(out / "done")
    again = evalkit.evaluate(both, "key_door", out=str(out), env_args=small, seeds="0:12")
    again.path.rename(out / "again")
    going = evalkit.evaluate(
        FakePolicy(_evil),
        "key_door",
        out=str(out),
        env_args=small,
        seeds="0:10",
        strategy="NO_HISTORY,SCRATCHPAD",
    )
    going.path.rename(out / "going")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    _make(out)
    return out


@pytest.fixture
def desk(made: Path, tmp_path: Path) -> Iterator[Desk]:
    results = Path(shutil.copytree(made, tmp_path / "results"))
    shown = subprocess.Popen(
        [sys.executable, "-m", "evalkit", "view", str(results), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    try:
        assert shown.stdout is not None
        found = re.search(r"http://[0-9.:]+", shown.stdout.readline())
        assert found is not None
        yield Desk(url=found[0], results=results)
    finally:
        shown.terminate()
        shown.communicate(timeout=10)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(params=[(1280, 900), (375, 812)], ids=["desk", "phone"])
def browser(driver: webdriver.Chrome, request: pytest.FixtureRequest) -> Iterator[webdriver.Chrome]:
    width, height = request.param
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get_log("browser")  # type: ignore[no-untyped-call]
    yield driver
    said = [line["message"] for line in driver.get_log("browser")]  # type: ignore[no-untyped-call]
    driver.get("about:blank")
    assert said == []


def _until(browser: webdriver.Chrome, script: str, wanted: str) -> None:
    """Wait until a script's value holds these words."""
    WebDriverWait(browser, 20, 0.05, [WebDriverException]).until(
        lambda _: wanted in str(browser.execute_script(f"return {script}")),
        f"{script} never held {wanted!r}",
    )


def _click(browser: webdriver.Chrome, by: str, what: str) -> None:
    """Bring something to where nothing stands over it, and click it."""
    element = browser.find_element(by, what)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def _fits(browser: webdriver.Chrome) -> None:
    """The page is no wider than its window, and so is the report in its frame."""
    overflow = (
        "const wide = (d) => d.documentElement.scrollWidth - d.documentElement.clientWidth;"
        "const frame = document.querySelector('iframe');"
        "return [wide(document), frame ? wide(frame.contentDocument) : 0];"
    )
    assert browser.execute_script(overflow) == [0, 0]


REPORT = "document.querySelector('iframe').contentDocument.body.innerText"
INDEX = "document.getElementById('runs').innerText"


def test_from_the_index_to_a_run_and_its_episodes(browser: webdriver.Chrome, desk: Desk) -> None:
    browser.get(desk.url)
    for words in ("done", "again", "going", "expert is better than lucky", "100.0 %"):
        _until(browser, INDEX, words)
    _fits(browser)
    _click(browser, By.LINK_TEXT, "done")
    _until(browser, REPORT, "expert is better")
    _fits(browser)
    heights = (
        "(() => { const f = document.querySelector('iframe'); return String(f.clientHeight >= "
        "f.contentDocument.documentElement.scrollHeight && f.clientHeight > 1500) })()"
    )
    _until(browser, heights, "true")
    _click(browser, By.LINK_TEXT, "All episodes")
    _until(browser, "document.querySelector('h1').innerText", "Seed 0")
    _click(browser, By.LINK_TEXT, "7")
    _until(browser, "document.querySelector('h1').innerText", "Seed 7")
    assert len(browser.find_elements(By.CSS_SELECTOR, "article")) == 2
    _fits(browser)
    _click(browser, By.LINK_TEXT, "Files")
    _until(browser, "document.querySelector('table').innerText", "summary.csv")
    _fits(browser)


def test_two_runs_are_picked_and_compared(browser: webdriver.Chrome, desk: Desk) -> None:
    browser.get(desk.url)
    button = browser.find_element(By.CSS_SELECTOR, "#compare button")
    assert not button.is_enabled()
    _click(browser, By.CSS_SELECTOR, "input[name=a][value=done]")
    _click(browser, By.CSS_SELECTOR, "input[name=b][value=done]")
    _until(browser, "document.getElementById('picked').textContent", "the same run")
    assert not button.is_enabled()
    _click(browser, By.CSS_SELECTOR, "input[name=b][value=again]")
    _click(browser, By.CSS_SELECTOR, "#compare button")
    _until(browser, REPORT, "A.expert")
    _fits(browser)


def test_a_filter_is_one_choice(browser: webdriver.Chrome, desk: Desk) -> None:
    browser.get(desk.url)
    _click(browser, By.CSS_SELECTOR, "select[name=model] option:nth-child(2)")
    _until(browser, "location.search", "model=")
    _until(browser, "document.body.innerText", "of 3 runs")


def test_a_run_that_goes_on_grows_on_the_page(browser: webdriver.Chrome, desk: Desk) -> None:
    run = desk.results / "going"
    whole = orjson.loads((run / "manifest.json").read_bytes())
    open_ended = {key: value for key, value in whole.items() if key != "references"}
    (run / "manifest.json").write_bytes(orjson.dumps({**open_ended, "finished_at": None}))
    lines = (run / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    (run / "trajectories.jsonl").write_bytes(b"".join(lines[:6]))
    with Appender(run / "journal.jsonl"):
        browser.get(desk.url)
        _until(browser, INDEX, "6 of 20")
        _until(browser, INDEX, "running")
        with (run / "trajectories.jsonl").open("ab") as file:
            file.writelines(lines[6:10])
        _until(browser, INDEX, "10 of 20")
        browser.get(f"{desk.url}/runs/going")
        _until(browser, REPORT, "10 of 20 episodes")
        browser.execute_script("window.same = 1; window.scrollTo(0, 300)")
        with (run / "trajectories.jsonl").open("ab") as file:
            file.writelines(lines[10:])
        _until(browser, REPORT, "20 of 20 episodes")
        assert browser.execute_script("return [window.same, window.scrollY]") == [1, 300]
        assert len(browser.find_elements(By.TAG_NAME, "iframe")) == 1
        _fits(browser)
    (run / "manifest.json").write_bytes(orjson.dumps(whole))
    _until(browser, f"String(!{REPORT}.includes('20 of 20 episodes'))", "true")
    hacked = "return [window.hacked, document.querySelector('iframe').contentWindow.hacked]"
    assert browser.execute_script(hacked) == [None, None]
    assert browser.execute_script("return window.same") == 1
