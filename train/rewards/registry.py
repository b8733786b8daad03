"""Finds the reward that a config names."""

from __future__ import annotations

import difflib
import importlib

from train.config import RewardSection
from train.errors import BadConfig
from train.rewards.base import Reward
from train.rewards.env import EnvReturn
from train.rewards.shaped import Shaped

SHIPPED: dict[str, type[Reward]] = {"env": EnvReturn, "shaped": Shaped}
"""Rewards that are known by a short name."""


def make_reward(section: RewardSection) -> Reward:
    """Make the reward of a config: a shipped one, or `pkg.mod:Class` from the import path.

    Raises:
        BadConfig: there is no such reward, it is no subclass of `train.rewards.base.Reward`, or it
            does not take `reward.args`.

    """
    kind = _find(section.name)
    try:
        made = kind.make(**section.args)
    except (TypeError, ValueError) as error:
        told = ", ".join(f"{name}={value!r}" for name, value in section.args.items()) or "nothing"
        raise BadConfig(
            f"reward {section.name!r} does not take reward.args {told}: {error}"
        ) from error
    if not isinstance(made, Reward):
        raise BadConfig(f"reward {section.name!r}: make() returned {made!r}, which is no Reward")
    return made


def _find(name: str) -> type[Reward]:
    if name in SHIPPED:
        return SHIPPED[name]
    module_name, colon, class_name = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, SHIPPED, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BadConfig(
            f"no reward is named {name!r}: there are {', '.join(SHIPPED)}, or pkg.mod:Class{hint}"
        )
    found = _look_up(name, module_name, class_name)
    if not (isinstance(found, type) and issubclass(found, Reward)):
        raise BadConfig(
            f"reward {name!r} is {found!r}: expected a subclass of train.rewards.base.Reward"
        )
    return found


def _look_up(name: str, module_name: str, class_name: str) -> object:
    if not class_name or not all(part.isidentifier() for part in module_name.split(".")):
        raise BadConfig(f"reward {name!r} does not read as pkg.mod:Class")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a stranger's module may raise anything
        raise BadConfig(
            f"reward {name!r}: cannot import {module_name}: {type(error).__name__}: {error}"
        ) from error
    try:
        return getattr(module, class_name)
    except AttributeError:
        raise BadConfig(f"reward {name!r}: {module_name} has no {class_name}") from None
