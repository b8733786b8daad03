"""What tests of whole training runs share: a tiny policy, an env, engines that need no model.

An engine of the run's own gateway is a FakeEngine: a module that stands where vLLM's would be
found. It answers every prompt with one token, an action, whose logprob is a function of the bytes
of its weights: so equal runs train on equal numbers.
"""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.policies.manifest import PolicyInfo
from serve.policies.store import PolicyStore
from train.run import RunDir

ROOT = Path(__file__).resolve().parents[2]
ACTIONS = ("left", "right", "up", "down")
NAME = "policy"
DEADLINE_S = 240.0
_MARK = "TRAINING_TEST"
_ENTRY = "vllm.entrypoints.launchers.api_server.entry"
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENV = '''\
"""Guess the way, three times; each right guess pays."""

import random
from pathlib import Path

from envs import TextEnv

WAYS = ("left", "right", "up", "down")


class Ways(TextEnv):
    id = "ways"
    system_prompt = "Guess: <action>left</action>, right, up or down."

    def __init__(self, *, turns: int = 3, breaks: str = "") -> None:
        self.turns = self.max_turns = turns
        self.breaks = breaks
        self.way, self.turn, self.won = "", 0, 0

    @property
    def params(self):
        return {"turns": self.turns, "breaks": self.breaks}

    def reset(self, *, seed, options=None):
        self.way = random.Random(seed).choice(WAYS)
        self.turn = self.won = 0
        return "Which way?", {}

    def step(self, action):
        if self.breaks and Path(self.breaks).exists():
            raise RuntimeError("the floor gives way")
        self.turn += 1
        right = action == self.way
        self.won += right
        over = self.turn >= self.turns
        return f"Turn {self.turn}.", right / self.turns, over, False, {}

    @property
    def success(self):
        return self.won == self.turns

    def legal_actions(self):
        return WAYS

    def all_actions(self):
        return WAYS

    def oracle(self):
        return self.way

    def state(self):
        return {name: vars(self)[name] for name in ("way", "turn", "won")}

    def load(self, state):
        vars(self).update(state)
'''
_STAND_IN = '''\
"""Stands in for vLLM in an engine's process, and for nothing anywhere else."""

import importlib
import sys
from pathlib import Path

if {entry!r} not in sys.orig_argv:
    sys.path.remove(str(Path(__file__).parents[1]))
    del sys.modules["vllm"]
    importlib.import_module("vllm")
'''
_ENGINE = """\
import argparse
import sys

from serve.testing.__main__ import main

parser = argparse.ArgumentParser(allow_abbrev=False)
for option in ("model", "served-model-name", "host", "port", "max-model-len"):
    parser.add_argument(f"--{{option}}")
given, _ = parser.parse_known_args()
words = ["--host", given.host, "--port", given.port, "--model", given.served_model_name]
words += ["--root", given.model, "--max-model-len", given.max_model_len or "2048", "--dev-mode"]
sys.exit(main([*words, *{words!r}]))
"""


