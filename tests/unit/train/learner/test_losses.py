"""The objectives against slow references, against TRL's own code, and by what they promise."""

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from train.config import Importance, LearnSection, Loss
from train.errors import BadConfig
from train.learner.losses import (
    Diagnostics,
    LossSettings,
    LossTerms,
    combine,
    importance_weights,
    token_loss,
)

LENGTHS = (5, 1, 9, 3, 7)
CORRECTIONS = [each for each in Importance if each is not Importance.NONE]


def settings_for(loss: Loss, importance: Importance = Importance.NONE) -> LossSettings:
    return LossSettings(
        loss=loss,
        epsilon_low=0.2,
        epsilon_high=1.5 if loss is Loss.CISPO else 0.28,
        importance=importance,
        importance_cap=1.6,
        max_row_tokens=32,
    )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Flat tensors of a step, or of a part of it."""

    log_probs: torch.Tensor
    old: torch.Tensor
    advantages: torch.Tensor
    rows: torch.Tensor

    def of(self, rows: Sequence[int]) -> "Batch":
        """Return some rows as a micro-batch, numbered from 0."""
        chosen = [torch.nonzero(self.rows == row)[:, 0] for row in rows]
        at = torch.cat(chosen)
        return Batch(
            log_probs=self.log_probs[at],
            old=self.old[at],
            advantages=self.advantages[at],
            rows=torch.cat([torch.full_like(some, new) for new, some in enumerate(chosen)]),
        )


def a_batch(lengths: Sequence[int] = LENGTHS, *, drift: float = 0.35) -> Batch:
    generator = torch.Generator().manual_seed(3)
    tokens = sum(lengths)
    old = -3 * torch.rand(tokens, generator=generator)
    moved = old + drift * torch.randn(tokens, generator=generator)
    rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    worth = torch.randn(len(lengths), generator=generator)
    return Batch(log_probs=moved.requires_grad_(), old=old, advantages=worth[rows], rows=rows)


def told(batch: Batch, settings: LossSettings, whole: Batch | None = None) -> LossTerms:
    step = whole or batch
    return token_loss(
        batch.log_probs,
        batch.old,
        batch.advantages,
        batch.rows,
        settings,
        rows_in_step=int(step.rows.max()) + 1,
        tokens_in_step=len(step.rows),
    )


def gradient(batch: Batch, settings: LossSettings) -> torch.Tensor:
    (found,) = torch.autograd.grad(told(batch, settings).loss, batch.log_probs)
    return torch.as_tensor(found)


def slow_weights(
    new: list[float], old: list[float], rows: list[int], s: LossSettings
) -> list[float]:
    ratios = [math.exp(a - b) for a, b in zip(new, old, strict=True)]
    if s.importance in (Importance.SEQUENCE_MASK, Importance.SEQUENCE_TRUNCATE):
        product: dict[int, float] = defaultdict(lambda: 1.0)
        for row, ratio in zip(rows, ratios, strict=True):
            product[row] *= ratio
        ratios = [product[row] for row in rows]
    if s.importance in (Importance.TOKEN_TRUNCATE, Importance.SEQUENCE_TRUNCATE):
        return [min(ratio, s.importance_cap) for ratio in ratios]
    if s.importance in (Importance.TOKEN_MASK, Importance.SEQUENCE_MASK):
        low, high = 1 / s.importance_cap, s.importance_cap
        return [ratio if low <= ratio <= high else 0.0 for ratio in ratios]
    return [1.0] * len(ratios)


def slow_loss(batch: Batch, s: LossSettings) -> float:
    new, old, rows = batch.log_probs.tolist(), batch.old.tolist(), batch.rows.tolist()
    weights = slow_weights(new, old, rows, s)
    by_row: dict[int, list[float]] = defaultdict(list)
    for a, b, advantage, row, weight in zip(
        new, old, batch.advantages.tolist(), rows, weights, strict=True
    ):
        ratio = math.exp(a - b) if s.importance is Importance.NONE else 1.0
        if s.loss is Loss.CISPO:
            value = -min(ratio, s.epsilon_high) * advantage * a
        else:
            clipped = min(max(ratio, 1 - s.epsilon_low), 1 + s.epsilon_high)
            value = -min(ratio * advantage, clipped * advantage)
        by_row[row].append(value * weight)
    if s.loss is Loss.GRPO:
        return sum(sum(some) / len(some) for some in by_row.values()) / len(by_row)
    total = sum(sum(some) for some in by_row.values())
    return total / (len(by_row) * s.max_row_tokens if s.loss is Loss.DR_GRPO else len(rows))


@pytest.mark.parametrize("importance", Importance)
@pytest.mark.parametrize("loss", Loss)
def test_every_loss_is_its_formula(loss: Loss, importance: Importance) -> None:
    settings, batch = settings_for(loss, importance), a_batch()
    assert told(batch, settings).loss.item() == pytest.approx(slow_loss(batch, settings), rel=1e-4)


def padded(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [values[rows == row] for row in rows.unique()], batch_first=True
    )


def trls_loss(batch: Batch, settings: LossSettings) -> torch.Tensor:
    """Return what GRPOTrainer._compute_loss makes of the same step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.trainer.grpo_trainer import GRPOTrainer
    new, old = padded(batch.log_probs, batch.rows), padded(batch.old, batch.rows)
    mask = padded(torch.ones_like(batch.old), batch.rows)
    corrected = settings.importance is not Importance.NONE
    weights = importance_weights(batch.log_probs.detach() - batch.old, batch.rows, settings)
    stand_in = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        args=SimpleNamespace(delta=None, steps_per_generation=1, use_bias_correction_kl=False),
        model=SimpleNamespace(training=True),
        loss_type=settings.loss.value,
        epsilon_low=settings.epsilon_low,
        epsilon_high=settings.epsilon_high,
        max_completion_length=settings.max_row_tokens,
        importance_sampling_level="token",
        use_vllm=corrected,
        vllm_importance_sampling_correction=corrected,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        beta=0.0,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs: dict[str, Any] = {
        "prompt_ids": torch.zeros(len(new), 1),
        "prompt_mask": torch.ones(len(new), 1),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": padded(batch.advantages, batch.rows)[:, 0],
        "old_per_token_logps": new.detach() if corrected else old,
        "importance_sampling_ratio": padded(weights, batch.rows),
        "num_items_in_batch": mask.sum(),
    }
    return torch.as_tensor(GRPOTrainer._compute_loss(stand_in, None, inputs))


