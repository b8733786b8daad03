"""Inside vLLM's worker: replaces the model's weights by those of a folder, all or nothing.

vLLM's own backends spread an update over several calls, and a decoding step between two of them
ends the engine. Here the whole update is one call, which the engine runs between two steps.
Imported by vLLM alone. Knows no version and no policy.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from serve.engine.tensors import differences, shapes_of, weight_files

logger = logging.getLogger("vllm.palaestra")

Weights = list[tuple[str, torch.Tensor]]


@dataclass
class Nothing(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM is not read by mypy
    """There is nothing to agree on beforehand."""


@dataclass
class Folder(WeightTransferUpdateInfo):  # type: ignore[misc]
    """A full checkpoint in Hugging Face's layout, at a path that every worker sees."""

    path: str
    apply: bool = False
    """First without, to read it in every worker, then with: none begins if one cannot read."""


class FolderWeights(WeightTransferEngine[Nothing, Folder]):  # type: ignore[misc]
    """Takes the weights from a folder with the same tensors as the one that is served."""

    init_info_cls = Nothing
    update_info_cls = Folder

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        _let_prompts_be_scored_in_company()
        _leave_the_base_to_itself()

    _swapped: Path | None = None
    _read: tuple[Path, Weights] | None = None

    def init_transfer_engine(self, init_info: Nothing) -> None:
        """Nothing to open."""

    def start_weight_update(self) -> None:
        """Leave the model alone: it may be decoding until the update itself."""

    def finish_weight_update(self) -> None:
        """Let go of what was read."""
        self._read = None

    def shutdown(self) -> None:
        """Nothing to close."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load; vLLM's own waits for an accelerator besides, which a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Folder) -> None:
        """Read a folder's weights, or load those that were read.

        Whatever is wrong with the folder shows in the reading, and the model is not touched.
        """
        folder = Path(update_info.path)
        started_s = time.perf_counter()
        if not update_info.apply:
            self._read = folder, self._checked(folder)
            logger.info("read %s in %.3f s", folder, time.perf_counter() - started_s)
            return
        if self._read is None or self._read[0] != folder:
            raise ValueError(f"{folder} has to be read before it is applied")
        weights, self._read = self._read[1], None
        try:
            self._apply(weights)
        except BaseException:
            self._restore()
            raise
        self._swapped = folder
        logger.info("serving %s: applied in %.3f s", folder, time.perf_counter() - started_s)

    @property
    def _served(self) -> Path:
        """The folder whose weights the model has."""
        return self._swapped or Path(self.model_config.model)

    def _checked(self, folder: Path) -> Weights:
        """Read a folder whose tensors are those of the served one; raise if they are not."""
        files = weight_files(folder)
        found = shapes_of(folder, files)
        expected = shapes_of(self._served, weight_files(self._served))
        if different := differences(expected, found):
            raise ValueError(f"{folder} does not fit the model that is served: {different}")
        return list(_tensors(folder, files))

    def _apply(self, weights: Weights) -> None:
        initialize_layerwise_reload(self.model)
        try:
            self.model.load_weights(iter(weights))
        finally:
            finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_heads(self.model)

    def _restore(self) -> None:
        """Put the served weights back, or end: a mixture must never answer."""
        if self.parallel_config.world_size > 1:
            logger.critical("an update failed in one worker of several")
            os._exit(70)
        try:
            self._apply(list(_tensors(self._served, weight_files(self._served))))
        except BaseException:
            logger.critical("cannot put %s back after a failed update", self._served, exc_info=True)
            os._exit(70)


def _tensors(folder: Path, files: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    for file in files:
        with safe_open(folder / file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it is no dict
                yield name, tensors.get_tensor(name)


def _let_prompts_be_scored_in_company() -> None:
    """Let an engine with adapters tell the logprobs of a prompt while it has other requests.

    vLLM 0.32 takes a prompt's rows for one row of each request there (its issue 16668): on a CPU
    that ends the engine. Where no adapter changes the output head there is nothing to add.
    """
    add = PunicaWrapperCPU.add_lora_logits
    if getattr(add, "is_palaestras", False):
        return

    def add_lora_logits(
        self: PunicaWrapperCPU,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **rest: object,
    ) -> None:
        is_row_per_request = x.view(-1, x.shape[-1]).size(0) == self.sampler_indices.size(0)
        if is_row_per_request or lora_b_stacked.any():
            add(self, y, x, lora_a_stacked, lora_b_stacked, scale, **rest)

    add_lora_logits.is_palaestras = True  # type: ignore[attr-defined]
    PunicaWrapperCPU.add_lora_logits = add_lora_logits


def _leave_the_base_to_itself() -> None:
    """Let an engine with adapters answer by its base where no adapter is asked for.

    A CPU's adapters are drawn from a table by the index of each token, and vLLM 0.32 takes the
    base's, -1, for the last entry of that table (its pull request 48421): as soon as all places
    for adapters are taken, the base answers with one of them. What these compute is linear in
    `inputs`.
    """
    if getattr(lora_ops.bgmv_shrink, "is_palaestras", False):
        return

    def without_base(compute: Callable[..., None]) -> Callable[..., None]:
        def for_adapters(
            inputs: torch.Tensor,
            weights: torch.Tensor,
            output: torch.Tensor,
            indices: torch.Tensor,
            *rest: object,
            **named: object,
        ) -> None:
            only_adapted = inputs.masked_fill((indices < 0).unsqueeze(-1), 0)
            compute(only_adapted, weights, output, indices, *rest, **named)

        for_adapters.is_palaestras = True  # type: ignore[attr-defined]
        return for_adapters

    for name in ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice"):
        repaired = without_base(getattr(lora_ops, name))
        for module in (lora_ops, punica_cpu):
            setattr(module, name, repaired)


def _repack_tied_heads(model: torch.nn.Module) -> None:
    """Pack the output layers anew where there is no accelerator.

    On a CPU a linear layer computes with a packed copy, made when its own weights are loaded; a
    head tied to the embedding has none, so vLLM 0.32 would go on with the copy of the old ones.
    """
    if torch.accelerator.is_available():
        return
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead) and isinstance(
            layer.quant_method, UnquantizedEmbeddingMethod
        ):
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
