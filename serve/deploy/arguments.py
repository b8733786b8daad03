"""The words of a deployment's verbs: deploy, prefetch, smoke, urls, scale, stop.

Apart from what runs them, so that --help imports nothing heavy.
"""

import argparse

KEY_VARIABLE = "PALAESTRA_API_KEY"
"""The variable with the key that a gateway is asked with."""
LOCAL_URL = "http://127.0.0.1:8000"

VERBS = ("deploy", "prefetch", "smoke", "urls", "scale", "stop")

_EPILOG = f"""examples:
  python -m serve deploy --target modal --dry-run
  python -m serve prefetch --target modal --model Qwen/Qwen3-0.6B
  python -m serve deploy --target modal --set deploy.policy.gpu=L4
  python -m serve smoke --target modal
  python -m serve scale --target modal --min 2 --max 8

${KEY_VARIABLE} is the key with which the gateway is asked.

exit codes: 0 done, 1 the deployment does not answer or was refused, 2 wrong usage, or an account,
a secret or a volume that is missing
"""
_MEANINGS = {
    "deploy": "make a deployment, or replace the one of that name",
    "prefetch": "bring the model to where replicas find it, before a GPU waits for it",
    "smoke": "ask for one chat and one stream; wait until somebody answers",
    "urls": "say where the gateway is and how to get a key",
    "scale": "change how many replicas there are, until the next deploy",
    "stop": "stop the deployment; policies and keys stay",
}


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs to the commands of a parser."""
    for verb in VERBS:
        parser = commands.add_parser(
            verb,
            help=_MEANINGS[verb],
            description=_MEANINGS[verb].capitalize() + ".",
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_config(parser)
        if verb == "deploy":
            parser.add_argument(
                "--dry-run", action="store_true", help="show the config, its digest and the cost"
            )
            parser.add_argument("--port", type=int, help="local only; 0: a free one")
            parser.add_argument("--state", metavar="DIR", help="local only: keys, policies, logs")
        if verb in ("smoke", "urls", "scale", "stop"):
            parser.add_argument("--url", help=f"of the gateway; local: {LOCAL_URL} unless given")
        if verb == "smoke":
            parser.add_argument("--within-s", type=float, default=900.0, metavar="S")
        if verb == "scale":
            parser.add_argument("--min", type=int, metavar="N", help="replicas that stay up")
            parser.add_argument("--max", type=int, metavar="N", help="Modal only")
            parser.add_argument("--buffer", type=int, metavar="N", help="Modal only: in reserve")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", choices=("modal", "local"), default="modal")
    parser.add_argument("--config", metavar="FILE", help="YAML (default: configs/modal.yaml)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="wins: deploy.app=mine"
    )
    parser.add_argument("--model", help="a hub id ORG/NAME, or a folder here")
    parser.add_argument("--revision", help="of the hub's model")
    parser.add_argument("--name", help="what requests call it")
    parser.add_argument("--gpu", help="such as H100, or L4,T4 for whichever is free first")
    parser.add_argument("--app", help="what Modal calls the deployment")
