"""The engines that one suite runs against."""

from collections.abc import Iterator

import openai
import pytest

from serve.engine.base import Engine

_SLOW = [pytest.mark.vllm, pytest.mark.timeout(600)]
DIRECT = [
    pytest.param("fake_engine", id="fake"),
    pytest.param("vllm_engine", marks=_SLOW, id="vllm"),
]
BEHIND = [
    pytest.param("fake_gateway", id="gateway-fake"),
    pytest.param("vllm_gateway", marks=_SLOW, id="gateway-vllm"),
]


@pytest.fixture(scope="session", params=[*DIRECT, *BEHIND])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine, in a process of its own, and each behind a gateway: nobody can tell."""
    return _engine(request)


@pytest.fixture(scope="session", params=DIRECT)
def direct(request: pytest.FixtureRequest) -> Engine:
    """Each engine without a gateway."""
    return _engine(request)


@pytest.fixture(scope="session", params=BEHIND)
def gateway(request: pytest.FixtureRequest) -> Engine:
    """The gateway in front of each engine."""
    return _engine(request)


def _engine(request: pytest.FixtureRequest) -> Engine:
    engine = request.getfixturevalue(request.param)
    assert isinstance(engine, Engine)
    return engine


@pytest.fixture
def client(engine: Engine) -> Iterator[openai.OpenAI]:
    """The SDK as a user has it, with its retries off so that each answer is seen."""
    with openai.OpenAI(base_url=engine.base_url, api_key="none", max_retries=0) as client:
        yield client
