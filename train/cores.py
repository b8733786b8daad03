"""Who computes where, when the engine and the learner share a machine.

Where `compute.gpu` has more GPUs than there are trainer processes, the engine gets those that are
left. Without a GPU two OpenMP teams on the same cores would wait for each other by spinning, which
costs several times the speed: so the engine gets the first half of the cores, the learner the rest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from train.config import TrainConfig

BIND = "VLLM_CPU_OMP_THREADS_BIND"
"""Which cores vLLM's threads are bound to; what the user says wins, here and in serve."""
_THREADS = "OMP_NUM_THREADS"
_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Additions to the environment of a run's children, and the learner's cores (None: all)."""

    gateway: Mapping[str, str] = field(default_factory=dict)
    learner: Mapping[str, str] = field(default_factory=dict)
    learner_cores: frozenset[int] | None = None


def has_gpu() -> bool:
    """Whether there is a GPU, as far as can be seen without loading a driver."""
    places = (Path("/dev/nvidia0"), Path("/dev/kfd"))
    return any(place.exists() for place in places) or shutil.which("nvidia-smi") is not None


def place(
    config: TrainConfig, *, cores: frozenset[int], gpu: bool, environment: Mapping[str, str]
) -> Placement:
    """Divide the machine between a gateway of one's own and the learner.

    Several engines on a CPU share the cores among themselves (serve sees to that), and a user who
    has bound vLLM to cores has made the choice: then only the learner's threads are set.
    """
    own = config.gateway.url is None
    learner: dict[str, str] = {}
    if config.learn.threads is not None:
        learner[_THREADS] = str(config.learn.threads)
    elif own and _THREADS not in environment:
        learner[_THREADS] = "1"
    gpus, processes = config.compute.gpu_count, config.learn.processes
    if gpu and own and gpus > processes and _DEVICES not in environment:
        learner[_DEVICES] = ",".join(map(str, range(processes)))
        engines = {_DEVICES: ",".join(map(str, range(processes, gpus)))}
        return Placement(gateway=engines, learner=learner)
    alone = config.gateway.replicas == 1 and BIND not in environment
    if gpu or not own or not alone or len(cores) < 2:
        return Placement(learner=learner)
    ordered = sorted(cores)
    half = len(ordered) // 2
    return Placement(
        gateway={BIND: ",".join(map(str, ordered[:half]))},
        learner=learner,
        learner_cores=frozenset(ordered[half:]),
    )


def here() -> frozenset[int]:
    """Return the cores that this process may use."""
    return frozenset(os.sched_getaffinity(0))
