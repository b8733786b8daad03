"""A gateway that somebody else runs: whether it is there, lets us in, and serves the model."""

from __future__ import annotations

from pathlib import Path

import httpx

from train.config import TrainConfig
from train.errors import BadConfig

_TIMEOUT_S = 10.0


def base_url(url: str) -> str:
    """Return a gateway's URL with /v1 at its end, whether it was there or not."""
    return f"{url.rstrip('/').removesuffix('/v1')}/v1"


def ensure_serves(
    config: TrainConfig, api_key: str | None, *, transport: httpx.BaseTransport | None = None
) -> None:
    """Ask for the models of `gateway.url`.

    Raises:
        BadConfig: nobody answers there, the key is not taken, or the model is not among them.

    """
    url = base_url(config.gateway.url or "")
    variable = config.gateway.api_key_env
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with httpx.Client(headers=headers, timeout=_TIMEOUT_S, transport=transport) as client:
            answer = client.get(f"{url}/models")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BadConfig(
            f"no gateway answers at {url}: {str(error) or type(error).__name__}"
        ) from error
    if answer.status_code in (401, 403):
        told = "the key in it is not taken" if api_key else "it is not set"
        raise BadConfig(
            f"the gateway at {url} asks for a key, of the scopes train and admin: "
            f"${variable} is where it is looked for, and {told}"
        )
    try:
        models = [str(card["id"]) for card in answer.raise_for_status().json()["data"]]
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
        raise BadConfig(f"{url} is no gateway: {error}") from error
    name = config.model.name or Path(config.model.path).name
    if name not in models:
        raise BadConfig(
            f"the gateway at {url} does not serve {name}, but {', '.join(models) or 'nothing'}; "
            "which of them is to be trained goes into model.name"
        )
