"""One life of a served policy, on this machine and on Modal's loopback: the same, step by step."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import OpenAI

from tests.contract.modal.targets import (
    POLICY,
    START_S,
    VLLM,
    Here,
    OnModal,
    Target,
    environment,
    wait_for,
    write_config,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


ENGINES = [
    pytest.param("fake", id="fake"),
    pytest.param("vllm", id="vllm", marks=pytest.mark.vllm),
]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(engine: str, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    return write_config(path) if engine == "fake" else write_config(path, (), **VLLM)


@pytest.fixture(params=["local", "modal"])
def target(
    request: pytest.FixtureRequest, engine: str, config: Path, tmp_path: Path
) -> Iterator[Target]:
    made = (Here if request.param == "local" else OnModal)(tmp_path, config)
    made.says_its_weights = engine == "fake"
    try:
        yield made
    finally:
        made.close()


def test_the_life_of_a_served_policy(target: Target) -> None:
    target.deploy()
    assert_no_waiting_client_is_lost(target)
    assert_smoke_and_urls(target)
    first = stream(target)
    second = assert_publishing_under_load_loses_nothing(target)
    assert (second != first) >= target.says_its_weights
    assert_rollback(target, first)
    assert_draining_lets_a_stream_finish(target)
    target.stop()
    assert not target.listens()


def client(target: Target) -> OpenAI:
    base = f"{target.url}/v1"
    return OpenAI(base_url=base, api_key=target.key, max_retries=0, timeout=START_S)


def chat(target: Target) -> tuple[str, int]:
    """Return what was said, and by which version."""
    body = [{"role": "user", "content": "hello"}]
    with client(target) as asked:
        raw = asked.chat.completions.with_raw_response.create(
            model=POLICY,
            messages=body,  # type: ignore[arg-type]  # a plain message
            temperature=0,
            max_tokens=16,
        )
        version = int(raw.headers["x-policy-version"])
        return raw.parse().choices[0].message.content or "", version


def stream(target: Target) -> str:
    with client(target) as asked:
        pieces = asked.chat.completions.create(
            model=POLICY,
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            temperature=0,
            max_tokens=16,
        )
        return "".join(piece.choices[0].delta.content or "" for piece in pieces)


def assert_no_waiting_client_is_lost(target: Target) -> None:
    """Everybody who asks before an engine is there gets an answer from it, at the first try."""
    with ThreadPoolExecutor(6) as waiting:
        answers = list(waiting.map(lambda _: chat(target), range(6)))
    assert len(set(answers)) == 1
    assert answers[0][1] == 1


def assert_smoke_and_urls(target: Target) -> None:
    smoke = target.verb("smoke", "--within-s", "60")
    assert smoke.returncode == 0, smoke.stdout + smoke.stderr
    assert f"{POLICY}@1" in smoke.stdout
    assert "stream" in smoke.stdout
    urls = target.verb("urls")
    assert f"OPENAI_BASE_URL={target.url}/v1" in urls.stdout, urls.stderr


def assert_publishing_under_load_loses_nothing(target: Target) -> str:
    """Publish while clients ask; return what the new version says."""
    before = chat(target)[0]
    enough = threading.Event()
    answers: list[tuple[str, int]] = []

    def ask() -> None:
        while not enough.is_set():
            answers.append(chat(target))

    with ThreadPoolExecutor(4) as load, target.admin() as admin:
        asking = [load.submit(ask) for _ in range(4)]
        try:
            wait_for(lambda: len(answers) > 8 or asking[0].done(), "the load is on")
            published = admin.publish(POLICY, target.checkpoint("key_door_after"))
            admin.wait_ready(POLICY, published.version, timeout_s=START_S)
            done = len(answers)
            wait_for(lambda: len(answers) > done + 8 or asking[0].done(), "version 2 answers")
        finally:
            enough.set()
        for each in asking:
            each.result()
    assert published.version == 2
    said = {version: {text for text, of in answers if of == version} for version in (1, 2)}
    assert sorted({version for _, version in answers}) == [1, 2]
    assert said[1] == {before}
    after, version = chat(target)
    assert version == 2
    return after


def assert_rollback(target: Target, first: str) -> None:
    with target.admin() as admin:
        admin.rollback(POLICY, 1)
        wait_for(lambda: chat(target) == (first, 1), "version 1 answers again")


def assert_draining_lets_a_stream_finish(target: Target) -> None:
    with client(target) as asked:
        pieces = asked.chat.completions.create(
            model=POLICY,
            messages=[{"role": "user", "content": "a long story"}],
            stream=True,
            extra_body={"ignore_eos": True, "min_tokens": 150},
            max_tokens=150,
        )
        got = [next(iter(pieces))]
        target.drain()
        got += list(pieces)
    assert len(got) > 1
    assert got[-1].choices[0].finish_reason in ("stop", "length")


def test_evaluations_on_both_targets_are_equal_byte_by_byte(config: Path, tmp_path: Path) -> None:
    tables = {}
    for made in (Here, OnModal):
        target = made(tmp_path, config)
        try:
            target.deploy()
            tables[target.name] = evaluate(target, tmp_path / f"out-{target.name}")
        finally:
            target.close()
    assert tables["local"] == tables["modal"]


def evaluate(target: Target, out: Path) -> dict[str, bytes]:
    """Play against a target; return the tables that are a function of the trajectories."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "evalkit", "--model", f"policy={target.url}#{POLICY}"),
            *("--env", "key_door", "--env-arg", "max_turns=3", "-n", "4", "--out", str(out)),
            *("--api-key-env", "TARGET_KEY", "--wait-s", str(START_S)),
        ],
        env=environment(TARGET_KEY=target.key),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = [path.parent for path in out.glob("*/episodes.csv")]
    # A run's id is a digest of its settings, and the URL is one of them.
    return {
        name: (run / name).read_bytes().replace(run.name.encode(), b"RUN")
        for name in ("episodes.csv", "turns.csv")
    }
