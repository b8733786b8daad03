"""A loopback control plane on which the real `modal` CLI and container runtime run, accountless."""

from tests.loopback_modal.loopback import LoopbackModal
from tests.loopback_modal.rpc import Call
from tests.loopback_modal.views import (
    AppView,
    CallView,
    ContainerView,
    FunctionView,
    ServerView,
    VolumeView,
)

__all__ = [
    "AppView",
    "Call",
    "CallView",
    "ContainerView",
    "FunctionView",
    "LoopbackModal",
    "ServerView",
    "VolumeView",
]
