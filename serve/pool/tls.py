"""What a connection to a replica over https believes."""

import ssl
from collections.abc import Iterable
from pathlib import Path

from serve.errors import ConfigError


def trusting(urls: Iterable[str], ca: Path | None) -> ssl.SSLContext | None:
    """Return what to believe; None where no URL is https: reading certificates takes 60 ms.

    The certificates in `ca` take the place of the system's. Raises ConfigError.
    """
    if not any(url.startswith("https://") for url in urls):
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"remote.ca: cannot read {ca}: {error}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context
