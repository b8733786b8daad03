"""From the trainer's weights to a version that is live: full weights, or an adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import is_peft_model
from safetensors import SafetensorError
from trl.experimental.async_grpo.async_grpo_trainer import save_lora_adapter

from serve.wire import PolicyKind, Probes
from train.errors import SaveFailed
from train.publish import probe, processes
from train.publish.publisher import Publisher, Sent
from train.publish.weights import write_full


class Trainer(Protocol):
    """What is needed of the trainer."""

    model: torch.nn.Module
    accelerator: Any

    def full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all weights under a checkpoint's names; on several processes all must."""
        ...


class Channel:
    """Sends the weights of one run. All processes call `send`; the main one publishes."""

    def __init__(
        self,
        publisher: Publisher | None,
        *,
        kind: PolicyKind,
        scratch: Path,
        source: Path,
        sequences: probe.Sequences,
        tolerance: float,
        logprobs: Callable[
            [torch.nn.Module, probe.Sequences], tuple[tuple[float, ...], ...]
        ] = probe.logprobs,
    ) -> None:
        """Take None as `publisher` on all processes but the main one; no `sequences`, no probes.

        `logprobs` is how the trainer's model is asked: `probe.logprobs` or `probe.plain_logprobs`.
        """
        self.last: Sent | None = None
        self._publisher = publisher
        self._kind = kind
        self._scratch = scratch
        self._source = source
        self._sequences = sequences
        self._tolerance = tolerance
        self._logprobs = logprobs

    def send(self, trainer: Trainer, step: int) -> int:
        """Make the weights as they are live, and return their version.

        Raises:
            PublishFailed: they were refused, or a replica computes something else.
            SaveFailed: they could not be written.
            GatewayLost: the gateway is away.

        """
        model = trainer.accelerator.unwrap_model(trainer.model)
        folder = self._scratch / f"step-{step:06d}"
        with _merged(model, merge=self._kind is PolicyKind.FULL):
            self._write(trainer, model, folder)
            probes = self._probes(trainer.model)
        publisher = self._publisher
        if publisher is None:
            self.last = processes.told(None)
        else:
            publish = partial(publisher.publish, folder, self._kind)
            self.last = processes.told(partial(publish, step=step, metrics={}, probes=probes))
        return self.last.version

    def _write(self, trainer: Trainer, model: Any, folder: Path) -> None:  # noqa: ANN401
        if self._kind is PolicyKind.FULL:
            tensors = trainer.full_tensors()
            write_full(folder, tensors, self._source, write=self._publisher is not None)
            return
        try:
            save_lora_adapter(model, trainer.accelerator, model.active_adapters[0], str(folder))
        except (OSError, SafetensorError) as error:
            raise SaveFailed(f"cannot write {folder}: {error}") from error

    def _probes(self, model: torch.nn.Module) -> Probes | None:
        if not self._sequences:
            return None
        return Probes(
            tokens=self._sequences,
            logprobs=self._logprobs(model, self._sequences),
            tolerance=self._tolerance,
        )


@contextlib.contextmanager
def _merged(model: Any, *, merge: bool) -> Iterator[None]:  # noqa: ANN401  # peft's
    """Fold an adapter into its base meanwhile, where there is one and it is not sent alone."""
    if not (merge and is_peft_model(model)):
        yield
        return
    model.merge_adapter()
    try:
        yield
    finally:
        model.unmerge_adapter()
