"""The debugger as a person meets it in `evalkit view`: step, ask, fork, compare, save."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

import evalkit
from evalkit.cli import main
from tests.e2e.chromium import IN_CHROMIUM, chromium

ROOT = Path(__file__).resolve().parents[2]

pytestmark = IN_CHROMIUM


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path / "chromium") as driver:
        yield driver


@pytest.fixture
def results(tmp_path: Path) -> Path:
    small = {"size": 3, "max_turns": 9}
    out = tmp_path / "results"
    run = evalkit.evaluate(
        "random", "key_door", out=str(out), env_args=small, seeds="0:2", strategy="SCRATCHPAD"
    )
    run.path.rename(out / "run")
    return out


@pytest.fixture
def url(results: Path) -> Iterator[str]:
    shown = subprocess.Popen(
        [sys.executable, "-m", "evalkit", "view", str(results), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert shown.stdout is not None
        found = re.search(r"http://[0-9.:]+", shown.stdout.readline())
        assert found is not None
        yield found[0]
    finally:
        shown.terminate()
        shown.communicate(timeout=10)


def test_an_episode_is_stepped_through_and_forked(
    browser: webdriver.Chrome, url: str, results: Path
) -> None:
    def page() -> str:
        return str(browser.execute_script("return document.querySelector('main').innerText"))

    def until(*words: str) -> None:
        WebDriverWait(browser, 20).until(
            lambda _: all(word in page() for word in words) and ", playing" not in page()
        )

    def press(words: str, place: int = 0) -> None:
        script = (
            "[...document.querySelectorAll('main button, main a')]"
            ".filter(each => each.textContent === arguments[0])[arguments[1]].click()"
        )
        browser.execute_script(script, words, place)

    browser.get(f"{url}/runs/run/episodes?seed=1")
    press("Step through it")
    until("turn 0 of at most 9, SCRATCHPAD, replies as recorded")
    press("Step")
    until("turn 1 of at most 9", "You have 9 turns.", "digest ")
    press("Fork here")
    until("fork1 ")
    browser.execute_script("document.querySelector('[aria-label=model]').value = 'oracle'")
    press("Use model")
    until("turn 1 of at most 9, SCRATCHPAD, oracle")
    press("Run")
    until("over: success")
    press("Compare")
    until("the same up to turn ")
    press("Save as a run")
    until("saved as ")
    (saved,) = [path for path in results.iterdir() if path.name.startswith("key_door")]
    assert main(["replay", str(saved), "--check"]) == 0
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 375, "height": 812, "deviceScaleFactor": 1, "mobile": True},
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") == 375
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
