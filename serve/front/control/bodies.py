"""What enters and leaves the control plane, as types; the OpenAPI document is made of them."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, SecretStr, model_validator

from serve.accounts.limits import Limits
from serve.pool.replicas import ReplicaState
from serve.wire import MOST_PROBES, PolicyKind, Probes, Scope, SwapMode

_NO_NUL = r"^[^\x00]+$"
PolicyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]
Version = Annotated[int, Field(ge=1, le=999_999)]
Name = Annotated[str, Field(max_length=64)]
KeyId = Annotated[str, Field(min_length=1, max_length=64)]
Secret = Annotated[SecretStr, Field(min_length=1, max_length=1024)]
Count = Annotated[int, Field(ge=1, le=(1 << 62) - 1)]


class Body(BaseModel):
    """What a client sends: nothing that we do not know."""

    model_config = ConfigDict(extra="forbid")


class ProbesBody(Body):
    """Sequences of tokens, and the logprobs that the trainer gives them from the second on."""

    tokens: list[list[int]] = Field(max_length=MOST_PROBES)
    logprobs: list[list[FiniteFloat]] = Field(max_length=MOST_PROBES)
    tolerance: FiniteFloat = Field(gt=0)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        self.probes()
        return self

    def probes(self) -> Probes:
        """Return the probes as the store has them; raise BadProbes, a ValueError."""
        return Probes.from_json(self.model_dump())


class PublishBody(Body):
    """A checkpoint on the gateway's own disk that becomes a policy's newest version."""

    name: PolicyName
    path: str = Field(min_length=1, max_length=4096, pattern=_NO_NUL)
    version: Version | None = None
    kind: PolicyKind | None = None
    parent: Version | None = None
    metrics: dict[Annotated[str, Field(max_length=128)], FiniteFloat] = Field(
        default_factory=dict, max_length=256
    )
    swap: SwapMode = SwapMode.WAIT
    probes: ProbesBody | None = None
    """What a replica must compute with these weights before it serves them."""


class RollbackBody(Body):
    """An older version that a policy's name shall mean again."""

    name: PolicyName
    version: Version
    swap: SwapMode = SwapMode.WAIT


class PruneBody(Body):
    """Versions of a policy whose weights are to be deleted."""

    name: PolicyName
    versions: list[Version] = Field(min_length=1, max_length=10_000)


class ScaleBody(Body):
    """How many replicas there shall be."""

    replicas: int = Field(ge=0, le=10_000)


class KeyBody(Body):
    """A key to make. A limit that is null is none."""

    name: Name = ""
    scopes: list[Scope] = Field(default=[Scope.INFER], min_length=1, max_length=len(Scope))
    rpm: Count | None = None
    tpm: Count | None = None
    concurrency: Count | None = None
    budget_tokens: Count | None = None

    def limits(self) -> Limits:
        """Return the limits as the accounts have them."""
        return Limits(
            rpm=self.rpm,
            tpm=self.tpm,
            concurrency=self.concurrency,
            budget_tokens=self.budget_tokens,
        )


class KeyIdBody(Body):
    """Which key: its id, such as `ak_1a2b3c4d`."""

    id: KeyId


