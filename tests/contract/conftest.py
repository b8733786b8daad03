"""The engines that one suite runs against."""

from collections.abc import Iterator

import openai
import pytest

from serve.engine.base import Engine

VLLM = pytest.param("vllm_engine", marks=[pytest.mark.vllm, pytest.mark.timeout(600)], id="vllm")


@pytest.fixture(scope="session", params=[pytest.param("fake_engine", id="fake"), VLLM])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each implementation of the engine port, in a process of its own."""
    engine = request.getfixturevalue(request.param)
    assert isinstance(engine, Engine)
    return engine


@pytest.fixture
def client(engine: Engine) -> Iterator[openai.OpenAI]:
    """The SDK as a user has it, with its retries off so that each answer is seen."""
    with openai.OpenAI(base_url=engine.base_url, api_key="none", max_retries=0) as client:
        yield client
