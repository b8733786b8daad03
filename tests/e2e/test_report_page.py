"""report.html in a real Chromium: opened from the disk, in light and dark, wide and narrow."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from evalkit import evaluate
from evalkit.compared import compare
from evalkit.play.policy import Ask, Completion
from evalkit.run import Run
from evalkit.show.html.page import write_page
from evalkit.testing import FakePolicy
from tests.e2e.chromium import IN_CHROMIUM, chromium

EVIL = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"

pytestmark = IN_CHROMIUM


def _policy(skill: float) -> FakePolicy:
    """Make one that plays well so often, and otherwise says what no env expects."""

    def reply(ask: Ask) -> Completion:
        drawn = random.Random(f"{ask.seed} {skill}")
        if drawn.random() < skill or ask.turn < 2:
            text = ask.env.format_action(ask.env.oracle())
        else:
            text = drawn.choice([EVIL, "", "<action>fly</action>", "I would rather not."])
        return Completion(text=text, prompt_tokens=100, completion_tokens=len(text))

    return FakePolicy(reply)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")

    def run(name: str, skill: float) -> Run:
        small = {"size": 3, "max_turns": 12}
        out = str(folder / name)
        return evaluate(_policy(skill), "key_door", env_args=small, seeds="0:40", out=out)

    weak, strong = run("weak", 0.3), run("strong", 0.9)
    write_page(folder / "report.html", compare(weak, strong, names=("weak", "strong")))
    return f"file://{folder / 'report.html'}"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(
    params=[(1400, "light"), (1400, "dark"), (360, "light"), (360, "dark")],
    ids=["wide-light", "wide-dark", "narrow-light", "narrow-dark"],
)
def browser(
    driver: webdriver.Chrome, page: str, request: pytest.FixtureRequest
) -> webdriver.Chrome:
    width, scheme = request.param
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    network = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", network)
    driver.get(page)
    return driver


def _brightness(browser: webdriver.Chrome) -> float:
    script = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    return float(sum(browser.execute_script(script))) / 3


def _tip(browser: webdriver.Chrome) -> str:
    tip = browser.find_element(By.ID, "tip")
    return tip.text if tip.is_displayed() else ""


def test_it_opens_and_nothing_sticks_out(
    browser: webdriver.Chrome, request: pytest.FixtureRequest
) -> None:
    assert browser.find_element(By.ID, "headline").text == "strong is better than weak"
    figures = {each.get_attribute("id") for each in browser.find_elements(By.TAG_NAME, "figure")}
    assert figures == {"forest", "flips", "survival", "taxonomy", "evidence", "cost", "seeds"}
    assert (_brightness(browser) < 60) == ("dark" in request.node.callspec.id)
    wide = "const d = document.documentElement; return d.scrollWidth - d.clientWidth"
    assert browser.execute_script(wide) == 0
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_a_seed_shows_both_arms_and_where_they_part(browser: webdriver.Chrome) -> None:
    picker = Select(browser.find_element(By.ID, "seed"))
    first = picker.options[0].text
    assert "flips" in first
    browser.find_element(By.ID, "later").click()
    assert Select(browser.find_element(By.ID, "seed")).first_selected_option.text != first
    Select(browser.find_element(By.ID, "seed")).select_by_index(0)
    played = browser.find_element(By.ID, "played")
    assert [each.text for each in played.find_elements(By.CSS_SELECTOR, ".end h3")] == [
        *("weak", "strong"),
    ]
    (part,) = played.find_elements(By.CSS_SELECTOR, ".turn.part")
    assert "here they part" in part.text
    actions = [each.text for each in part.find_elements(By.CSS_SELECTOR, ".cell .facts")]
    assert len(actions) == 2
    assert actions[0] != actions[1]
    assert browser.execute_script("return window.hacked") is None
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_a_seed_can_be_chosen_on_the_map(browser: webdriver.Chrome) -> None:
    chosen = Select(browser.find_element(By.ID, "seed")).options[2].text.split()[1]
    cell = browser.find_element(By.CSS_SELECTOR, f"#seeds [data-seed='{chosen}']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", cell)
    webdriver.ActionChains(browser).move_to_element(cell).perform()
    assert _tip(browser).startswith(f"seed {chosen}: success")
    webdriver.ActionChains(browser).click(cell).perform()
    assert Select(browser.find_element(By.ID, "seed")).first_selected_option.text.startswith(
        f"seed {chosen} "
    )


def test_definitions_come_with_mouse_and_keyboard(
    browser: webdriver.Chrome,
) -> None:
    assert _tip(browser) == ""
    term = browser.find_element(By.CSS_SELECTOR, "thead abbr.def")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", term)
    browser.execute_script("arguments[0].focus({preventScroll: true})", term)
    assert "history strategy" in _tip(browser)
    box = browser.execute_script(
        "const b = document.getElementById('tip').getBoundingClientRect();"
        "return [b.left, b.top, innerWidth - b.right, innerHeight - b.bottom]"
    )
    assert min(box) >= 0
    term.send_keys(Keys.ESCAPE)
    assert _tip(browser) == ""
    mark = browser.find_element(By.CSS_SELECTOR, "#forest .mark")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    webdriver.ActionChains(browser).move_to_element(mark).perform()
    assert "95 % CI" in _tip(browser)


def test_the_theme_can_be_chosen(browser: webdriver.Chrome) -> None:
    theme = browser.find_element(By.ID, "theme")
    seen = {}
    for _ in range(3):
        theme.click()
        seen[theme.text] = _brightness(browser)
    assert seen["Theme: dark"] < 60
    assert seen["Theme: light"] > 200
    assert seen["Theme: auto"] in (seen["Theme: dark"], seen["Theme: light"])
