"""The config: what it reads, what it refuses, what changes its digest, what each key changes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import evalkit
from evalkit.config import INCIDENTAL, RunConfig, load_yaml
from evalkit.errors import BadConfig, ServerLost
from evalkit.judge.compare import Decision
from evalkit.play.policy import Ask, Completion
from evalkit.run import Run
from evalkit.specs import ModelSpec, parse_model, parse_seeds
from evalkit.testing import FakePolicy, FakeServer

UP = "<action>up</action>"


@pytest.mark.parametrize(
    ("text", "label", "target", "name"),
    [
        ("random", None, "random", None),
        ("oracle", None, "oracle", None),
        ("B=noop", "B", "noop", None),
        ("human", None, "human", None),
        ("script:a/b.txt", None, "script:a/b.txt", None),
        ("x=script:f", "x", "script:f", None),
        ("http://host", None, "http://host/v1", None),
        ("http://host:8000/", None, "http://host:8000/v1", None),
        ("https://host/v1", None, "https://host/v1", None),
        ("http://host/api/v3/", None, "http://host/api/v3", None),
        ("http://host#name", None, "http://host/v1", "name"),
        ("http://host/v1#org/name@7", None, "http://host/v1", "org/name@7"),
        ("http://host#", None, "http://host/v1", None),
        ("A=http://host:1/v1#m", "A", "http://host:1/v1", "m"),
        ("base.line_1-x=http://h", "base.line_1-x", "http://h/v1", None),
        ("http://[::1]:8000", None, "http://[::1]:8000/v1", None),
    ],
)
def test_models_are_read(text: str, label: str | None, target: str, name: str | None) -> None:
    spec = ModelSpec(label=label, target=target, name=name)
    assert parse_model(text) == spec
    assert parse_model(spec.under(label)) == spec
    assert parse_model(spec.under("other")) == ModelSpec(label="other", target=target, name=name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A=",
        "gpt-4",
        "Random",
        "script:",
        "ftp://host",
        "http://",
        "host:8000",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://user:secret@host",
        "http://host/v1?key=secret",
        "a b=random",
        "x" * 41 + "=random",
    ],
)
def test_models_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="model"):
        parse_model(text)


@pytest.mark.parametrize(
    ("text", "baseline", "host"),
    [
        ("http://host:1/v1", "", "host"),
        ("https://[::1]:1", "", "::1"),
        ("random", "random", ""),
        ("script:f", "script", ""),
    ],
)
def test_a_spec_knows_its_kind(text: str, baseline: str, host: str) -> None:
    spec = parse_model(text)
    assert (spec.baseline, spec.host, spec.is_url) == (baseline, host, bool(host))


@pytest.mark.parametrize(
    ("value", "seeds"),
    [
        ("0:3", (0, 1, 2)),
        ("5:7", (5, 6)),
        ("7", (7,)),
        ("3,1, 2", (3, 1, 2)),
        ("0:2,10:12", (0, 1, 10, 11)),
        ([4, 2], (4, 2)),
        (range(3), (0, 1, 2)),
    ],
)
def test_seeds_are_read(value: object, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(value) == seeds


@pytest.mark.parametrize(
    "value",
    ["", "a", "3:", ":3", "-1", "3:1", "0:0", "1,1", "0:3,2", "1.5", "²", "0:1000001", "9" * 30,
     "0:99999999999", [], [1.0], [True], [-1], [1, 1], 7, None, {"a": 1}],
)  # fmt: skip
def test_seeds_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="seeds"):
        parse_seeds(value)


MINIMAL: dict[str, Any] = {"model": "random", "env": "key_door"}
DUEL: dict[str, Any] = {"model": ["random", "noop"], "env": "key_door"}
STOPPED: dict[str, Any] = {**DUEL, "stop": "decided"}


def test_defaults_are_those_of_the_help_text() -> None:
    assert RunConfig.read(MINIMAL).model_dump() == {
        "model": ("random",),
        "env": "key_door",
        "env_args": {},
        "strategy": ("NO_HISTORY",),
        "guided": (False,),
        "seeds": tuple(range(100)),
        "k": 1,
        "temperature": 0.1,
        "top_p": None,
        "max_tokens": 256,
        "extra_body": {},
        "keep_reasoning": False,
        "run_seed": 0,
        "stop": None,
        "stop_on": None,
        "alpha": None,
        "margin": None,
        "span": None,
        "concurrency": 64,
        "attempts": 6,
        "timeout_s": 120.0,
        "wait_s": None,
        "api_key_env": (),
        "price": (),
        "out": "results",
        "wandb": None,
    }


def test_a_config_survives_its_manifest() -> None:
    config = RunConfig.read({**MINIMAL, "strategy": "WINDOW(2),NO_HISTORY", "guided": "off,on"})
    assert RunConfig.read(config.model_dump(mode="json")) == config
    assert config.strategy == ("WINDOW(k=2)", "NO_HISTORY")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"env": "key_door"}, "model is missing"),
        ({"model": "random"}, "env is missing"),
        (
            {**MINIMAL, "envs": "x"},
            "unknown setting 'envs'; known are alpha, api_key_env, attempts",
        ),
        ({**MINIMAL, "env": ""}, "env: "),
        ({**MINIMAL, "env": 5}, "env: Input should be a valid string, not 5"),
        ({**MINIMAL, "env_args": [1]}, "env_args: "),
        ({**MINIMAL, "model": 5}, "model: expected a text or a list of texts, not 5"),
        ({**MINIMAL, "model": []}, "expected 1 to 26 models, found 0"),
        ({**MINIMAL, "model": ["random", "random"]}, "two models go by the same name"),
        ({**MINIMAL, "model": ["A=random", "A=noop"]}, "two models go by the same name"),
        ({**MINIMAL, "strategy": "NO_HISTORY,no_history"}, "a strategy is named twice"),
        ({**MINIMAL, "strategy": "WINDOW,WINDOW(4)"}, "a strategy is named twice"),
        ({**MINIMAL, "guided": "maybe"}, "guided is on, off, or off,on"),
        ({**MINIMAL, "guided": "on,true"}, "guided is on, off, or off,on"),
        ({**MINIMAL, "k": 0}, "k: Input should be greater than or equal to 1, not 0"),
        ({**MINIMAL, "k": True}, "k: "),
        ({**MINIMAL, "k": "3"}, "k: "),
        ({**MINIMAL, "temperature": -0.1}, "temperature: "),
        ({**MINIMAL, "temperature": float("nan")}, "temperature: "),
        ({**MINIMAL, "top_p": 0}, "top_p: "),
        ({**MINIMAL, "top_p": 1.1}, "top_p: "),
        ({**MINIMAL, "max_tokens": 0}, "max_tokens: "),
        ({**MINIMAL, "max_tokens": 2**64}, "cannot be written as JSON"),
        ({**MINIMAL, "extra_body": {"seed": 1}}, "extra_body: seed cannot be set"),
        ({**MINIMAL, "extra_body": {"stream": True}}, "extra_body: stream cannot be set"),
        ({**MINIMAL, "extra_body": {"x": {1, 2}, "y": object()}}, "cannot be written as JSON"),
        ({**MINIMAL, "env_args": {"x": 2**70}}, "cannot be written as JSON"),
        ({**MINIMAL, "env_args": {"x": "\ud800"}}, "cannot be written as JSON"),
        ({**MINIMAL, "run_seed": -1}, "run_seed: "),
        ({**MINIMAL, "concurrency": 0}, "concurrency: "),
        ({**MINIMAL, "concurrency": 10_001}, "concurrency: "),
        ({**MINIMAL, "attempts": 0}, "attempts: "),
        ({**MINIMAL, "timeout_s": 0.0}, "timeout_s: "),
        ({**MINIMAL, "wait_s": -1.0}, "wait_s: "),
        ({**MINIMAL, "api_key_env": "B=KEY"}, "api_key_env: no model 'B'; there are random"),
        ({**MINIMAL, "keep_reasoning": "yes"}, "keep_reasoning: "),
        ({**MINIMAL, "out": 5}, "out: "),
        ({**MINIMAL, "stop": "decided"}, "stop: decided needs two arms or more"),
        ({**DUEL, "stop": "maybe"}, "stop: Input should be 'decided', not 'maybe'"),
        ({**MINIMAL, "alpha": 0.1}, "alpha needs stop: decided"),
        ({**MINIMAL, "stop_on": "return"}, "stop_on needs stop: decided"),
        ({**MINIMAL, "span": 2.0}, "span needs stop: decided"),
        ({**MINIMAL, "max_seeds": 9}, "max_seeds needs stop: decided"),
        ({**STOPPED, "max_seeds": 9, "seeds": "0:9"}, "max_seeds and seeds (or n) both say"),
        ({**STOPPED, "max_seeds": 0}, "max_seeds is a whole number from 1 to 1000000, not 0"),
        ({**STOPPED, "max_seeds": True}, "max_seeds is a whole number from 1 to 1000000, not True"),
        ({**STOPPED, "alpha": 1.0}, "alpha: Input should be less than 1, not 1.0"),
        ({**STOPPED, "margin": 1.0}, "expected 0 < margin < span 1.0, got 1.0"),
        ({**STOPPED, "stop_on": "turns"}, "expected one of success, valid_action_rate, return, "),
        ({**STOPPED, "stop_on": "return"}, "stop_on: return needs span, the highest return less"),
        ({**STOPPED, "span": 2.0}, "span is only for stop_on: return; success lies in 0..1"),
    ],
)
def test_bad_configs_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig) as refused:
        RunConfig.read(values, "here")
    assert str(refused.value).startswith("here: ")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("models", "labels"),
    [
        ("random", ["random"]),
        ("http://a", ["A"]),
        (["http://a", "http://b"], ["A", "B"]),
        (["B=http://a", "http://b", "http://c"], ["B", "A", "C"]),
        (["http://a", "oracle", "x=noop"], ["A", "oracle", "x"]),
    ],
)
def test_every_model_has_a_label(models: object, labels: list[str]) -> None:
    config = RunConfig.read({**MINIMAL, "model": models})
    assert [label for label, _ in config.models()] == labels


CHANGED: dict[str, Any] = {
    "model": "noop",
    "env": "tic_tac_toe",
    "env_args": {"size": 5},
    "strategy": "FULL_HISTORY",
    "guided": "on",
    "seeds": "0:99",
    "k": 2,
    "temperature": 0.2,
    "top_p": 0.9,
    "max_tokens": 255,
    "extra_body": {"min_p": 0.1},
    "keep_reasoning": True,
    "run_seed": 1,
    "concurrency": 2,
    "attempts": 2,
    "timeout_s": 2.0,
    "wait_s": 2.0,
    "api_key_env": "KEY",
    "price": "1,2",
    "wandb": "project",
    "out": "elsewhere",
}


HOW_TO_STOP: dict[str, Any] = {
    "stop": "decided",
    "stop_on": "valid_action_rate",
    "alpha": 0.01,
    "margin": 0.02,
    "span": 3.0,
}
"""Settings that need two arms, and all but the first need it."""


def test_the_digest_names_everything_that_can_change_a_trajectory() -> None:
    assert {*CHANGED, *HOW_TO_STOP} == set(RunConfig.model_fields)
    before = RunConfig.read(MINIMAL).digest("env")
    digests = {
        key: RunConfig.read({**MINIMAL, key: value}).digest("env") for key, value in CHANGED.items()
    }
    assert {key for key, digest in digests.items() if digest == before} == set(INCIDENTAL)
    different = [digest for key, digest in digests.items() if key not in INCIDENTAL]
    assert len(set(different)) == len(different)
    assert RunConfig.read(MINIMAL).digest("another env") != before


def test_the_digest_names_how_a_run_stops_and_nothing_new_where_it_does_not() -> None:
    base: dict[str, Any] = {**DUEL, "seeds": "0:2000"}
    runs = [base, {**base, "stop": "decided"}]
    runs += [{**runs[1], key: HOW_TO_STOP[key]} for key in ("stop_on", "alpha", "margin")]
    returns = {**runs[1], "stop_on": "return"}
    runs += [{**returns, "span": span} for span in (2.0, 3.0)]
    digests = [RunConfig.read(run).digest("env") for run in runs]
    assert len(set(digests)) == len(digests)
    assert RunConfig.read({**base, "margin": 0.02}).digest("env") == digests[0]
    assert RunConfig.read({"model": "random", "env": "key_door"}).digest("env") == "ec99a304"


def test_a_budget_is_the_seeds_that_there_may_be() -> None:
    config = RunConfig.read(STOPPED)
    assert (config.seeds, config.alpha, config.stop_on) == (tuple(range(2_000)), 0.05, "success")
    assert config == RunConfig.read({**STOPPED, "max_seeds": 2_000})
    assert config == RunConfig.read({**DUEL, "seeds": "0:2000", "stop": "decided", "alpha": 0.05})
    assert RunConfig.read(config.model_dump(mode="json")) == config
    assert RunConfig.read({**STOPPED, "seeds": "7,3"}).seeds == (7, 3)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("model: random\nenv-args: {size: 5}\n", {"model": "random", "env_args": {"size": 5}}),
        ("max-tokens: null\n", {"max_tokens": None}),
    ],
)
def test_yaml_is_read(tmp_path: Path, text: str, values: dict[str, Any]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert load_yaml(file) == values


@pytest.mark.parametrize(
    "data", [None, b"- a\n", b"a", b"a: [", b"1: 2\n", b"\xff\xfe\xff", b"a: !!python/object:x {}"]
)
def test_yaml_is_refused(tmp_path: Path, data: bytes | None) -> None:
    file = tmp_path / "config.yaml"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(BadConfig, match=r"config .*config\.yaml: "):
        load_yaml(file)


@pytest.fixture(name="key_variables")
def _key_variables() -> Iterator[None]:
    variables = {"EVALKIT_TEST_KEY": " sesame\n", "EVALKIT_TEST_B": "b", "EVALKIT_TEST_BAD": "é"}
    os.environ.update(variables)
    yield
    for name in variables:
        del os.environ[name]


@pytest.mark.usefixtures("key_variables")
def test_keys_are_read_by_label() -> None:
    named = ("EVALKIT_TEST_KEY", "B=EVALKIT_TEST_B")
    config = RunConfig.read(
        {"model": ["http://a", "http://b"], "env": "key_door", "api_key_env": named}
    )
    assert (config.api_key("A"), config.api_key("B")) == ("sesame", "b")
    assert RunConfig.read(MINIMAL).api_key("random") is None


@pytest.mark.usefixtures("key_variables")
@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("EVALKIT_TEST_ABSENT", "that environment variable is not set"),
        ("EVALKIT_TEST_BAD", "what no HTTP header can carry"),
    ],
)
def test_keys_are_refused(variable: str, message: str) -> None:
    config = RunConfig.read({**MINIMAL, "api_key_env": variable})
    with pytest.raises(BadConfig, match=message):
        config.api_key("random")


# What every key changes: see `test_every_key_has_a_test`.


def play(model: Any, tmp_path: Path, **settings: Any) -> Run:
    small: dict[str, Any] = {
        "env_args": {"size": 2, "max_turns": 2},
        "seeds": [0],
        "out": str(tmp_path / "out"),
    }
    return evalkit.evaluate(model, settings.pop("env", "key_door"), **{**small, **settings})


def asked(tmp_path: Path, reply: str = UP, **settings: Any) -> list[dict[str, Any]]:
    """Return the bodies of the requests that a run makes."""
    with FakeServer(lambda _: reply) as server:
        play(server.url, tmp_path, **settings)
        return server.bodies


def test_model_env_and_env_args_choose_who_plays_what(tmp_path: Path) -> None:
    oracle = play("oracle", tmp_path, env_args={"size": 2}).summary[0]
    noop = play("noop", tmp_path, env_args={"size": 3}).summary[0]
    other = play("noop", tmp_path, env="tic_tac_toe", env_args={}).summary[0]
    assert (oracle["success_rate"], noop["success_rate"]) == (1.0, 0.0)
    assert [row["env"] for row in (oracle, noop, other)] == ["key_door"] * 2 + ["tic_tac_toe"]
    assert '"size":2' in oracle["env_args"]
    assert '"size":3' in noop["env_args"]


def test_strategy_changes_the_messages(tmp_path: Path) -> None:
    lengths = {
        name: [len(body["messages"]) for body in asked(tmp_path, strategy=name)]
        for name in ("NO_HISTORY", "FULL_HISTORY")
    }
    assert lengths == {"NO_HISTORY": [2, 2], "FULL_HISTORY": [2, 4]}


def test_seeds_and_k_choose_the_episodes(tmp_path: Path) -> None:
    run = play("noop", tmp_path, seeds="3:5", k=2)
    assert [(row["env_seed"], row["repetition"]) for row in run.episodes()] == [
        ("3", "0"), ("3", "1"), ("4", "0"), ("4", "1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, {"temperature": 0.1, "max_tokens": 256}),
        ({"temperature": 0.7}, {"temperature": 0.7, "max_tokens": 256}),
        ({"temperature": None}, {"max_tokens": 256}),
        ({"top_p": 0.9}, {"temperature": 0.1, "top_p": 0.9, "max_tokens": 256}),
        ({"max_tokens": 5}, {"temperature": 0.1, "max_tokens": 5}),
        ({"max_tokens": None}, {"temperature": 0.1}),
        ({"extra_body": {"min_p": 0.1}}, {"temperature": 0.1, "max_tokens": 256, "min_p": 0.1}),
        (
            {"guided": True},
            {
                "temperature": 0.1,
                "max_tokens": 256,
                "structured_outputs": {"regex": "<action>(up|down|left|right|interact)</action>"},
            },
        ),
    ],
)
def test_sampling_keys_change_the_request(
    tmp_path: Path, settings: dict[str, Any], fields: dict[str, Any]
) -> None:
    body = asked(tmp_path, **settings)[0]
    assert {k: v for k, v in body.items() if k not in {"model", "messages", "seed"}} == fields


def test_run_seed_changes_the_seeds_of_requests(tmp_path: Path) -> None:
    seeds = [[body["seed"] for body in asked(tmp_path, run_seed=seed)] for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_keep_reasoning_keeps_it_in_the_history(tmp_path: Path) -> None:
    reply = f"<think>hm</think>{UP}"
    kept = {
        keep: asked(tmp_path, reply, strategy="FULL_HISTORY", keep_reasoning=keep)[1]["messages"][2]
        for keep in (False, True)
    }
    assert [kept[keep]["content"] for keep in (False, True)] == [UP, reply]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_concurrency_bounds_the_episodes_at_once(tmp_path: Path, concurrency: int) -> None:
    most = [0, 0]

    class Counting(FakePolicy):
        async def complete(self, ask: Ask) -> Completion:
            most[0] += 1
            most[1] = max(most)
            try:
                return await super().complete(ask)
            finally:
                most[0] -= 1

    play(Counting(lambda _: UP, shuffle=1), tmp_path, seeds="0:20", concurrency=concurrency)
    assert most == [0, concurrency]


@pytest.mark.parametrize("attempts", [1, 2])
def test_attempts_bound_the_tries(tmp_path: Path, attempts: int) -> None:
    with FakeServer(lambda _: (500, {})) as server:
        run = play(server.url, tmp_path, attempts=attempts)
        assert len(server.bodies) == attempts
    assert run.n_error == 1


def test_timeout_s_bounds_a_completion(tmp_path: Path) -> None:
    over = threading.Event()

    def hang(_: dict[str, Any]) -> str:
        over.wait(60)
        return UP

    with FakeServer(hang) as server:
        run = play(server.url, tmp_path, timeout_s=0.05, attempts=1)
        over.set()
    assert [row["failure"] for row in run.episodes()] == ["timeout"]


def test_wait_s_bounds_the_wait_for_a_server(tmp_path: Path) -> None:
    with FakeServer(lambda _: (503, {})) as server, pytest.raises(ServerLost):
        play(server.url, tmp_path, wait_s=0.0)


@pytest.mark.usefixtures("key_variables")
def test_api_key_env_authorizes(tmp_path: Path) -> None:
    with FakeServer(lambda _: UP) as server:
        play(server.url, tmp_path, api_key_env="EVALKIT_TEST_KEY")
        keys = {request.headers.get("authorization") for request in server.received}
    assert keys == {"Bearer sesame"}


def test_price_gives_what_a_success_costs(tmp_path: Path) -> None:
    policy = FakePolicy(lambda _: Completion(text=UP, prompt_tokens=500))
    run = play(policy, tmp_path, price="1000,0")
    (row,) = run.summary
    assert (row["usd_per_mtok_in"], row["usd_per_mtok_out"]) == (1000.0, 0.0)
    assert row["cost_usd"] == pytest.approx(0.5 * row["turns"])
    (free,) = play(policy, tmp_path).summary
    assert (free["usd_per_mtok_in"], free["cost_usd"]) == (None, None)


def test_a_price_may_be_that_of_one_model() -> None:
    models = {"model": ["A=http://a", "B=http://b", "C=http://c"], "env": "key_door"}
    config = RunConfig.read({**models, "price": ["1,2", "B=0.05,.4"]})
    assert [config.price_of(label) for label in "ABC"] == [(1.0, 2.0), (0.05, 0.4), (1.0, 2.0)]
    assert RunConfig.read({**models, "price": "B=1,1"}).price_of("A") is None
    for wrong in ("1", "1,2,3", "-1,2", "a,b", "1,", "inf,1", "=1,2"):
        with pytest.raises(BadConfig, match="price"):
            RunConfig.read({**models, "price": wrong})
    with pytest.raises(BadConfig, match="one price for each model, or one for all"):
        RunConfig.read({**models, "price": ["1,2", "3,4"]})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "B is better than A: decided after 9 pairs: +100.0 points success "),
        ({"alpha": 0.001}, "B is better than A: decided after 15 pairs: +100.0 points success "),
        ({"stop_on": "valid_action_rate"}, "decided after 9 pairs: +100.0 points valid actions "),
        ({"stop_on": "return", "span": 2.0}, "decided after "),
        (
            {"stop_on": "return", "span": 60.0},
            "undecided between A and B, out of budget: after 30 ",
        ),
    ],
)
def test_stop_ends_a_run_that_is_decided(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    roomy = {"size": 2, "max_turns": 9}
    arms = ["A=noop", "B=oracle"]
    run = play(arms, tmp_path, stop="decided", seeds="0:30", env_args=roomy, **settings)
    assert said in run.verdicts[0]
    (found,) = run.report.sequential
    assert found.last is not None
    assert len(run.episodes()) == 2 * found.last.n_pairs


def test_margin_asks_of_a_fixed_run_whether_arms_are_equivalent(tmp_path: Path) -> None:
    run = play(["A=noop", "B=noop"], tmp_path, seeds="0:30", margin=0.2)
    assert run.report.compared[0].decision is Decision.EQUIVALENT
    assert "A and B are equivalent within ±20.0 points" in run.verdicts[0]


def test_out_is_where_the_run_lies(tmp_path: Path) -> None:
    run = play("noop", tmp_path, out=str(tmp_path / "elsewhere"))
    assert run.path.parent == tmp_path / "elsewhere"


def test_wandb_says_where_the_summary_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")  # so that it ends where it would begin
    with pytest.raises(BadConfig, match="wandb: "):
        evalkit.evaluate("oracle", "key_door", seeds="0:1", out=tmp_path, wandb="project")
    evalkit.evaluate("oracle", "key_door", seeds="0:1", out=tmp_path)


def test_every_key_has_a_test() -> None:
    source = Path(__file__).read_text("utf-8")
    told = source[source.index("# What every key changes") :]
    assert [key for key in RunConfig.model_fields if key not in told] == []
