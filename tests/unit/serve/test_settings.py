import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

import serve
from serve.cli import main
from serve.config import EngineConfig
from serve.errors import ConfigError
from serve.pool.health import Health
from serve.pool.routing import Routing
from serve.pool.scaling import Scaling
from serve.settings import (
    EngineSettings,
    HealthConfig,
    RemoteConfig,
    RoutingRules,
    RulesFile,
    ScalingConfig,
    ServeConfig,
    Split,
    VolumeConfig,
    load,
)

EXAMPLE = Path(serve.__file__).parent / "configs" / "serve.yaml"

VALUES: dict[str, tuple[Any, Any]] = {
    "model": ("m", "m"),
    "name": ("n", "n"),
    "host": ("::1", "::1"),
    "port": (0, 0),
    "state": ("~/s", Path("~/s").expanduser()),
    "policies": ("~/p", Path("~/p").expanduser()),
    "policies_read_only": (True, True),
    "volume": ({"name": "v", "root": "/v"}, VolumeConfig(name="v", root=Path("/v"))),
    "edge_tls": (True, True),
    "edge_auth": (True, True),
    "mounts": (["train.service:router"], ("train.service:router",)),
    "remote.key_env": ("K", "K"),
    "remote.ca": ("ca.pem", Path("ca.pem")),
    "remote.look_s": (3, 3.0),
    "replicas": (0, 0),
    "max_replicas": (3, 3),
    "routing": ("round_robin", Routing.ROUND_ROBIN),
    "access_log": ("~/a", Path("~/a").expanduser()),
    "tracing": ("http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:4318/v1/traces"),
    "tls_cert": ("c.pem", Path("c.pem")),
    "tls_key": ("k.pem", Path("k.pem")),
    "engine.max_model_len": (512, 512),
    "engine.lora": (True, True),
    "engine.max_loras": (2, 2),
    "engine.max_lora_rank": (8, 8),
    "engine.swappable": (False, False),
    "engine.extra_args": (["--x", "1"], ("--x", "1")),
    "engine.program": (["p", "{model}", "{port}"], ("p", "{model}", "{port}")),
    "front.max_body_bytes": (1024, 1024),
    "front.max_connections": (7, 7),
    "front.max_held": (0, 0),
    "front.hold_s": (0, 0.0),
    "front.head_timeout_s": (1, 1.0),
    "front.body_timeout_s": (2.5, 2.5),
    "front.idle_timeout_s": (3, 3.0),
    "front.stall_timeout_s": (4, 4.0),
    "front.write_stall_s": (5, 5.0),
    "front.grace_s": (0, 0.0),
    "front.trusted_proxies": (["10.0.0.1", "::0001"], ("10.0.0.1", "::1")),
    "health.interval_s": (9, 9.0),
    "health.down_interval_s": (8, 8.0),
    "health.timeout_s": (7, 7.0),
    "health.failures": (1, 1),
    "health.wedge_s": (60, 60.0),
    "scaling.target_in_flight": (1, 1),
    "scaling.up_after_s": (0, 0.0),
    "scaling.down_after_s": (1, 1.0),
    "scaling.idle_to_zero_s": (60, 60.0),
    "rules.aliases": ({"prod": "m@7"}, {"prod": "m@7"}),
    "rules.canary": ({"m": {"version": 8, "share": 0.1}}, {"m": Split(version=8, share=0.1)}),
    "rules.shadow": ({"m": {"version": 9, "share": 1}}, {"m": Split(version=9, share=1.0)}),
}
"""Each key, with a value that is not its default and what becomes of it."""


def keys(kind: type[BaseModel] = ServeConfig, prefix: str = "") -> Iterator[str]:
    for name, info in kind.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from keys(info.annotation, f"{name}.")
        else:
            yield prefix + name


def nested(key: str, value: object) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


def value_of(config: object, key: str) -> object:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def base(key: str) -> dict[str, Any]:
    """What else must be said for a key to make sense."""
    pairs = {
        "tls_cert": {"tls_key": "k"},
        "tls_key": {"tls_cert": "c"},
        "volume": {"policies": "p"},
    }
    return {"model": "m"} | ({"max_replicas": 2} if key == "replicas" else {}) | pairs.get(key, {})


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tmp_path / "serve.yaml"