def make_policy(folder: Path, *, head_dim: int = 16) -> Path:
    """Write a random policy of one layer, for which each action is one token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate([*specials, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=512,
    )
    tokenizer.add_tokens([f"<action>{action}</action>" for action in ACTIONS])
    tokenizer.chat_template = _CHATML
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=2 * head_dim,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def action_ids(policy: Path) -> list[int]:
    """Return the tokens that are actions."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    ids: list[int] = tokenizer.convert_tokens_to_ids([f"<action>{a}</action>" for a in ACTIONS])
    return ids


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A folder in which runs are started, and all that they need."""

    path: Path
    policy: Path
    delay_ms: int = 20
    """Before each completion."""

    @classmethod
    def make(cls, path: Path, policy: Path, *, delay_ms: int = 20, stand_in: bool = True) -> World:
        """Write the env, and the stand-in for vLLM if there shall be one."""
        (path / "ways.py").write_text(ENV)
        made = cls(path=path, policy=policy, delay_ms=delay_ms)
        if stand_in:
            made.stand_in()
        return made

    def stand_in(self) -> None:
        """Write the stand-in for vLLM."""
        path, policy, delay_ms = self.path, self.policy, self.delay_ms
        package = path / "standin" / "vllm"
        at = package.joinpath(*_ENTRY.split(".")[1:-1])
        at.mkdir(parents=True)
        package.joinpath("__init__.py").write_text(_STAND_IN.format(entry=_ENTRY))
        words = ["--delay-ms", str(delay_ms)]
        words += [f"--reply=<|{id_}|>" for id_ in action_ids(policy)]
        (at / "entry.py").write_text(_ENGINE.format(words=words))

    @property
    def env(self) -> dict[str, str]:
        """The environment of every process that is started here."""
        return os.environ | {
            _MARK: str(self.path),
            "PYTHONPATH": f"{self.path / 'standin'}:{self.path}:{ROOT}",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def words(self, *more: str, **settings: Any) -> list[str]:
        """Return the words of a new run; `settings` have `__` for the dot."""
        told = {
            "rollouts.group_size": 2,
            "rollouts.groups_per_step": 2,
            "rollouts.max_tokens": 8,
            "learn.steps": 8,
            "learn.learning_rate": 1e-3,
            "checkpoints.every": 2,
            "publish.probes": 0,
            "model.name": NAME,
        }
        told |= {key.replace("__", "."): value for key, value in settings.items()}
        words = ["--env", f"{self.path / 'ways.py'}:Ways", "--model", str(self.policy)]
        words += ["--out", str(self.path / "runs")]
        for key, value in told.items():
            words += ["--set", f"{key}={value}"]
        return [*words, *more]

    def start(self, *words: str) -> Started:
        """Start `python -m train grpo`."""
        command = ["env", "--default-signal=INT,TERM,HUP", sys.executable, "-m", "train", "grpo"]
        log = self.path / "said.txt"
        with log.open("ab") as output:
            at = output.seek(0, os.SEEK_END)
            process = subprocess.Popen(
                [*command, *words], cwd=ROOT, env=self.env, stdout=output, stderr=output
            )
        return Started(process=process, log=log, at=at)

    def go(self, *words: str, timeout_s: float = DEADLINE_S) -> Ended:
        """Run `python -m train grpo` to its end."""
        started = self.start(*words)
        try:
            return started.end(timeout_s)
        finally:
            started.process.kill()
            started.process.wait()

    @contextlib.contextmanager
    def gateway(self, port: int) -> Iterator[subprocess.Popen[bytes]]:
        """A gateway beside the run, with an engine, that keeps its state from one to the next."""
        command = [sys.executable, "-m", "serve", "up", "--model", str(self.policy)]
        command += ["--name", NAME, "--port", str(port), "--state", str(self.path / "state")]
        log = self.path / f"gateway-{port}.txt"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.env, stdout=output, stderr=output
            )
        try:
            until(lambda: b"\nready" in log.read_bytes(), found=log.read_text)
            yield process
        finally:
            process.terminate()
            process.wait(20)

    @property
    def run(self) -> RunDir:
        """The one run that was made here."""
        (path,) = (self.path / "runs").glob("grpo_*")
        return RunDir.open(path)

    def processes(self, *words: str) -> list[int]:
        """Return the processes that were started here, whose command line has all the words."""
        return [pid for pid, said in _processes(self.path) if all(word in said for word in words)]

    def engines(self) -> list[int]:
        """Return the engines themselves, not what keeps them."""
        return [
            pid for pid, said in _processes(self.path) if _ENTRY in said and "keeper.py" not in said
        ]

    def until_nothing_is_left(self, timeout_s: float = 15.0) -> None:
        """Wait for the last process to end."""
        until(lambda: not self.processes(), timeout_s, lambda: str(_processes(self.path)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What a run's parent left."""

    code: int
    said: str

    @property
    def error(self) -> str:
        """The line that says what is wrong, which is the only one."""
        assert "Traceback" not in self.said, self.said
        (line,) = self.errors
        return line

    @property
    def errors(self) -> list[str]:
        """The lines that say what is wrong."""
        return [line for line in self.said.splitlines() if line.startswith("error: ")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A run's parent."""

    process: subprocess.Popen[bytes]
    log: Path
    at: int
    """Where its words begin in the log."""

    @property
    def said(self) -> str:
        """What it, and its learner, have said."""
        with self.log.open("rb") as log:
            log.seek(self.at)
            return log.read().decode("utf-8", "replace")

    def end(self, timeout_s: float = DEADLINE_S) -> Ended:
        """Wait for its end."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end; it said:\n{self.said}") from None
        return Ended(code=code, said=self.said)


@contextlib.contextmanager
def cleared(world: World) -> Iterator[World]:
    """Kill, after a test that failed, what it has left."""
    try:
        yield world
    finally:
        for pid in world.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def steps_of(world: World) -> list[int]:
    """Return the steps of the run that is made here; none before there is one."""
    if not any((world.path / "runs").glob("*/status.json")):
        return []
    return steps_in(world.run.metrics_path)


def steps_in(path: Path) -> list[int]:
    """Return the steps in metrics.csv, in its order; none where there is none yet."""
    return [int(row["step"]) for row in rows_in(path)]


def rows_in(path: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv, a torn last one left out."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def published(run: RunDir) -> tuple[PolicyInfo, ...]:
    """Return all versions in the store of the run's own gateway."""
    return PolicyStore(run.serve_path / "policies").versions(NAME)


def until(
    holds: Callable[[], Any],
    timeout_s: float = DEADLINE_S,
    found: Callable[[], str] = lambda: "",
) -> Any:
    """Poll until it holds; return what holds."""
    deadline_s = time.monotonic() + timeout_s
    while not (held := holds()):
        assert time.monotonic() < deadline_s, f"it did not happen in time; {found()}"
        time.sleep(0.005)
    return held


def _processes(mark: Path) -> list[tuple[int, str]]:
    """Return the processes that have the mark in their environment, with their command lines."""
    found = []
    wanted = f"{_MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                found.append((int(folder.name), b" ".join(words).decode()))
        except OSError:
            continue
    return found
