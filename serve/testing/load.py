"""`python -m serve.testing.load URL MODEL`: how fast an engine answers, and whether seeds hold.

Sends N seeded chats of 32 tokens with one system prompt in common, C at a time, and prints the
speed with a digest of the replies: equal digests at all C mean that concurrency changes nothing.
"""

import argparse
import asyncio
import hashlib
import sys
import time

import httpx

_RULES = " ".join(
    f"Rule {number}: you may move north, south, east or west, one cell a turn."
    for number in range(12)
)


def main(argv: list[str] | None = None) -> int:
    """Send the load once for each concurrency, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m serve.testing.load", description=__doc__)
    parser.add_argument("base_url", metavar="URL", help="OpenAI base URL, http://HOST:PORT/v1")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("-n", type=int, default=64, metavar="N", help="requests for each C")
    parser.add_argument("-c", type=int, nargs="+", default=[32], metavar="C", help="at a time")
    options = parser.parse_args(argv)
    for concurrency in options.c:
        started = time.perf_counter()
        replies = asyncio.run(_send(options.base_url, options.model, options.n, concurrency))
        took_s = time.perf_counter() - started
        tokens = sum(made for _, made in replies)
        digest = hashlib.sha256("\0".join(text for text, _ in replies).encode()).hexdigest()[:8]
        sys.stdout.write(
            f"concurrency {concurrency}: {tokens / took_s:.0f} tokens/s, "
            f"{len(replies) / took_s:.1f} requests/s, replies {digest}\n"
        )
    return 0


async def _send(base_url: str, model: str, count: int, concurrency: int) -> list[tuple[str, int]]:
    slots = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=base_url, timeout=600) as client:
        return await asyncio.gather(
            *(_ask(client, slots, model, number) for number in range(count))
        )


async def _ask(
    client: httpx.AsyncClient, slots: asyncio.Semaphore, model: str, number: int
) -> tuple[str, int]:
    messages = [
        {"role": "system", "content": _RULES},
        {"role": "user", "content": f"Episode {number}. You stand at (1, 2). What do you do?"},
    ]
    body = {"model": model, "messages": messages, "seed": number, "max_tokens": 32}
    async with slots:
        answer = await client.post("chat/completions", json=body)
    answer.raise_for_status()
    reply = answer.json()
    return reply["choices"][0]["message"]["content"], reply["usage"]["completion_tokens"]


if __name__ == "__main__":
    raise SystemExit(main())
