"""Sections of the config that say where a run computes, what it may cost, and who hears of its end.

They are the same for a run on this machine and for one on Modal: what only one of the two can use
changes nothing for the other.
"""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

DAY_S = 24 * 3600
"""The longest that Modal lets a function run; retries go on from the last checkpoint."""

_GPU = re.compile(r"[A-Za-z][A-Za-z0-9-]*!?(:[1-9][0-9]?)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Section(BaseModel):
    """A part of the config: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ComputeSection(Section):
    """The hardware of a run on Modal."""

    gpu: str | None = None
    """Modal's name of it, with a count where there are several: H100, A100-80GB:4; None: a CPU."""
    cpu: float = Field(default=4.0, gt=0, le=128)
    """Cores."""
    memory_mib: int = Field(default=16384, ge=256)
    timeout_s: int = Field(default=4 * 3600, ge=60, le=DAY_S)
    """For one container; what is not done then is gone on with by the next retry."""
    retries: int = Field(default=3, ge=0, le=10)
    """Further containers after one that failed or was taken away."""
    nodes: int = Field(default=1, ge=1, le=32)
    """Machines that train together; more than one needs a gateway of its own place."""
    region: str | None = None
    """Where; None: wherever there is room, which costs least."""
    app: str = Field(default="palaestra-train", min_length=1)
    """The deployed app that jobs are handed to."""
    secrets: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Modal's secrets, each with the variables that it must hold."""

    @field_validator("gpu")
    @classmethod
    def _is_gpu(cls, value: str | None) -> str | None:
        if value is not None and not _GPU.fullmatch(value):
            raise ValueError(f"expected a GPU as H100 or A100-80GB:4, not {value!r}")
        return value

    @property
    def gpu_type(self) -> str | None:
        """The GPU without its count, in capitals."""
        return None if self.gpu is None else self.gpu.partition(":")[0].rstrip("!").upper()

    @property
    def gpu_count(self) -> int:
        """GPUs of one machine."""
        return 0 if self.gpu is None else int(self.gpu.partition(":")[2] or 1)


class VolumesSection(Section):
    """Modal's volumes, and where a container sees them: each at ROOT/NAME-OF-THE-KEY."""

    root: str = "/palaestra"
    runs: str = "palaestra-runs-{EXPERIMENTER}-{EXPERIMENT_NAME}"
    """Runs and jobs. The variables' values are filled in, `default` for one that is not set."""
    policies: str = "palaestra-policies"
    """Shared with the serving app: new versions travel on it."""
    cache: str = "palaestra-cache"
    """Models from the hub, and what vLLM has compiled; for everybody."""
    data: str = "palaestra-data"
    """What was uploaded."""

    @field_validator("runs", "policies", "cache", "data")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not _VOLUME.fullmatch(re.sub(r"\{(EXPERIMENTER|EXPERIMENT_NAME)\}", "x", value)):
            raise ValueError(
                f"a volume's name has up to 64 letters, digits, '.', '_' and '-', not {value!r}"
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> VolumesSection:
        if not self.root.startswith("/") or self.root == "/":
            raise ValueError(f"volumes.root must be an absolute folder, not {self.root!r}")
        if len({self.runs, self.policies, self.cache, self.data}) < 4:
            raise ValueError("volumes.runs, policies, cache and data must be four volumes")
        return self


class BudgetSection(Section):
    """What a run may use up. Then it saves a checkpoint and stops; a higher budget goes on."""

    usd: float | None = Field(default=None, gt=0)
    """At the rates of `train/configs/rates.yaml` for `compute`, since the run began."""
    gpu_hours: float | None = Field(default=None, gt=0)


class NotifySection(Section):
    """Who is told when a run has ended, well or not."""

    url_env: str | None = None
    """The variable that holds a webhook's address, which is a secret; None: nobody."""

    @field_validator("url_env")
    @classmethod
    def _is_variable(cls, value: str | None) -> str | None:
        if value is not None and not _VARIABLE.fullmatch(value):
            raise ValueError(
                "expected the name of an environment variable that holds the address, "
                "not the address itself"
            )
        return value
