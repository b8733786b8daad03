"""The probe gate: whether an engine computes with its weights what their trainer does.

A digest says that the right files were read, not that the engine computes with them: a layer that
kept a packed copy of the old weights answers as if nothing was wrong. Knows no replica's state.
"""

import asyncio
import logging
import math
from dataclasses import dataclass

from serve.engine.vllm import VllmAdmin
from serve.errors import ProbeFailed
from serve.wire import Probes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What an engine said to a version's probes."""

    label: str
    """The version, `NAME@VERSION`."""
    difference: float
    """The largest of a logprob, in nats."""
    tokens: int
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    """One token of the probes, by engine and trainer. Probes and tokens are counted from 0."""

    probe: int
    position: int
    found: float
    expected: float

    @property
    def off(self) -> float:
        """By how much they differ; a logprob that is no number differs by more than any."""
        off = abs(self.found - self.expected)
        return math.inf if math.isnan(off) else off


async def prove(
    engine: VllmAdmin, probes: Probes, *, label: str, model: str, replica: str
) -> Proof:
    """Hold the weights that the engine calls `model` to be those of `label`.

    Raises ProbeFailed, which names the token that differs most, and SwapFailed if the engine
    does not say.
    """
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    worst, count = _Token(probe=0, position=1, found=0.0, expected=0.0), 0
    for number, (tokens, expected) in enumerate(zip(probes.tokens, probes.logprobs, strict=True)):
        logprobs = await engine.prompt_logprobs(model, tokens)
        pairs = zip(logprobs, expected, strict=True)
        compared = [
            _Token(probe=number, position=position, found=found, expected=right)
            for position, (found, right) in enumerate(pairs, start=1)
        ]
        count += len(compared)
        worst = max(worst, *compared, key=lambda token: token.off)
    if worst.off > probes.tolerance:
        raise ProbeFailed(
            f"{replica} does not compute {label} as its trainer does: probe {worst.probe}, "
            f"token {worst.position}: logprob {worst.found:.6g}, expected {worst.expected:.6g} "
            f"(off by {worst.off:.3g}, tolerance {probes.tolerance:g})"
        )
    proof = Proof(label=label, difference=worst.off, tokens=count, took_s=loop.time() - started_s)
    logger.info(
        "%s computes %s as its trainer does: off by at most %.2g in %d tokens, asked for %.0f ms",
        *(replica, label, proof.difference, proof.tokens, proof.took_s * 1000),
    )
    return proof
