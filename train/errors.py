"""Everything that training can raise, in one tree.

* TrainError
  - UsageError: it cannot be carried out as asked; nothing was started or written (exit code 2)
    - BadConfig
    - BadModel
    - UnknownJob
  - RunFailed: it stopped half-way; `--resume` goes on (exit code 1)
    - RolloutFailed
    - RewardFailed
    - PublishFailed
    - SaveFailed
    - GatewayLost
    - HubFailed
"""

from __future__ import annotations


class TrainError(Exception):
    """The root: what is not below it is a bug."""


class UsageError(TrainError):
    """It cannot be carried out as asked; nothing was started."""


class BadConfig(UsageError):
    """A setting is unknown, out of its range, or does not go with another."""


class BadModel(UsageError):
    """The checkpoint is missing, damaged, or lacks what training needs of it."""


class UnknownJob(UsageError):
    """No job has this id, where it was asked for."""


class RunFailed(TrainError):
    """It stopped half-way. What was complete is kept; `--resume` goes on."""


class RolloutFailed(RunFailed):
    """Episodes cannot be played: the env raises, or the server refuses for good."""


class RewardFailed(RunFailed):
    """A reward breaks its port, or cannot score anything any more."""


class PublishFailed(RunFailed):
    """A version was not taken, or no replica serves it as the trainer meant it."""


class SaveFailed(RunFailed):
    """A checkpoint could not be written; the ones before it are untouched."""


class GatewayLost(RunFailed):
    """The gateway is away for longer than it is waited for."""


class HubFailed(RunFailed):
    """The Hugging Face hub cannot be reached or fails; what is there is as it was."""
