"""From a model's spec to a policy that is known to answer, before anything is written.

Speed does not matter here: httpx.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from evalkit.config import RunConfig
from evalkit.errors import BadConfig, Unauthorized, UnknownModel, Unreachable
from evalkit.play.baselines import (
    HumanPolicy,
    NoopPolicy,
    OraclePolicy,
    RandomPolicy,
    ScriptPolicy,
)
from evalkit.play.calls import error_message
from evalkit.play.chat import ChatPolicy, Sampling
from evalkit.play.gate import Gate
from evalkit.play.limits import Patience, RetryLimits
from evalkit.play.policy import Policy
from evalkit.play.proxied import open_transport
from evalkit.specs import ModelSpec

PROBE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """A policy, and what is known of it."""

    policy: Policy
    model: str
    """The name it is asked by; a baseline's own."""
    base_url: str = ""
    host: str = ""
    server_version: str = ""
    max_model_len: int | None = None
    patience: Patience | None = None

    def described(self) -> dict[str, Any]:
        """Return what the manifest keeps of it."""
        return {
            "model": self.model,
            "base_url": self.base_url,
            "server_version": self.server_version,
            "max_model_len": self.max_model_len,
        }


async def connect(
    label: str, spec: ModelSpec, config: RunConfig, gate: Gate | None = None
) -> Connected:
    """Make the policy of `spec`, whose calls go through `gate` if there is one.

    Raises:
        UsageError: no server there, a wrong key, a wrong name; one line that says which.

    """
    if not spec.is_url:
        return Connected(policy=baseline(spec.target), model=spec.target)
    key = config.api_key(label)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    models, version = await probe(
        spec.target, headers, wait_s=config.patience_s, absent_s=config.wait_s or 0.0
    )
    name, max_model_len = choose_model(spec, models)
    if max_model_len is not None and (config.max_tokens or 0) >= max_model_len:
        raise BadConfig(
            f"max_tokens {config.max_tokens} leaves no room for a prompt: "
            f"{name} at {spec.target} takes {max_model_len} tokens in all"
        )
    limits = RetryLimits(
        attempts=config.attempts, wait_s=config.patience_s, timeout_s=config.timeout_s
    )
    patience = Patience(limits)
    policy = ChatPolicy(
        open_transport(spec.target, headers=headers),
        model=name,
        sampling=sampling(config),
        patience=patience,
        gate=gate,
    )
    return Connected(
        policy=policy,
        model=name,
        base_url=spec.target,
        host=spec.host,
        server_version=version,
        max_model_len=max_model_len,
        patience=patience,
    )


def sampling(config: RunConfig) -> Sampling:
    """Return how the config asks every model."""
    return Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        extra_body=config.extra_body,
    )


def baseline(target: str) -> Policy:
    """Make a policy that needs no server."""
    if target.startswith("script:"):
        return ScriptPolicy.read(Path(target.removeprefix("script:")))
    makers: dict[str, Callable[[], Policy]] = {
        "random": RandomPolicy,
        "oracle": OraclePolicy,
        "noop": NoopPolicy,
        "human": HumanPolicy,
    }
    return makers[target]()


async def probe(
    base_url: str,
    headers: dict[str, str],
    *,
    wait_s: float,
    absent_s: float = 0.0,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> tuple[dict[str, dict[str, Any]] | None, str]:
    """Ask a server for its models and its version.

    A 503 is a server that is starting: it is asked again for up to `wait_s` seconds. One that is
    not there at all is asked again for up to `absent_s` seconds.

    Returns ({name: what /models says of it}, version or ""); None for a server without /models.
    """
    async with httpx.AsyncClient(
        headers=headers, timeout=PROBE_TIMEOUT_S, follow_redirects=True
    ) as client:
        waited_s, pause_s = 0.0, 0.5
        while True:
            try:
                response = await _get(client, f"{base_url}/models")
            except Absent:
                if waited_s >= absent_s:
                    raise
            else:
                if response.status_code != 503 or waited_s >= wait_s:
                    break
            await sleep(pause_s)
            waited_s += pause_s
            pause_s = min(10.0, pause_s * 2)
        models = read_models(base_url, response)
        return models, await _version(client, base_url)


class Absent(Unreachable):
    """No connection at all: nothing listens, or the name does not resolve."""


async def _get(client: httpx.AsyncClient, url: str) -> httpx.Response:
    try:
        return await client.get(url)
    except httpx.ConnectError as error:
        raise Absent(f"nothing answers at {url} ({error}): is the server up?") from error
    except httpx.TimeoutException as error:
        raise Unreachable(f"{url}: no answer within {PROBE_TIMEOUT_S:.0f} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(f"{url}: {str(error) or type(error).__name__}") from error


async def _version(client: httpx.AsyncClient, base_url: str) -> str:
    """Return what vLLM says at /version; "" for every other server."""
    root = base_url.rsplit("/", 1)[0]
    try:
        response = await client.get(f"{root}/version")
        version = response.json()["version"] if response.status_code == 200 else ""
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return ""
    return str(version)


def read_models(base_url: str, response: httpx.Response) -> dict[str, dict[str, Any]] | None:
    """Read an answer of GET /models.

    Raises:
        Unauthorized: 401 or 403.
        Unreachable: it is not an OpenAI-compatible answer.

    """
    status = response.status_code
    if status in {401, 403}:
        raise Unauthorized(
            f"{base_url}: HTTP {status}: {error_message(response.content)}"
            " (name the variable that holds the key: --api-key-env VAR)"
        )
    if status == 404:
        return None
    if status != 200:
        raise Unreachable(f"{base_url}/models: HTTP {status}: {error_message(response.content)}")
    try:
        return {str(model["id"]): dict(model) for model in response.json()["data"]}
    except (ValueError, KeyError, TypeError) as error:
        said = error_message(response.content)
        raise Unreachable(f"{base_url}/models is not an OpenAI model list: {said}") from error


def choose_model(
    spec: ModelSpec, models: dict[str, dict[str, Any]] | None
) -> tuple[str, int | None]:
    """Return (name, context length where the server says it) of the model to ask for.

    Raises:
        UnknownModel: the server has another list than the spec wants.

    """
    if models is None:
        if spec.name is None:
            raise UnknownModel(f"{spec.target} lists no models: add #NAME to the URL")
        return spec.name, None
    known = ", ".join(models) or "none"
    if spec.name is None:
        names = [name for name in models if "@" not in name or not _is_version(name, models)]
        if len(names) != 1:
            raise UnknownModel(f"{spec.target} has {len(names)} models ({known}): add #NAME")
        name = names[0]
    elif spec.name in models or _is_version(spec.name, models):
        name = spec.name
    else:
        raise UnknownModel(f"{spec.target} has no model {spec.name!r}; it has {known}")
    length = models.get(name, {}).get("max_model_len")
    return name, length if isinstance(length, int) else None


def _is_version(name: str, models: dict[str, dict[str, Any]]) -> bool:
    """Whether NAME@7 names a version of a model that is listed as NAME."""
    return name.partition("@")[0] in models


def require_playable(specs: list[tuple[str, ModelSpec]], config: RunConfig, *, own: bool) -> None:
    """Refuse what cannot be played as asked.

    Raises:
        BadConfig: a human among several models, or guided answers of nothing but baselines.

    """
    if any(config.guided) and not own and not any(spec.is_url for _, spec in specs):
        raise BadConfig("guided answers need a server: a baseline always plays as it does")
    if len(specs) > 1 and any(spec.target == "human" for _, spec in specs):
        raise BadConfig("a human plays alone: --model human takes no second model")
