"""The dashboard as a person meets it: in a real browser, on a desk and on a phone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from serve.accounts.limits import Limits
from serve.front.control.app import Services
from serve.front.testing import StillPool, act, on_stage
from serve.pool.replicas import ReplicaState
from serve.wire import Scope
from tests.e2e.chromium import IN_CHROMIUM, chromium

PASSWORD = "correct horse battery"
EVIL = '<img src=x onerror="window.hacked=1">'

pytestmark = IN_CHROMIUM


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """A control plane that listens, with what a person needs to log in."""

    url: str
    key: str
    services: Services
    stop: Callable[[], None]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made: list[str] = []

    async def prepare(services: Services) -> None:
        store = services.store
        made.append(store.create_key("ops", [Scope.ADMIN], Limits(), actor="test")[1])
        limits = Limits(budget_tokens=1000, concurrency=4)
        store.create_key(EVIL, [Scope.INFER], limits, actor="test")
        store.set_password("eve", PASSWORD, [Scope.ADMIN], actor="test")  # type: ignore[attr-defined]  # an AccountStore
        services.policies.register("base", None)  # type: ignore[attr-defined]  # a PolicyStore
        for replica in services.pool.replicas:
            replica.serve_only("base", 1, "base")
            replica.metrics = {
                "prefix_cache_queries": 200,
                "prefix_cache_hits": 182,
                "kv_cache_usage": 0.4,
            }
        await services.auth.reload()
        act(services)

    with on_stage(tmp_path, prepare) as stage:
        yield Desk(url=stage.url, key=made[0], services=stage.services, stop=stage.stop)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(params=[(1280, 900), (375, 812)], ids=["desk", "phone"])
def browser(driver: webdriver.Chrome, request: pytest.FixtureRequest) -> webdriver.Chrome:
    width, height = request.param
    driver.delete_all_cookies()
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    return driver


def _shows(browser: webdriver.Chrome, id_: str, words: str) -> None:
    """Wait until the element's text holds these words."""
    WebDriverWait(browser, 15, 0.05, [StaleElementReferenceException]).until(
        lambda _: words in browser.find_element(By.ID, id_).text,
        f"#{id_} never showed {words!r}",
    )


def _log_in(browser: webdriver.Chrome, desk: Desk) -> None:
    browser.get(f"{desk.url}/dashboard")
    _shows(browser, "words", "not logged in")
    browser.find_element(By.ID, "key").send_keys(desk.key)
    browser.find_element(By.ID, "enter").click()
    _shows(browser, "words", "live")


def _overflow(browser: webdriver.Chrome) -> int:
    script = "const d = document.documentElement; return d.scrollWidth - d.clientWidth"
    return int(browser.execute_script(script))


def test_log_in_wrong_then_right_look_and_log_out(browser: webdriver.Chrome, desk: Desk) -> None:
    browser.get(f"{desk.url}/dashboard")
    _shows(browser, "words", "not logged in")
    assert not browser.find_element(By.ID, "board").is_displayed()
    assert _overflow(browser) == 0
    browser.find_element(By.ID, "key").send_keys("ak_wrong")
    browser.find_element(By.ID, "enter").click()
    _shows(browser, "refusal", "key")
    browser.find_element(By.ID, "key").clear()
    browser.find_element(By.ID, "key").send_keys(desk.key)
    browser.find_element(By.ID, "enter").click()
    _shows(browser, "words", "live")
    for id_, words in [
        ("replicas", "r1"),
        ("replicas", "91 %"),
        ("h-replicas", "2 of 2 ready"),
        ("policies", "base@1"),
        ("policies", "2 of 2 replicas"),
        ("keys", "ops"),
        ("audit", "session.begin"),
        ("latency", "ms"),
        ("tiles", "Requests/s"),
    ]:
        _shows(browser, id_, words)
    assert _overflow(browser) == 0
    assert browser.execute_script("return document.cookie") == ""
    browser.find_element(By.ID, "leave").click()
    _shows(browser, "words", "not logged in")
    assert not browser.find_element(By.ID, "board").is_displayed()


def test_log_in_with_a_password(browser: webdriver.Chrome, desk: Desk) -> None:
    browser.get(f"{desk.url}/dashboard")
    _shows(browser, "words", "not logged in")
    browser.find_element(By.CSS_SELECTOR, "[value=password]").click()
    browser.find_element(By.ID, "user").send_keys("eve")
    browser.find_element(By.ID, "password").send_keys(PASSWORD)
    browser.find_element(By.ID, "enter").click()
    _shows(browser, "actor", "user:eve")


def test_it_follows_what_happens(browser: webdriver.Chrome, desk: Desk) -> None:
    _log_in(browser, desk)
    desk.services.pool.failed(desk.services.pool.replicas[1], "connection refused")
    _shows(browser, "replicas", "connection refused")
    _shows(browser, "h-replicas", "1 of 2 ready")
    desk.services.pool.replicas[1].state = ReplicaState.READY
    _shows(browser, "h-replicas", "2 of 2 ready")
    assert isinstance(desk.services.pool, StillPool)
    desk.services.pool.replicas.clear()
    _shows(browser, "replicas", "There are no replicas")


def test_names_are_text_and_the_policy_holds(browser: webdriver.Chrome, desk: Desk) -> None:
    browser.get_log("browser")  # type: ignore[no-untyped-call]
    _log_in(browser, desk)
    _shows(browser, "keys", EVIL)
    assert browser.execute_script("return window.hacked") is None
    lines = [line["message"] for line in browser.get_log("browser")]  # type: ignore[no-untyped-call]
    unexpected = [line for line in lines if "401" not in line and "[DOM]" not in line]
    assert unexpected == []


def test_a_gateway_that_is_gone_is_said_to_be(browser: webdriver.Chrome, desk: Desk) -> None:
    _log_in(browser, desk)
    desk.stop()
    _shows(browser, "stale", "does not answer")
    _shows(browser, "words", "unreachable")
    assert "r0" in browser.find_element(By.ID, "replicas").text
