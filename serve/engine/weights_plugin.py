"""Tells vLLM of our way to take new weights; found by it through `vllm.general_plugins`.

Runs in every process of every vLLM of this environment, so it imports nothing else of ours.
"""

BACKEND = "palaestra-file"
"""What `--weight-transfer-config '{"backend": ...}'` calls it."""


def register() -> None:
    """Add the backend to vLLM's, once per process; vLLM may call this more often."""
    from vllm.distributed.weight_transfer.factory import (  # noqa: PLC0415  # only inside vLLM
        WeightTransferEngineFactory,
    )

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "serve.engine.weights_engine", "FolderWeights"
        )
