"""Runs the verbs of a deployment, on Modal or here; `serve.deploy.arguments` has their words.

The same verbs mean the same on both targets; what Modal alone can do says so.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.client import AdminClient
from serve.deploy import on_modal, plan, rates
from serve.deploy.arguments import KEY_VARIABLE, LOCAL_URL
from serve.deploy.config import ServingConfig, environment, load, load_dotenv
from serve.deploy.sections import GatewayAuth
from serve.deploy.smoke_test import check
from serve.errors import AdminError, ConfigError, DeployError


@dataclass(frozen=True, slots=True, kw_only=True)
class UpHere:
    """What `deploy --target local` asks for: `serve up` with these settings."""

    settings: dict[str, Any]


def run(options: argparse.Namespace) -> int | UpHere:
    """Run a verb and return the exit code, or what is to be started here."""
    load_dotenv()
    config = _config(options)
    if options.command == "deploy":
        return _deploy(options, config)
    is_modal = options.target == "modal"
    if options.command == "prefetch":
        return _prefetch(config, is_modal=is_modal)
    if is_modal:
        return _on_modal(options, config)
    return _here(options, config)


def _config(options: argparse.Namespace) -> ServingConfig:
    gpus = None if options.gpu is None else tuple(filter(None, options.gpu.split(",")))
    flags = {
        "model": options.model,
        "revision": options.revision,
        "name": options.name,
        "deploy.policy.gpu": gpus,
        "deploy.app": options.app,
    }
    path = Path(options.config) if options.config else None
    return load(path, sets=options.set, flags=flags)


def _deploy(options: argparse.Namespace, config: ServingConfig) -> int | UpHere:
    if options.dry_run:
        _show(config.model_dump(mode="json"))
        print(f"\ndigest    sha256:{config.digest}")
        if options.target == "modal":
            print("\n".join(rates.lines(config)))
        return 0
    if options.target == "local":
        here = {"port": options.port, "state": options.state}
        return UpHere(settings={**plan.local_settings(config), **here})
    print(f"config    sha256:{config.digest}", flush=True)
    url = on_modal.deploy(config)
    print(f"deployed  {config.deploy.app} at {url}")
    _print_urls(config, url)
    return 0


def _prefetch(config: ServingConfig, *, is_modal: bool) -> int:
    if not is_modal:
        raise ConfigError("on this machine it is: python -m serve pull MODEL")
    print(on_modal.prefetch(config, lambda line: print(line, flush=True)))
    return 0


def _on_modal(options: argparse.Namespace, config: ServingConfig) -> int:
    if options.command == "urls":
        _print_urls(config, options.url or on_modal.url(config))
    elif options.command == "smoke":
        return _smoke(options, config, options.url or on_modal.url(config))
    elif options.command == "scale":
        if options.min is options.max is options.buffer is None:
            raise ConfigError("scale: say --min, --max or --buffer")
        wanted = {
            "min_containers": options.min,
            "max_containers": options.max,
            "buffer_containers": options.buffer,
        }
        print(on_modal.scale(config, **wanted))
    else:
        on_modal.stop(config)
        print(f"stopped {config.deploy.app}; its volumes stay")
    return 0


def _here(options: argparse.Namespace, config: ServingConfig) -> int:
    """Do it with a gateway that runs already, wherever its URL leads."""
    url = options.url or LOCAL_URL
    if options.command == "smoke":
        return _smoke(options, config, url)
    if options.command == "urls":
        print(f"OPENAI_BASE_URL={url.rstrip('/')}/v1")
        print("a key, if it asks for one: python -m serve keys create --scope infer")
        return 0
    if options.command == "scale" and options.min is None:
        raise ConfigError("scale: say --min; --max and --buffer are Modal's")
    replicas = options.min if options.command == "scale" else 0
    try:
        with AdminClient(url, environment(KEY_VARIABLE) or None) as gateway:
            pool = gateway.scale(replicas)
    except AdminError as error:
        raise DeployError(f"{url}: {error}") from None
    print(f"replicas: {pool.desired} wanted, {len(pool.replicas)} there")
    if options.command == "stop":
        print("no engine is kept up; Ctrl-C ends the gateway itself")
    return 0


def _smoke(options: argparse.Namespace, config: ServingConfig, url: str) -> int:
    key = environment(KEY_VARIABLE)
    for line in check(url, key, config.policy_name, within_s=options.within_s):
        print(line, flush=True)
    return 0


def _print_urls(config: ServingConfig, url: str) -> None:
    print(f"OPENAI_BASE_URL={url.rstrip('/')}/v1")
    print(f"model     {config.policy_name}")
    if config.deploy.gateway.auth is GatewayAuth.EDGE:
        print("a key     modal workspace proxy-tokens create; OPENAI_API_KEY=wk-ID.ws-SECRET")
    else:
        print(
            f"a key     POST {url.rstrip('/')}/admin/keys as the admin: curl -H "
            f'"Authorization: Bearer $PALAESTRA_ADMIN_KEY" -H "Content-Type: application/json" '
            f'-d \'{{"name": "ann", "scopes": ["infer"]}}\' {url.rstrip("/")}/admin/keys'
        )


def _show(values: dict[str, Any], prefix: str = "") -> None:
    """Print each key with its value, as --set takes them."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            _show(value, f"{prefix}{key}.")
        else:
            print(f"{prefix}{key}={_shown(value)}")


def _shown(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
