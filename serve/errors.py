"""What can go wrong in serve, by what the caller can do about it.

ServeError
├── ConfigError          the request to serve is wrong: say it in one line, exit code 2
│   ├── UnknownModel     no such checkpoint, and how to get one
│   └── PortInUse        somebody else listens there
├── PullFailed           the model could not be fetched or is not what was expected
└── EngineError
    ├── EngineDied       the engine's process ended by itself; carries its log's tail
    └── EngineNotReady   alive, but no completion worked before the deadline
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


class EngineError(ServeError):
    """The engine cannot serve."""


class EngineDied(EngineError):
    """The engine's process ended without being asked to."""


class EngineNotReady(EngineError):
    """The engine runs, yet no completion worked before the deadline."""
