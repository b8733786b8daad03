"""The benchmark's episode as a verifiers 0.1 environment, played in process."""

import asyncio
import sys

import verifiers as vf  # type: ignore[import-not-found]
from datasets import Dataset

OBSERVATION = "You are at (1, 2) in a 6x6 grid. Your hands are empty. Nothing is here. What next?"


class Episode(vf.MultiTurnEnv):  # type: ignore[misc]
    """Answers every reply with the same observation."""

    async def env_response(self, *_: object, **__: object) -> object:
        """Return the next observation."""
        return [{"role": "user", "content": OBSERVATION}]


def main() -> None:
    """Play URL EPISODES TURNS CONCURRENCY."""
    url, episodes, turns, concurrency = sys.argv[1], *map(int, sys.argv[2:5])
    rows = {"question": [OBSERVATION] * episodes, "answer": ["interact"] * episodes}
    env = Episode(
        dataset=Dataset.from_dict(rows), rubric=vf.Rubric(funcs=[lambda **_: 0.0]), max_turns=turns
    )
    client = vf.ClientConfig(api_base_url=url, api_key_var="MOCK_API_KEY")
    asyncio.run(
        env.evaluate(
            client,
            "mock",
            num_examples=episodes,
            rollouts_per_example=1,
            max_concurrent=concurrency,
        )
    )


if __name__ == "__main__":
    main()
