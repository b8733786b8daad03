"""Simulators of task families: one base class, a registry, and what checks them.

Standard library only; imports nothing of the project's other packages.
"""

from envs.base import NO_ACTION, EpisodeOver, Parsed, ParseKind, TextEnv, parse_tag
from envs.registry import BadEnvParams, UnknownEnv, digest, env_class, env_id, make

__all__ = [
    "NO_ACTION",
    "BadEnvParams",
    "EpisodeOver",
    "ParseKind",
    "Parsed",
    "TextEnv",
    "UnknownEnv",
    "digest",
    "env_class",
    "env_id",
    "make",
    "parse_tag",
]