def test_no_key_is_forgotten_here() -> None:
    apart = {"upstreams", "modal", "remote.proxy_id_env", "remote.proxy_secret_env"}
    assert set(VALUES) | apart == set(keys())


@pytest.mark.parametrize("key", VALUES)
def test_each_key_is_carried_through(key: str, written: Path) -> None:
    given, kept = VALUES[key]
    default = ServeConfig.model_validate({"model": "x"})
    written.write_text(yaml.safe_dump(base(key) | nested(key, given)))
    assert value_of(load(written, {}), key) == kept != value_of(default, key)
    written.write_text(yaml.safe_dump(base(key)))
    assert value_of(load(written, nested(key, given)), key) == kept
    assert value_of(load(None, base(key) | nested(key, given)), key) == kept


def test_what_is_told_to_the_parts_is_what_they_take() -> None:
    assert set(HealthConfig.model_fields) | {"probe", "scrape"} == {
        name
        for name, parameter in inspect.signature(Health).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    scaling = {field.name: field.default for field in dataclasses.fields(Scaling)}
    assert ScalingConfig().model_dump() | {"least": 1, "most": 1} == scaling
    engine = {field.name: field.default for field in dataclasses.fields(EngineConfig)}
    assert EngineSettings().model_dump().items() <= engine.items()
    for name, parameter in inspect.signature(Health).parameters.items():
        if name in HealthConfig.model_fields:
            assert getattr(HealthConfig(), name) == parameter.default


def test_each_key_is_read_somewhere() -> None:
    folder = Path(serve.__file__).parent
    files = [*(folder / name for name in ("up.py", "pools.py", "settings.py"))]
    files += (folder / "front").rglob("*.py")
    source = "".join(path.read_text() for path in files)
    passed_whole = ("health.", "scaling.", "rules.")
    for key in set(keys()) - {"replicas", "max_replicas"}:
        if not key.startswith(passed_whole):
            name = key.rpartition(".")[2]
            owner = "self" if key.startswith(("remote.", "policies")) else "limits|front|settings"
            assert re.search(rf"(config|remote|{owner})\.{name}\b", source), key


def test_the_command_line_wins_key_by_key(written: Path) -> None:
    written.write_text("model: m\nport: 1\nfront: {hold_s: 7, grace_s: 3}\nengine:\n")
    overrides = {
        "port": 2,
        "host": None,
        "front": {"hold_s": 9, "max_held": None},
        "engine": {"lora": None, "max_model_len": 64},
        "scaling": {"idle_to_zero_s": None},
    }
    config = load(written, overrides)
    assert (config.port, config.host) == (2, "127.0.0.1")
    assert (config.front.hold_s, config.front.grace_s, config.front.max_held) == (9, 3, 10_000)
    assert (config.engine.max_model_len, config.engine.lora) == (64, False)


def test_upstreams(written: Path) -> None:
    written.write_text("upstreams: ['http://127.0.0.1:1/v1/', 'http://[::1]:2', 'https://h/']\n")
    config = load(written, {})
    assert config.upstreams == ("http://127.0.0.1:1", "http://[::1]:2", "https://h")
    assert config.front.hold_s == 15.0, "nobody starts any"
    assert load(written, {"front": {"hold_s": 60}}).front.hold_s == 60
    assert load(None, {"model": "m"}).front.hold_s == 300.0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("modle: m", "modle: there is no such key"),
        ("model: m\nfront: {hold: 1}", "front.hold: there is no such key"),
        ("model: m\nrules: {canary: {m: {version: 1}}}", "rules.canary.m.share: Field required"),
        ("model: m\n1: 2", "1: "),
        ("model: m\nport: 65536", "port: Input should be less than 65536"),
        ("model: m\nport: x", "port: Input should be a valid integer"),
        ("model: m\nhealth: {timeout_s: .inf}", "health.timeout_s: Input should be a finite"),
        ("model: m\nrouting: nearest", "routing: Input should be 'sticky'"),
        ("", "give either --model or --upstream"),
        ("model: m\nupstreams: ['http://a']", "give either --model or --upstream"),
        ("upstreams: ['http://a']\nname: n", "name: only for engines started with --model"),
        ("upstreams: ['http://a']\nreplicas: 2\nengine: {lora: true}", "engine, replicas: only"),
        ("model: m\nreplicas: 3\nmax_replicas: 2", "max_replicas is 2, replicas 3"),
        ("model: m\nreplicas: 0", "max_replicas must be at least 1"),
        ("model: m\ntls_key: k", "tls_cert and tls_key belong together"),
        ("model: m\nfront: {trusted_proxies: [localhost]}", "front.trusted_proxies.0: 'localhost'"),
        ("model: m\nrules: {aliases: {a: b, b: m}}", "rules: aliases: a points to b, which is"),
        ("model: m\nrules: {aliases: {a: 'm@x'}}", "rules.aliases.a: expected NAME"),
        ("model: m\nfront: 5", "front: Input should be"),
        ("modal: {app: a}", "modal.server: Field required"),
        ("modal: {app: a, server: s}\nmodel: m", "give either --model or --upstream, or `modal`"),
        ("modal: {app: a, server: s}\nreplicas: 2", "replicas: only for engines"),
        ("model: m\nremote: {proxy_id_env: A}", "remote: proxy_id_env and proxy_secret_env belong"),
        ("model: m\nvolume: {name: v}", "volume: say with `policies` which"),
        ("model: m\nmounts: [train.service]", "mounts.0: expected MODULE:FACTORY, such as"),
        ("- model", "expected keys and values, got list"),
        ("model: [", "while parsing"),
        ("model: \xff", "'utf-8' codec"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(text: str, complaint: str, written: Path) -> None:
    written.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load(written, {})
    said = str(caught.value)
    assert said.startswith(f"config {written}: {complaint}")
    assert "\n" not in said


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1",
        "127.0.0.1:80",
        "http://",
        "http://h:0",
        "http://h:65536",
        "http://h:x",
        "http://h/v2",
        "http://h?x=1",
        "http://h#x",
        "http://user:secret@h",
        "http://[::1",
    ],
)
def test_what_is_no_upstream(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^upstreams\.0: "):
        load(None, {"upstreams": (url,)})


@pytest.mark.parametrize("section", ["5", "[[hold_s, 1]]", "text"])
def test_a_section_that_is_none(section: str, written: Path) -> None:
    for text in (f"model: m\nfront: {section}", f"upstreams: ['http://a']\nfront: {section}"):
        written.write_text(text)
        for overrides in ({}, {"front": {"hold_s": 1}}):
            with pytest.raises(ConfigError, match=f"^config {re.escape(str(written))}: front: "):
                load(written, overrides)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml: No such file"):
        load(tmp_path / "nope.yaml", {})
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, {})