class LoginBody(Body):
    """Either a key, or a user and a password."""

    key: Secret | None = None
    user: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    password: Secret | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        given = (self.key is not None, self.user is not None, self.password is not None)
        if given not in ((True, False, False), (False, True, True)):
            raise ValueError("expected either `key`, or `user` and `password`")
        return self


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class ErrorAnswer(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetail


class HealthAnswer(BaseModel):
    """Whether the process lives; says nothing about replicas."""

    status: Literal["ok"] = "ok"
    service: str = "palaestra-gateway"
    gpu_available: bool
    version: str


class ReadyAnswer(BaseModel):
    """Whether requests would be answered."""

    ready: bool
    reason: str
    replicas_ready: int


class ServedPolicy(BaseModel):
    """What a gateway's ready replicas serve of one policy."""

    current: int
    """The version that the bare name means now."""
    versions: list[int]
    max_model_len: int | None


class ProofAnswer(BaseModel):
    """That an engine computed a version's probes as their trainer did."""

    label: str
    """The version, `NAME@VERSION`."""
    difference: float
    """The largest of a logprob, in nats."""


class ServingAnswer(BaseModel):
    """What a gateway would answer with at this moment."""

    ready: bool
    """Whether a replica takes requests."""
    policies: dict[str, ServedPolicy]
    proof: ProofAnswer | None
    """The least exact one of the ready replicas."""


class ModelCard(BaseModel):
    """OpenAI's model object, with what vLLM and we add."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "palaestra"
    root: str
    """The policy that an alias or a version belongs to."""
    parent: str | None = None
    max_model_len: int | None = None
    policy_version: int | None = None
    """The version that answers to this id now."""


class ModelList(BaseModel):
    """All names that a request may put into `model`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ReplicaAnswer(BaseModel):
    """One replica."""

    id: str
    url: str
    state: ReplicaState
    reason: str
    in_flight: int
    requests: int
    errors: int
    sessions: int
    served: dict[str, list[int]]
    current: dict[str, int]
    proof: ProofAnswer | None
    """Of the version whose probes it passed last."""
    metrics: dict[str, float]
    """What the engine's own /metrics last said."""


class DemandAnswer(BaseModel):
    """The autoscaling signal."""

    in_flight: int
    held: int
    oldest_held_s: float
    idle_s: float


class PoolAnswer(BaseModel):
    """All replicas."""

    desired: int | None
    """How many there shall be; null where the set is fixed."""
    replicas: list[ReplicaAnswer]
    demand: DemandAnswer


class VersionAnswer(BaseModel):
    """One published version."""

    name: str
    version: int
    kind: PolicyKind
    created: float
    """Unix seconds."""
    parent: int | None
    digest: str
    size_bytes: int
    metrics: dict[str, float]
    path: str | None
    """Where its files are, on the gateway's disk; null if they are not there, or were pruned."""
    live_on: list[str]
    """Ids of the ready replicas that serve it."""


class PolicyAnswer(BaseModel):
    """One policy."""

    name: str
    latest: int | None
    versions: list[VersionAnswer]


class KeptAnswer(BaseModel):
    """A version that was not pruned, and why."""

    version: int
    reason: str


class PruneAnswer(BaseModel):
    """What became of a wish to prune."""

    versions: list[int]
    """Those whose weights are gone now."""
    kept: list[KeptAnswer]
    freed_bytes: int


class PoliciesAnswer(BaseModel):
    """All policies."""

    policies: list[PolicyAnswer]


class KeyAnswer(BaseModel):
    """One key, without its secret."""

    id: str
    name: str
    scopes: list[Scope]
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    budget_tokens: int | None
    created_s: float
    revoked_s: float | None
    last_used_s: float | None
    in_flight: int
    requests: int
    """Admitted since the gateway started."""
    used_tokens: int | None
    """In all; null for a revoked key, which nobody counts any more."""


class NewKeyAnswer(KeyAnswer):
    """One key, with its secret: shown this once."""

    key: str


class KeysAnswer(BaseModel):
    """All keys."""

    keys: list[KeyAnswer]


class UsageRow(BaseModel):
    """What one key used of one model in one hour."""

    hour_s: int
    key_id: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    estimated_tokens: int


class UsageAnswer(BaseModel):
    """The ledger, oldest first."""

    usage: list[UsageRow]


class AuditRow(BaseModel):
    """One administrative action."""

    time_s: float
    actor: str
    action: str
    target: str
    detail: str


class AuditAnswer(BaseModel):
    """The audit log, newest first."""

    audit: list[AuditRow]


class SessionAnswer(BaseModel):
    """Who has logged in."""

    actor: str
    scopes: list[Scope]
    expires_s: float


class Overview(BaseModel):
    """Everything that the dashboard shows."""

    now_s: float
    uptime_s: float
    version: str
    actor: str
    is_open: bool
    """Whether nobody needs a key."""
    load: dict[str, Any]
    rates: list[dict[str, float]]
    latency: dict[str, float | None]
    first_token: dict[str, float | None]
    totals: dict[str, int]
    refused: dict[str, int]
    pool: PoolAnswer
    policies: list[PolicyAnswer]
    aliases: dict[str, str]
    version_requests: dict[str, int]
    """`NAME@VERSION` -> requests since the gateway started."""
    keys: list[KeyAnswer]
    keys_total: int
    audit: list[AuditRow]