@pytest.mark.parametrize("importance", [Importance.NONE, Importance.SEQUENCE_MASK])
@pytest.mark.parametrize("loss", Loss)
def test_trls_trainer_computes_the_same(loss: Loss, importance: Importance) -> None:
    settings, batch = settings_for(loss, importance), a_batch()
    expected = trls_loss(batch, settings)
    assert told(batch, settings).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (theirs,) = torch.autograd.grad(expected, batch.log_probs)
    assert torch.allclose(gradient(batch, settings), theirs, atol=1e-7)


@pytest.mark.parametrize("importance", Importance)
@pytest.mark.parametrize("loss", Loss)
def test_micro_batches_add_up_to_the_step(loss: Loss, importance: Importance) -> None:
    settings, batch = settings_for(loss, importance), a_batch()
    whole = told(batch, settings)
    parts = [told(batch.of(rows), settings, batch) for rows in ([3, 0], [1], [4, 2])]
    total = torch.stack([part.loss for part in parts]).sum()
    assert total.item() == pytest.approx(whole.loss.item(), rel=1e-5)
    (summed,) = torch.autograd.grad(total, batch.log_probs)
    assert torch.allclose(summed, gradient(batch, settings), atol=1e-7)
    joined = combine([part.diagnostics for part in parts])
    for name in Diagnostics.__slots__:
        assert getattr(joined, name) == pytest.approx(getattr(whole.diagnostics, name), abs=1e-6)


