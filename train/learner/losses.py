"""The objectives, as pure functions of flat tensors: one entry per trained token.

The formulas are those of TRL 1.16's GRPOTrainer (`_compute_loss`, and the importance correction of
`_generate_and_score_completions`). Every loss is normalised over the whole step, so that the
losses of the step's micro-batches add up to the step's loss. Where gradients are averaged over
processes, multiply by their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from train.config import Importance, LearnSection, Loss
from train.errors import BadConfig

_BY_ROW = frozenset({Importance.SEQUENCE_TRUNCATE, Importance.SEQUENCE_MASK})
_MASKING = frozenset({Importance.TOKEN_MASK, Importance.SEQUENCE_MASK})


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """Which objective, and its constants."""

    loss: Loss
    epsilon_low: float
    epsilon_high: float
    """Above 1, the upper bound of the clipped ratio; for cispo the cap of the ratio itself."""
    importance: Importance
    importance_cap: float
    max_row_tokens: int

    def __post_init__(self) -> None:
        """Refuse a cap of cispo under which tokens of unchanged weights would be cut down.

        Raises:
            BadConfig: `epsilon_high` is below 1 with cispo.

        """
        if self.loss is Loss.CISPO and self.epsilon_high < 1:
            raise BadConfig(
                "learn.loss=cispo takes learn.epsilon_high as the cap of the ratio itself: it must "
                f"be at least 1 (TRL advises 5), not {self.epsilon_high:g}"
            )

    @classmethod
    def of(cls, learn: LearnSection) -> LossSettings:
        """Take what concerns the objective from a config."""
        return cls(
            loss=learn.loss,
            epsilon_low=learn.epsilon_low,
            epsilon_high=learn.epsilon_high,
            importance=learn.importance,
            importance_cap=learn.importance_cap,
            max_row_tokens=learn.max_row_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """How far the trained weights are from the sampler's, over `tokens` trained tokens.

    The ratio is the trainer's probability of a token over the sampler's, whatever the loss clips.
    """

    tokens: int
    ratio_mean: float = 1.0
    ratio_max: float = 1.0
    clipped_low: float = 0.0
    """Share of tokens whose gradient is cut off because the ratio is too low already."""
    clipped_high: float = 0.0
    """Share of tokens whose gradient is cut off (cispo: capped) because the ratio is too high."""
    kl: float = 0.0
    """Estimate (k3) of KL(sampler, trainer) per token, in nats."""
    importance_mean: float = 1.0
    """Mean weight of the importance correction, masked tokens counted as 0."""
    masked: float = 0.0
    """Share of tokens that the importance correction leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """One micro-batch's part of the step's loss."""

    loss: torch.Tensor
    """Of no dimension; backward adds this micro-batch's part of the step's gradient."""
    diagnostics: Diagnostics


def token_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    rows: torch.Tensor,
    settings: LossSettings,
    *,
    rows_in_step: int,
    tokens_in_step: int,
) -> LossTerms:
    """Return a micro-batch's part of the step's loss.

    All tensors have the shape (tokens,): the trainer's logprobs, the sampler's, the advantage, and
    the number of the row of each trained token, from 0 within the micro-batch. A row lies in one
    micro-batch as a whole. `rows_in_step` and `tokens_in_step` count what is trained on in the
    whole step.

    Without an importance correction the ratio that is clipped is taken against the sampler. With
    one it is taken against the trainer's own weights before the update, where it is 1, and the
    correction weighs each token.
    """
    log_probs, old_log_probs = log_probs.float(), old_log_probs.float()
    sampler_log_ratio = log_probs.detach() - old_log_probs
    corrected = settings.importance is not Importance.NONE
    ratio = torch.exp(log_probs - (log_probs.detach() if corrected else old_log_probs))
    weights = importance_weights(sampler_log_ratio, rows, settings)
    per_token = _surrogate(log_probs, ratio, advantages, settings) * weights
    loss = (per_token * _shares(rows, settings, rows_in_step, tokens_in_step)).sum()
    with torch.no_grad():
        told = _diagnostics(sampler_log_ratio, ratio, advantages, weights, settings)
    return LossTerms(loss=loss, diagnostics=told)


