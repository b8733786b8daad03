"""What can go wrong in serve, by what the caller can do about it.

ServeError
├── ConfigError          the request to serve is wrong: say it in one line, exit code 2
│   ├── UnknownModel     no such checkpoint, and how to get one
│   └── PortInUse        somebody else listens there
├── PullFailed           the model could not be fetched or is not what was expected
├── StateError           what lies in the state folder cannot be read or written
├── EngineError
│   ├── EngineDied       the engine's process ended by itself; carries its log's tail
│   ├── EngineNotReady   alive, but no completion worked before the deadline
│   └── SwapFailed       the engine did not take the weights; it serves what it served before
│       └── ProbeFailed  it took them, and does not compute with them what their trainer does
├── PolicyError
│   ├── UnknownPolicy    no such name, or no such version of it
│   ├── BadCheckpoint    what was to be published is incomplete, or not what it says it is
│   └── VersionConflict  the version exists with other bytes, or lies behind the newest
├── DeployError          a deployment could not be made, reached or changed
│   └── ContainerFailed  what a container runs ended, or was not ready in time; with its log's tail
└── AdminError           the gateway refused what an AdminClient asked; carries status and body
"""


class ServeError(Exception):
    """Root of all errors that serve raises on purpose."""


class ConfigError(ServeError):
    """What was asked for cannot be served; nothing was started."""


class UnknownModel(ConfigError):
    """There is no checkpoint under that name or path."""


class PortInUse(ConfigError):
    """The address to listen on is taken."""


class PullFailed(ServeError):
    """A model could not be fetched, or what came is not what was expected."""


class StateError(ServeError):
    """The state folder's content cannot be read or written."""


class EngineError(ServeError):
    """The engine cannot serve."""


class EngineDied(EngineError):
    """The engine's process ended without being asked to."""


class EngineNotReady(EngineError):
    """The engine runs, yet no completion worked before the deadline."""


class SwapFailed(EngineError):
    """The engine did not take new weights."""


class ProbeFailed(SwapFailed):
    """The engine does not compute with new weights what their trainer does."""


class PolicyError(ServeError):
    """A policy cannot be published, found or rolled back."""


class UnknownPolicy(PolicyError):
    """No policy has that name, or it has no such version."""


class BadCheckpoint(PolicyError):
    """The folder is not a whole checkpoint of the kind it claims to be."""


class VersionConflict(PolicyError):
    """The version is taken by other bytes, or lies behind the newest one."""


class DeployError(ServeError):
    """A deployment could not be made, reached or changed."""


class ContainerFailed(DeployError):
    """What a container runs ended by itself, or was not ready before the deadline."""


class AdminError(ServeError):
    """A gateway refused an administrative request, or did not answer: then `status` is 0."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the gateway answered {status}: {message}" if status else message)
        self.status = status