def test_a_config_is_frozen() -> None:
    config = load(None, {"model": "m"})
    with pytest.raises(ValidationError):
        config.port = 1
    with pytest.raises(ValidationError):
        config.front.hold_s = 1.0


def test_the_example_shows_every_key_and_its_default() -> None:
    default = load(None, {"model": "smollm2-135m-instruct"})
    shown = load(EXAMPLE, {})
    assert shown.rules.aliases == {"prod": "smollm2-135m-instruct@1"}
    assert shown.model_copy(update={"rules": RoutingRules()}) == default
    text = EXAMPLE.read_text()
    missing = [key for key in keys() if not re.search(rf"\b{key.rpartition('.')[2]}:", text)]
    assert missing == []


def test_what_the_example_shows_in_comments_is_true(written: Path) -> None:
    shown = re.sub(r"^( *)# (\w+: )", r"\1\2", EXAMPLE.read_text(), flags=re.MULTILINE)
    shown = re.sub(r"^(upstreams|modal): .*$", "", shown, flags=re.MULTILINE)
    written.write_text(re.sub(r"\{\}( +# POLICY: )(\{.*?\})(.*)", r"{m: \2}", shown))
    config = load(written, {})
    assert (config.name, config.max_replicas, config.tls_key) == ("my-policy", 4, Path("key.pem"))
    assert config.scaling.idle_to_zero_s == 600
    assert config.rules.canary == config.rules.shadow == {"m": Split(version=8, share=0.05)}
    with_upstreams = re.search(r"upstreams: .*", EXAMPLE.read_text())
    assert with_upstreams is not None
    written.write_text(with_upstreams[0])
    assert len(load(written, {}).upstreams) == 2
    with_modal = re.search(r"modal: .*\}", EXAMPLE.read_text())
    assert with_modal is not None
    written.write_text(with_modal[0])
    assert load(written, {}).front.hold_s == 900