def importance_weights(
    sampler_log_ratio: torch.Tensor, rows: torch.Tensor, settings: LossSettings
) -> torch.Tensor:
    """Return what each token weighs: its ratio to the sampler, or its row's, truncated or masked.

    A row's ratio is the product of its tokens' ratios.
    """
    if settings.importance is Importance.NONE:
        return torch.ones_like(sampler_log_ratio)
    log_ratio = sampler_log_ratio.detach()
    if settings.importance in _BY_ROW:
        totals = log_ratio.new_zeros(_row_count(rows)).index_add(0, rows, log_ratio)
        log_ratio = totals[rows]
    ratio = torch.exp(log_ratio)
    if settings.importance in _MASKING:
        cap = settings.importance_cap
        return ratio.masked_fill((ratio > cap) | (ratio < 1 / cap), 0.0)
    return ratio.clamp(max=settings.importance_cap)


def combine(parts: Sequence[Diagnostics]) -> Diagnostics:
    """Return the diagnostics of a step from those of its micro-batches."""
    tokens = sum(part.tokens for part in parts)
    if not tokens:
        return Diagnostics(tokens=0)

    def mean(name: str) -> float:
        return float(sum(getattr(part, name) * part.tokens for part in parts) / tokens)

    return Diagnostics(
        tokens=tokens,
        ratio_mean=mean("ratio_mean"),
        ratio_max=max(part.ratio_max for part in parts if part.tokens),
        clipped_low=mean("clipped_low"),
        clipped_high=mean("clipped_high"),
        kl=mean("kl"),
        importance_mean=mean("importance_mean"),
        masked=mean("masked"),
    )


def _surrogate(
    log_probs: torch.Tensor, ratio: torch.Tensor, advantages: torch.Tensor, settings: LossSettings
) -> torch.Tensor:
    """Return each token's loss before weights and normalisation."""
    if settings.loss is Loss.CISPO:
        return -ratio.clamp(max=settings.epsilon_high).detach() * advantages * log_probs
    clipped = ratio.clamp(1 - settings.epsilon_low, 1 + settings.epsilon_high)
    return -torch.min(ratio * advantages, clipped * advantages)


def _shares(
    rows: torch.Tensor, settings: LossSettings, rows_in_step: int, tokens_in_step: int
) -> torch.Tensor | float:
    """Return what each token's loss counts for in the step's."""
    if settings.loss is Loss.DR_GRPO:
        return 1.0 / (rows_in_step * settings.max_row_tokens)
    if settings.loss is Loss.GRPO:
        lengths = torch.bincount(rows, minlength=_row_count(rows))
        return 1.0 / (lengths[rows] * rows_in_step)
    return 1.0 / tokens_in_step


def _row_count(rows: torch.Tensor) -> int:
    return int(rows.max()) + 1 if rows.numel() else 0


def _diagnostics(
    sampler_log_ratio: torch.Tensor,
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    settings: LossSettings,
) -> Diagnostics:
    if not ratio.numel():
        return Diagnostics(tokens=0)
    sampler_ratio = torch.exp(sampler_log_ratio)
    if settings.loss is Loss.CISPO:
        low = torch.zeros_like(ratio)
        high = (ratio > settings.epsilon_high) & (advantages > 0)
    else:
        low = (ratio < 1 - settings.epsilon_low) & (advantages < 0)
        high = (ratio > 1 + settings.epsilon_high) & (advantages > 0)
    masked = (weights == 0) if settings.importance in _MASKING else torch.zeros_like(weights)
    means = (sampler_ratio, low, high, sampler_ratio - 1 - sampler_log_ratio, weights, masked)
    told = torch.stack([*(each.float().mean() for each in means), sampler_ratio.max()]).tolist()
    return Diagnostics(
        tokens=ratio.numel(),
        ratio_mean=told[0],
        clipped_low=told[1],
        clipped_high=told[2],
        kl=told[3],
        importance_mean=told[4],
        masked=told[5],
        ratio_max=told[6],
    )