@pytest.mark.parametrize("importance", Importance)
@pytest.mark.parametrize("loss", Loss)
def test_fresh_weights_give_reinforce(loss: Loss, importance: Importance) -> None:
    """The sampler's weights are the trainer's: every ratio is 1 and nothing is cut."""
    settings, batch = settings_for(loss, importance), a_batch(drift=0.0)
    found = told(batch, settings).diagnostics
    assert found == Diagnostics(tokens=len(batch.rows))
    lengths = torch.tensor(LENGTHS)[batch.rows]
    share = {
        Loss.GRPO: 1 / (lengths * len(LENGTHS)),
        Loss.DR_GRPO: torch.full_like(batch.old, 1 / (len(LENGTHS) * 32)),
        Loss.DAPO: torch.full_like(batch.old, 1 / sum(LENGTHS)),
        Loss.CISPO: torch.full_like(batch.old, 1 / sum(LENGTHS)),
    }[loss]
    assert torch.allclose(gradient(batch, settings), -batch.advantages * share, rtol=1e-6)


@pytest.mark.parametrize("loss", Loss)
def test_gradients_are_those_of_the_value(loss: Loss) -> None:
    """By finite differences; cispo's ratio is a constant, so it is held fixed there."""
    settings, batch = settings_for(loss), a_batch(lengths=(3, 2))
    found, step = gradient(batch, settings), 1e-3
    ratio = torch.exp(batch.log_probs.detach() - batch.old).clamp(max=settings.epsilon_high)
    for token in range(5):
        if loss is Loss.CISPO:
            expected = -(ratio[token] * batch.advantages[token] / 5).item()
        else:
            nudge = torch.zeros(5)
            nudge[token] = step
            low, high = (
                told(replace(batch, log_probs=batch.log_probs.detach() + side), settings)
                for side in (-nudge, nudge)
            )
            expected = (high.loss.item() - low.loss.item()) / (2 * step)
        assert found[token].item() == pytest.approx(expected, abs=2e-4)


def four_far_tokens(factor: float, advantage: float) -> Batch:
    """Return one row whose tokens became `factor` times as likely."""
    old = torch.full((4,), -2.0)
    return Batch(
        log_probs=(old + math.log(factor)).requires_grad_(),
        old=old,
        advantages=torch.full((4,), advantage),
        rows=torch.zeros(4, dtype=torch.long),
    )


@pytest.mark.parametrize("loss", [Loss.GRPO, Loss.DR_GRPO, Loss.DAPO])
@pytest.mark.parametrize(
    ("factor", "advantage", "low", "high"),
    [(4.0, 1.0, 0.0, 1.0), (4.0, -1.0, 0.0, 0.0), (0.25, -1.0, 1.0, 0.0), (0.25, 1.0, 0.0, 0.0)],
)
def test_a_ratio_that_went_far_enough_pulls_no_further(
    loss: Loss, factor: float, advantage: float, low: float, high: float
) -> None:
    batch, settings = four_far_tokens(factor, advantage), settings_for(loss)
    found = told(batch, settings).diagnostics
    assert (found.clipped_low, found.clipped_high) == (low, high)
    assert bool((gradient(batch, settings) == 0).all()) is bool(low or high)


@pytest.mark.parametrize("factor", [0.01, 0.25, 4.0, 100.0])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_cispo_cuts_off_no_token(factor: float, advantage: float) -> None:
    batch, settings = four_far_tokens(factor, advantage), settings_for(Loss.CISPO)
    weight = min(factor, settings.epsilon_high)
    expected = torch.full((4,), -weight * advantage / 4)
    assert torch.allclose(gradient(batch, settings), expected, rtol=1e-5)
    assert told(batch, settings).diagnostics.clipped_low == 0.0