def test_secrets_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = RemoteConfig(key_env="KEY_A", proxy_id_env="KEY_B", proxy_secret_env="KEY_C")
    for name in ("KEY_A", "KEY_B", "KEY_C"):
        monkeypatch.setenv(name, f" {name.lower()}\n")
    assert remote.headers() == (
        ("authorization", "Bearer key_a"),
        ("modal-key", "key_b"),
        ("modal-secret", "key_c"),
    )
    assert RemoteConfig().headers() == ()
    for value, complaint in (("", "is not set"), ("a\r\nhost: b", "is no text for a header")):
        monkeypatch.setenv("KEY_A", value)
        with pytest.raises(ConfigError, match=f"^remote.key_env: .* KEY_A {complaint}"):
            remote.headers()


def test_up_reads_the_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PALAESTRA_CACHE", str(tmp_path))
    told = ["up", "--config", str(EXAMPLE), "--port", "0", "--state", str(tmp_path / "state")]
    assert main([*told, "--model", str(tmp_path / "none")]) == 2
    assert "no model" in capsys.readouterr().err
    assert main([*told, "--port", "-1"]) == 2
    assert capsys.readouterr().err.startswith(f"error: config {EXAMPLE}: port: ")


def rules_file(path: Path, text: str) -> RulesFile:
    path.write_text(text)
    return RulesFile(path, load(path, {}).rules)


def test_rules_are_taken_as_the_file_changes(written: Path) -> None:
    file = rules_file(written, "model: m\nrules: {aliases: {prod: 'm@7'}}\n")
    assert not file.look()
    written.write_text("model: m\nport: 9\nrules: {aliases: {prod: 'm@8'}}\n")
    assert file.look()
    assert file.rules.aliases == {"prod": "m@8"}
    assert not file.look()
    written.write_text("model: m\nport: 10\nrules: {aliases: {prod: 'm@8'}}\n")
    assert not file.look(), "the rules are the same"
    written.write_text("model: m\n# none\n")
    assert file.look()
    assert file.rules == RoutingRules()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rules: {aliases: {prod: 'm@8'}, canry: {}}", "canry: there is no such key"),
        ("rules: {canary: {m: {version: 8, share: 5}}}", "canary.m.share: Input should be less"),
        ("rules: [", "while parsing"),
        ("rules: 5", "Input should be"),
        ("nothing", "expected keys and values"),
        (None, "No such file"),
    ],
)
def test_a_broken_file_keeps_the_old_rules(
    text: str | None, problem: str, written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = rules_file(written, "model: m\nrules: {aliases: {prod: 'm@7'}}\n")
    if text is None:
        written.unlink()
    else:
        written.write_text(text)
    assert not file.look()
    assert file.rules.aliases == {"prod": "m@7"}
    assert str(written) in file.problem
    assert problem in file.problem
    assert len(caplog.records) == 1
    assert not file.look()
    assert len(caplog.records) == 1, "it is said once"
    written.write_text("rules: {aliases: {prod: 'm@9'}}")
    assert file.look()
    assert (file.problem, file.rules.aliases) == ("", {"prod": "m@9"})


def test_a_change_before_the_first_look_is_seen(written: Path) -> None:
    written.write_text("model: m")
    rules = load(written, {}).rules
    written.write_text("model: m\nrules: {aliases: {prod: m@7}}")
    assert RulesFile(written, rules).look() is True


def test_an_upstream_is_given_once() -> None:
    with pytest.raises(ConfigError, match="an upstream is given twice: http://h:1, http://h:1"):
        load(None, {"upstreams": ("http://h:1", "http://h:1/v1")})


@pytest.mark.parametrize("word", ["--host", "--port=1", "--served-model-name"])
def test_what_is_ours_to_tell_an_engine_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="engines stay on loopback"):
        load(None, {"model": "m", "engine": {"extra_args": (word, "x")}})


def test_versions_that_rules_name_are_known() -> None:
    rules = RoutingRules.model_validate(
        {
            "aliases": {"prod": "p@2", "newest": "p"},
            "canary": {"p": {"version": 3, "share": 0.1}},
            "shadow": {"q": {"version": 4, "share": 1}},
        }
    )
    assert rules.versions() == {"p": {2, 3}, "q": {4}}
