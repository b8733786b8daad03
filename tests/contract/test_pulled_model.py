"""The pulled checkpoint is the model it claims to be, and serving it on CPU is safe."""

import asyncio
import warnings
from pathlib import Path

import httpx
import pytest

from serve.engine.base import Engine

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def test_greedy_answer_equals_that_of_transformers(pulled_model: Path, vllm_engine: Engine) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(pulled_model)
        model = transformers.AutoModelForCausalLM.from_pretrained(pulled_model)
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    length = prompt["input_ids"].shape[1]
    expected = tokenizer.decode(tokens[0][length:], skip_special_tokens=True)

    body = {"model": vllm_engine.model, "messages": messages, "temperature": 0, "max_tokens": 20}
    answer = httpx.post(f"{vllm_engine.base_url}/chat/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == expected
    assert answer["usage"]["prompt_tokens"] == length
    assert "Paris" in expected


def test_more_seeded_prompts_at_once_than_one_step_takes(vllm_engine: Engine) -> None:
    """With chunked prefill this ends the engine: "CPU Generator does not use offset"."""

    async def ask(client: httpx.AsyncClient, seed: int) -> int:
        body = {"model": vllm_engine.model, "prompt": f"{seed}" + " go" * 800, "seed": seed}
        answer = await client.post(
            f"{vllm_engine.base_url}/completions", json=body | {"max_tokens": 2}
        )
        return answer.status_code

    async def all_at_once() -> list[int]:
        async with httpx.AsyncClient(timeout=240) as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(100, 112)))

    assert asyncio.run(all_at_once()) == [200] * 12