@pytest.mark.parametrize("loss", Loss)
def test_a_masked_token_pulls_nothing_and_the_others_as_before(loss: Loss) -> None:
    settings = settings_for(loss, Importance.TOKEN_MASK)
    old = torch.full((4,), -2.0)
    batch = Batch(
        log_probs=(old + torch.tensor([0.0, 2.0, -2.0, 0.1])).requires_grad_(),
        old=old,
        advantages=torch.ones(4),
        rows=torch.tensor([0, 0, 1, 1]),
    )
    found = gradient(batch, settings)
    assert (found == 0).tolist() == [False, True, True, False]
    assert found[3] / found[0] == pytest.approx(math.exp(0.1), rel=1e-5)
    assert told(batch, settings).diagnostics.masked == 0.5
    whole_rows = settings_for(loss, Importance.SEQUENCE_MASK)
    assert not gradient(batch, whole_rows).any()
    assert told(batch, whole_rows).diagnostics.masked == 1.0


def test_a_rows_ratio_is_a_product() -> None:
    log_ratio, rows = torch.tensor([0.2, 0.2, -0.1]), torch.tensor([0, 0, 1])
    found = importance_weights(log_ratio, rows, settings_for(Loss.DAPO, Importance.SEQUENCE_MASK))
    assert found.tolist() == pytest.approx([math.exp(0.4)] * 2 + [math.exp(-0.1)])


@pytest.mark.parametrize("importance", CORRECTIONS)
def test_a_correction_weighs_and_is_not_learned_through(importance: Importance) -> None:
    settings, batch = settings_for(Loss.DAPO, importance), a_batch()
    weights = importance_weights(batch.log_probs - batch.old, batch.rows, settings)
    assert not weights.requires_grad
    expected = -batch.advantages * weights / len(batch.rows)
    assert torch.allclose(gradient(batch, settings), expected, atol=1e-7)
    found = told(batch, settings).diagnostics
    assert found.clipped_low == found.clipped_high == 0.0
    assert found.importance_mean == pytest.approx(weights.mean().item())


def test_the_diagnostics_compare_with_the_sampler() -> None:
    batch = a_batch()
    log_ratio = (batch.log_probs - batch.old).detach()
    for importance in Importance:
        found = told(batch, settings_for(Loss.DAPO, importance)).diagnostics
        assert found.ratio_mean == pytest.approx(log_ratio.exp().mean().item())
        assert found.ratio_max == pytest.approx(log_ratio.exp().max().item())
        assert found.kl == pytest.approx((log_ratio.exp() - 1 - log_ratio).mean().item())
        assert found.kl > 0


@pytest.mark.parametrize("importance", Importance)
@pytest.mark.parametrize("loss", Loss)
def test_a_micro_batch_without_tokens(loss: Loss, importance: Importance) -> None:
    none = torch.zeros(0, requires_grad=True)
    empty = Batch(
        log_probs=none, old=none.detach(), advantages=none.detach(), rows=torch.zeros(0).long()
    )
    found = told(empty, settings_for(loss, importance), a_batch())
    assert found.loss.item() == 0.0
    found.loss.backward()
    assert combine([found.diagnostics]) == Diagnostics(tokens=0)


def test_half_precision_logprobs_are_compared_in_single() -> None:
    batch = a_batch()
    half = replace(batch, log_probs=batch.log_probs.detach().bfloat16())
    assert told(half, settings_for(Loss.DAPO)).loss.dtype == torch.float32


def test_settings_come_from_the_config() -> None:
    learn = LearnSection(loss=Loss.GRPO, importance=Importance.TOKEN_MASK, epsilon_high=0.3)
    found = LossSettings.of(learn)
    for name in LossSettings.__slots__:
        assert getattr(found, name) == getattr(learn, name)


def test_cispo_needs_a_cap_of_at_least_one() -> None:
    with pytest.raises(BadConfig, match=r"cap of the ratio itself.*not 0\.2"):
        LossSettings.of(LearnSection(loss=Loss.CISPO))
    assert LossSettings.of(LearnSection(loss=Loss.CISPO, epsilon_high=5)).epsilon_high == 5
