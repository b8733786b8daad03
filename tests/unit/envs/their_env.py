"""Somebody else's env, in a file of its own: find the exit of a dark corridor."""

import random
from typing import Any

from envs import EpisodeOver, TextEnv


class Corridor(TextEnv):
    id = "corridor"
    system_prompt = "Find the exit of a dark corridor. Answer <action>left</action> or right."

    def __init__(self, *, length: int = 5, max_turns: int = 12) -> None:
        self.length, self.max_turns = length, max_turns
        self.at, self.exit, self.turn, self.over = 0, -1, 0, True

    @property
    def params(self) -> dict[str, Any]:
        return {"length": self.length, "max_turns": self.max_turns}

    def reset(self, *, seed: int, options: Any = None) -> tuple[str, dict[str, Any]]:
        self.at, self.exit = random.Random(seed).sample(range(self.length), 2)
        self.turn, self.over = 0, False
        return "It is dark.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.over:
            raise EpisodeOver("call reset first")
        self.turn += 1
        legal = action in self.legal_actions()
        self.at += {"left": -1, "right": 1}[action] if legal else 0
        cut = not self.success and self.turn >= self.max_turns
        self.over = self.success or cut
        info = {} if legal else {"illegal": True, "error": "you cannot do that here"}
        return "It is dark.", float(self.success), self.success, cut, info

    @property
    def success(self) -> bool:
        return self.at == self.exit

    def legal_actions(self) -> tuple[str, ...]:
        return ("left",) * (self.at > 0) + ("right",) * (self.at < self.length - 1)

    def all_actions(self) -> tuple[str, ...]:
        return ("left", "right")

    def oracle(self) -> str:
        return "right" if self.exit > self.at else "left"

    def state(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("at", "exit", "turn", "over")}

    def load(self, state: Any) -> None:
        vars(self).update(state)
