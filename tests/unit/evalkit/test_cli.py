"""The command line, in this process: exit codes, one line per mistake, files left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evalkit.arguments import env_args, merged, run_parser, settings
from evalkit.cli import main
from evalkit.config import RunConfig
from evalkit.errors import BadConfig
from evalkit.record.rundir import RunDir
from evalkit.record.tables import read_csv
from evalkit.testing import FakeServer, Said

SMALL = "--env key_door --env-arg size=2 --env-arg max_turns=3 -n 4".split()
RANDOM = ["--model", "random", *SMALL]
TABLES = [
    "compare.csv",
    "episodes.csv",
    "paired.csv",
    "performance.csv",
    "summary.csv",
    "turns.csv",
]


@pytest.fixture(name="folder", autouse=True)
def _folder(tmp_path: Path) -> Iterator[Path]:
    """Work in an empty folder, as a user does; results lie in results/."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def the_run(folder: Path) -> RunDir:
    (path,) = (folder / "results").iterdir()
    return RunDir.open(path)


def words(text: str) -> list[str]:
    return text.split()


MISTAKES: list[tuple[list[str], str]] = [
    (["--nonsense"], "unrecognized arguments: --nonsense"),
    (["nonsense"], "unrecognized arguments: nonsense"),
    (["--model"], "expected one argument"),
    (["--model", "random"], "--env is missing"),
    (["--env", "key_door"], "--model is missing"),
    (["--mod", "random", "--env", "key_door"], "unrecognized arguments"),
    (["--model", "gpt-4", *SMALL], "neither an http(s) URL nor one of random, oracle"),
    (["--model", "http://", *SMALL], "neither an http(s) URL"),
    (["--model", "http://127.0.0.1:1", *SMALL], "nothing answers at http://127.0.0.1:1/v1/models"),
    (["--model", "http://127.0.0.1:99999", *SMALL], "Port out of range"),
    (["--model", "http://me:secret@h", *SMALL], "give the key by --api-key-env"),
    (["--model", "http://no.such.host.invalid", *SMALL], "nothing answers at"),
    (["--model", "script:absent.txt", *SMALL], "script:absent.txt"),
    (["--model", "random", *RANDOM], "two models go by the same name"),
    (["--model", "human", *RANDOM], "a human plays alone"),
    (words("--model random --env chess"), "no env is called 'chess': known are function_calling"),
    (words("--model random --env nowhere.at.all:Env"), "no module named 'nowhere'"),
    (words("--model random --env absent.py:Env"), "no file absent.py"),
    (words("--model random --env json:JSONDecoder"), "is not a subclass of envs.TextEnv"),
    (words("--model random --env envs.games.key_door:No"), "has no 'No'"),
    ([*RANDOM, "--env-arg", "size"], "--env-arg is NAME=VALUE, not 'size'"),
    ([*RANDOM, "--env-arg", "2=3"], "--env-arg is NAME=VALUE, not '2=3'"),
    ([*RANDOM, "--env-arg", "colour=red"], "key_door takes no parameter 'colour'"),
    ([*RANDOM, "--env-arg", "name=red"], "key_door takes no parameter 'name'"),
    ([*RANDOM, "--env-arg", "size=1"], "size must be at least 2"),
    ([*RANDOM, "--env-arg", "size=big"], "key_door: "),
    ([*RANDOM, "--strategy", "MEMORY"], "no strategy 'MEMORY'"),
    ([*RANDOM, "--strategy", "WINDOW(0)"], "WINDOW(k) is at least 1"),
    ([*RANDOM, "--strategy", "NO_HISTORY,NO_HISTORY"], "a strategy is named twice"),
    ([*RANDOM, "--guided", "maybe"], "guided is on, off"),
    ([*RANDOM, "--seeds", "0:3"], "not allowed with argument -n"),
    (words("--model random --env key_door --seeds 3:1"), "no seeds: nothing to play"),
    (words("--model random --env key_door --seeds x"), "seeds are A:B"),
    (words("--model random --env key_door -n 0"), "-n is at least 1, not 0"),
    (words("--model random --env key_door -n many"), "invalid int value: 'many'"),
    (words("--model random --env key_door -n 999999999999999999999"), "seeds are A:B"),
    ([*RANDOM, "-k", "0"], "k: Input should be greater than or equal to 1, not 0"),
    ([*RANDOM, "-c", "0"], "concurrency: "),
    ([*RANDOM, "-c", "fast"], "expected a whole number or auto, not 'fast'"),
    ([*RANDOM, "--temperature", "hot"], "expected a number or none, not 'hot'"),
    ([*RANDOM, "--temperature", "-1"], "temperature: "),
    ([*RANDOM, "--temperature", "nan"], "temperature: "),
    ([*RANDOM, "--top-p", "2"], "top_p: "),
    ([*RANDOM, "--max-tokens", "1.5"], "expected a whole number or none, not '1.5'"),
    ([*RANDOM, "--max-tokens", "0"], "max_tokens: "),
    ([*RANDOM, "--extra-body", "{"], "expected a JSON object, not '{'"),
    ([*RANDOM, "--extra-body", "[1]"], "expected a JSON object"),
    ([*RANDOM, "--extra-body", '{"seed":1}'], "seed cannot be set"),
    ([*RANDOM, "--extra-body", '{"a":99999999999999999999}'], "cannot be written as JSON"),
    ([*RANDOM, "--run-seed", "-1"], "run_seed: "),
    ([*RANDOM, "--api-key-env", "Z=KEY"], "api_key_env: no model 'Z'"),
    (["--model", "http://h", *SMALL, "--api-key-env", "EVALKIT_ABSENT"], "variable is not set"),
    ([*RANDOM, "--timeout-s", "0"], "timeout_s: "),
    ([*RANDOM, "--config", "absent.yaml"], "config absent.yaml: No such file"),
    ([*RANDOM, "--shard", "3/2"], "a shard is INDEX/COUNT, as in 1/8 to 8/8, not '3/2'"),
    ([*RANDOM, "--shard", "1/9"], "4 env seeds make 1 to 4 shards, not 9"),
    ([*RANDOM, "--shard", "1/2", "--procs", "2"], "not allowed with argument --shard"),
    ([*RANDOM, "--procs", "0"], "4 env seeds make 1 to 4 shards, not 0"),
    ([*RANDOM, "--procs", "2", "--target", "modal"], "--target modal takes --shards; --procs"),
    ([*RANDOM, "--shards", "2"], "--shards, --secret and --detach need --target modal"),
    ([*RANDOM, "--detach"], "--shards, --secret and --detach need --target modal"),
    ([*RANDOM, "--target", "moon"], "invalid choice: 'moon'"),
    (["merge", "out"], "the following arguments are required: SHARD"),
    (["merge", "out", "absent"], "absent is not a run: it has no manifest.json"),
    (["resume"], "the following arguments are required: run"),
    (["resume", "absent"], "absent is not a run: it has no manifest.json"),
    (["replay", "absent", "--seed", "1"], "absent is not a run"),
    (["replay", "absent"], "expected either --seed, an episode to show, or --check"),
    (["compare"], "the following arguments are required: RUN"),
    (["compare", "absent"], "expected two runs or more to compare, found 1"),
    (["compare", "absent", "gone", "--margin", "2"], "between 0 and 1, not 2.0"),
    (["power"], "give a RUN, or --baseline with --effect or --seeds"),
    (["power", "absent"], "absent is not a run"),
    (["power", "absent", "--baseline", ".5"], "give a RUN, or --baseline"),
    (["power", "--baseline", ".5"], "give --effect (how many seeds?) or --seeds"),
    (["power", "--baseline", "2", "--seeds", "9"], "expected a baseline in [0, 1], got 2.0"),
    (
        ["power", "--baseline", ".95", "--effect", ".1"],
        "expected baseline + effect in [0, 1], got 0.95 and",
    ),
    (["power", "--baseline", ".5", "--effect", "0"], "expected an effect other than 0"),
    (["power", "--baseline", ".5", "--seeds", "0"], "seeds is at least 1, not 0"),
    (
        ["power", "--baseline", ".5", "--seeds", "9", "--power", ".01"],
        "expected 0 < alpha < power < 1",
    ),
    (["check-stats", "absent"], "absent is not a run"),
    (["check-stats", "--simulations", "1"], "--simulations is 2 to 1000000, not 1"),
    ([*RANDOM, "--price", "1"], "a price is [LABEL=]IN,OUT, in $ per million tokens, not '1'"),
    ([*RANDOM, "--price", "A=1,2"], "price: no model 'A'; there are random"),
    ([*RANDOM, "--margin", "1.5"], "margin is a difference of rates, below 1, not 1.5"),
    (["compare", "absent", "absent"], "absent is not a run"),
    (["check-env", "chess"], "no env is called 'chess'"),
    (["check-env", "key_door", "--env-arg", "size=0"], "size must be at least 2"),
    (["envs", "more"], "unrecognized arguments: more"),
]


@pytest.mark.parametrize(("argv", "message"), MISTAKES, ids=lambda value: str(value)[-60:])
def test_a_mistake_is_one_line_and_leaves_nothing(
    argv: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("evalkit: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    assert message in said.err
    assert list(folder.iterdir()) == []


ONE_MODEL = [{"id": "fake"}]
TWO_MODELS = [{"id": "a"}, {"id": "b"}]
WRONG_SERVERS: list[tuple[Any, str, str]] = [
    ((401, {"error": {"message": "bad key"}}), "", "HTTP 401: bad key (name the variable"),
    ((403, {}), "", "HTTP 403"),
    ((404, {}), "", "lists no models: add #NAME"),
    ((500, b"<html>oops</html>"), "", "HTTP 500: <html>oops</html>"),
    ((503, {"error": {"message": "loading"}}), "", "HTTP 503: loading"),
    ((200, b"<html>hello</html>"), "", "is not an OpenAI model list: <html>hello</html>"),
    ((200, b'{"data":'), "", "is not an OpenAI model list"),
    ((200, b"[]"), "", "is not an OpenAI model list"),
    ((200, {"data": [{"name": "x"}]}), "", "is not an OpenAI model list"),
    ((200, {"data": None}), "", "is not an OpenAI model list"),
    ([], "", "has 0 models (none): add #NAME"),
    (TWO_MODELS, "", "has 2 models (a, b): add #NAME"),
    (TWO_MODELS, "#c", "has no model 'c'; it has a, b"),
    (TWO_MODELS, "#c@7", "has no model 'c@7'"),
    ([{"id": "m", "max_model_len": 256}], "", "max_tokens 256 leaves no room for a prompt"),
]


@pytest.mark.parametrize(("models", "name", "message"), WRONG_SERVERS)
def test_a_wrong_server_is_one_line_and_leaves_nothing(
    models: Any, name: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(lambda _: "", models) as server:
        assert main(["--model", server.url + name, *SMALL, "--wait-s", "0"]) == 2
        assert server.bodies == []
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("evalkit: ")
    assert message in said.err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            (400, {"error": {"message": "no such field"}}),
            "the server refuses the request: HTTP 400",
        ),
        ((401, {"error": {"message": "bad key"}}), "the server wants another API key"),
        ((404, {"error": {"message": "no such model"}}), "model 'fake': HTTP 404: no such model"),
    ],
)
def test_a_first_answer_that_refuses_leaves_no_run(
    said: Said, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(lambda _: said) as server:
        assert main(["--model", server.url, *SMALL]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("evalkit: ")] == [lines[-1]]
    assert message in lines[-1]
    assert list((folder / "results").iterdir()) == []


def test_a_run_leaves_its_tables_and_says_where(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RANDOM, "--strategy", "NO_HISTORY,SCRATCHPAD"]) == 0
    rundir = the_run(folder)
    assert sorted(file.name for file in rundir.path.glob("*.csv")) == TABLES
    said = capsys.readouterr()
    assert (
        f"{rundir.path.relative_to(folder)}/: report.html report.md {' '.join(TABLES)}" in said.out
    )
    assert "no decision between NO_HISTORY and SCRATCHPAD: +0.0 points success" in said.out
    assert said.err.startswith(f"run {rundir.path.relative_to(folder)}\n")
    assert "8/8 episodes" in said.err
    assert main(["run", *RANDOM]) == 0


def test_one_arm_has_nothing_to_compare(folder: Path) -> None:
    assert main(RANDOM) == 0
    names = {file.name for file in the_run(folder).path.iterdir()}
    assert names == {
        *TABLES,
        "report.html",
        "report.md",
        "manifest.json",
        "journal.jsonl",
        "trajectories.jsonl",
    } - {
        "compare.csv",
        "paired.csv",
    }


def test_lost_episodes_make_exit_code_1_and_resume_plays_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [True]

    def chat(body: dict[str, Any]) -> str | Said:
        lost = broken[0] and body["seed"] % 2
        return (500, {"error": {"message": "oops"}}) if lost else "<action>up</action>"

    with FakeServer(chat) as server:
        assert main(["--model", server.url, *SMALL, "--attempts", "1"]) == 1
        run = the_run(folder).path
        assert "episodes were lost to errors and are not scored" in capsys.readouterr().out
        paid = len(server.bodies)
        broken[0] = False
        assert main(["resume", str(run)]) == 0
        assert 0 < len(server.bodies) - paid < 12
        before = len(server.bodies)
        assert main(["resume", str(run)]) == 0
        assert len(server.bodies) == before
    assert {row["scored"] for row in read_csv(run / "episodes.csv")} == {"true"}


def test_resume_finds_a_model_that_moved(folder: Path) -> None:
    with FakeServer(lambda _: (503, {})) as server:
        argv = ["--model", f"old={server.url}", *SMALL, "--strategy", "NO_HISTORY,SUMMARY"]
        assert main([*argv, "--wait-s", "0"]) == 1
    assert list((folder / "results").iterdir()) == []
    with FakeServer(lambda body: "" if body["seed"] % 3 else (500, {})) as server:
        argv[1] = f"old={server.url}"
        assert main([*argv, "--attempts", "1"]) == 1
    run = the_run(folder).path
    with FakeServer(lambda _: "") as server:
        assert main(["resume", str(run), "--model", f"new={server.url}"]) == 2
        assert main(["resume", str(run), "--model", f"old={server.url}#fake"]) == 0
    assert [row["arm"] for row in read_csv(run / "summary.csv")] == [
        "old.NO_HISTORY",
        "old.SUMMARY",
    ]


def test_arms_keep_their_names_when_an_unlabelled_model_moves(folder: Path) -> None:
    with FakeServer(lambda body: "" if body["seed"] % 3 else (500, {})) as server:
        argv = ["--model", server.url, *SMALL, "--strategy", "NO_HISTORY,SUMMARY"]
        assert main([*argv, "--attempts", "1"]) == 1
    run = the_run(folder).path
    with FakeServer(lambda _: "") as server:
        assert main(["resume", str(run), "--model", f"A={server.url}"]) == 0
    assert [row["arm"] for row in read_csv(run / "summary.csv")] == ["NO_HISTORY", "SUMMARY"]


def test_a_run_whose_env_changed_is_not_resumed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(RANDOM) == 0
    rundir = the_run(folder)
    manifest = rundir.manifest()
    manifest["env"]["digest"] = "0" * 16
    del manifest["format"]
    rundir.write_manifest(manifest)
    capsys.readouterr()
    assert main(["resume", str(rundir.path)]) == 2
    assert "the env key_door is not what it was" in capsys.readouterr().err


def test_replay_shows_an_episode_turn_by_turn(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", "oracle", "--env", "key_door", "--env-arg", "size=2", "-n", "8"]) == 0
    run = str(the_run(folder).path)
    capsys.readouterr()
    assert main(["replay", run, "--seed", "7"]) == 0
    assert capsys.readouterr().out == (
        "arm oracle, env seed 7, repetition 0\n\n"
        "[ 0] You are at (1, 0) in a 2x2 grid. Your hands are empty. Nothing is here. You can go "
        "up to (0, 0), right to (1, 1), or interact. What do you do?\n"
        "   > <action>up</action>\n"
        "   = ok, action up, reward +0.00\n\n"
        "[ 1] You are at (0, 0) in a 2x2 grid. Your hands are empty. A key lies on the floor. You "
        "can go down to (1, 0), right to (0, 1), or interact. What do you do?\n"
        "   > <action>interact</action>\n"
        "   = ok, action interact, reward +0.10, key_picked_up\n\n"
        "[ 2] You pick up the key. You are at (0, 0) in a 2x2 grid. You carry the key. Nothing is "
        "here. You can go down to (1, 0), right to (0, 1), or interact. What do you do?\n"
        "   > <action>right</action>\n"
        "   = ok, action right, reward +0.00\n\n"
        "[ 3] You are at (0, 1) in a 2x2 grid. You carry the key. A locked door is in front of "
        "you. You can go down to (1, 1), left to (0, 0), or interact. What do you do?\n"
        "   > <action>interact</action>\n"
        "   = ok, action interact, reward +1.00, door_unlocked\n\n"
        "     The key turns and the door opens. You made it.\n"
        "success, return 1.10, 4 turns (oracle: 4), terminated\n"
    )
    for wrong in (["--seed", "99"], ["--seed", "7", "--arm", "x"]):
        assert main(["replay", run, *wrong]) == 2
        assert "has no finished episode" in capsys.readouterr().err


def test_compare_judges_two_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    easy = "--env key_door --env-arg size=2 -n 12".split()
    assert main(["--model", "noop", *easy, "--out", "a"]) == 0
    assert main(["--model", "oracle", *easy, "--out", "b"]) == 0
    (run_a,), (run_b,) = (list((folder / out).iterdir()) for out in "ab")
    capsys.readouterr()
    assert main(["compare", str(run_a), str(run_b), "--out", "verdict"]) == 0
    said = capsys.readouterr().out
    assert f"{run_b.name} is better than {run_a.name}: +100.0 points success" in said
    names = sorted(file.name for file in (folder / "verdict").iterdir())
    assert names == ["compare.csv", "paired.csv", "report.html", "report.md", "summary.csv"]
    assert main(["compare", str(run_a), str(run_b)]) == 0
    assert (run_b / f"compare-{run_a.name}" / "report.md").is_file()
    (folder / "file").write_text("")
    assert main(["compare", str(run_a), str(run_b), "--out", "file"]) == 2
    assert main(["compare", str(run_a), str(run_a)]) == 2
    assert main(["--model", "noop", "--env", "tic_tac_toe", "-n", "2", "--out", "c"]) == 0
    (run_c,) = (folder / "c").iterdir()
    capsys.readouterr()
    assert main(["compare", str(run_a), str(run_c)]) == 2
    assert "did not play the same env" in capsys.readouterr().err


def test_envs_lists_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(line.split()[0] for line in lines)
    assert "key_door  version 1  size=4 max_turns=35 show_position=True show_moves=True" in lines


def test_check_env_says_whether_an_env_keeps_its_contract(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words("check-env key_door --env-arg size=3 --seeds 20")) == 0
    assert "oracle" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["", *words("run resume merge replay compare power check-stats check-env envs")]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*words(command), "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: evalkit")


def test_without_words_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pairs", "values"),
    [
        (["size=5"], {"size": 5}),
        (["a=0.5", "b=text", "c=true", "d=True", "e=None", "f=null", "g="],
         {"a": 0.5, "b": "text", "c": True, "d": True, "e": None, "f": None, "g": ""}),
        (["a=[1, 2]", 'b={"x": 1}', 'c="5"', "d=x=y"],
         {"a": [1, 2], "b": {"x": 1}, "c": "5", "d": "x=y"}),
        (["a=1", "a=2"], {"a": 2}),
    ],
)  # fmt: skip
def test_env_args_are_json_or_text(pairs: list[str], values: dict[str, Any]) -> None:
    assert env_args(pairs) == values


YAML = """
model: [A=noop, B=random]
env: key_door
env-args: {size: 2, max_turns: 3}
strategy: [SCRATCHPAD]
guided: [on, off]
seeds: 0:7
k: 2
temperature: 0.9
max_tokens: 9
keep_reasoning: true
concurrency: 7
"""


@pytest.mark.parametrize(
    ("typed", "changes"),
    [
        ("", {}),
        ("--model random", {"model": ("random",)}),
        ("--env-arg size=3", {"env_args": {"size": 3, "max_turns": 3}}),
        ("--strategy NO_HISTORY", {"strategy": ("NO_HISTORY",)}),
        ("--guided off", {"guided": (False,)}),
        ("--guided", {"guided": (True,)}),
        ("-n 100", {"seeds": tuple(range(100))}),
        ("--seeds 5,3", {"seeds": (5, 3)}),
        ("-k 1", {"k": 1}),
        ("--temperature 0.1", {"temperature": 0.1}),
        ("--temperature none", {"temperature": None}),
        ("--max-tokens 256", {"max_tokens": 256}),
        ("--no-keep-reasoning", {"keep_reasoning": False}),
        ("-c 64", {"concurrency": 64}),
        ("-c auto", {"concurrency": "auto"}),
        ("--out elsewhere", {"out": "elsewhere"}),
    ],
)
def test_the_command_line_wins_over_yaml_even_where_it_says_the_default(
    folder: Path, typed: str, changes: dict[str, Any]
) -> None:
    from evalkit.config import load_yaml

    (folder / "config.yaml").write_text(YAML)
    file = load_yaml(folder / "config.yaml")
    config = RunConfig.read(merged(file, settings(vars(run_parser().parse_args(typed.split())))))
    assert config == RunConfig.read(file).model_copy(update=changes)


def test_yaml_takes_the_short_names_of_the_command_line(folder: Path) -> None:
    (folder / "config.yaml").write_text("model: noop\nenv: key_door\nn: 2\nenv_arg: max_turns=3\n")
    assert main(["--config", "config.yaml"]) == 0
    assert RunDir.open(the_run(folder).path).manifest()["config"]["seeds"] == [0, 1]
    (folder / "twice.yaml").write_text("env-args: {size: 2}\nenv_args: {size: 3}\n")
    assert main(["--config", "twice.yaml"]) == 2


def test_resume_takes_other_limits(folder: Path) -> None:
    assert main(["--model", "noop", *SMALL]) == 0
    assert main(["resume", str(the_run(folder).path), "-c", "2", "--attempts", "1"]) == 0


def test_a_run_from_yaml_alone(folder: Path) -> None:
    (folder / "config.yaml").write_text(YAML)
    assert main(["--config", "config.yaml", "-n", "2"]) == 2  # no server to guide
    assert main(["--config", "config.yaml", "-n", "2", "--guided", "off"]) == 0
    rows = read_csv(the_run(folder).path / "summary.csv")
    assert [row["arm"] for row in rows] == ["A", "B"]
    assert {row["n_episodes"] for row in rows} == {"4"}


def test_shards_are_played_one_by_one_and_merged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(RANDOM) == 0
    whole = the_run(folder).path
    for shard in ("1/2", "2/2"):
        assert main([*RANDOM, "--shard", shard, "--out", "parts"]) == 0
        assert f"2 episodes of shard {shard}; when all" in capsys.readouterr().out
    parts = [str(part) for part in (folder / "parts").iterdir()]
    assert main(["resume", parts[0]]) == 0
    assert main(["merge", "merged", *parts]) == 0
    merged = folder / "merged" / whole.name
    for name in ("summary.csv", "episodes.csv", "turns.csv", "report.md", "trajectories.jsonl"):
        assert (merged / name).read_bytes() == (whole / name).read_bytes()


def test_num_examples_is_another_word_for_n() -> None:
    typed = vars(run_parser().parse_args(["--num-examples", "7"]))
    assert settings(typed) == {"seeds": "0:7"}


def test_every_setting_can_be_typed() -> None:
    elsewhere = {"procs", "shard", "shards", "target", "secret", "detach", "sweep", "size"}
    seeds = {"n", "max_seeds"}
    typed = {action.dest for action in run_parser()._actions} - {"help", "config"} - seeds
    typed -= elsewhere
    assert typed - {"env_arg"} | {"env_args"} == set(RunConfig.model_fields)


def test_settings_refuse_what_no_yaml_could_say() -> None:
    with pytest.raises(BadConfig, match="-n is at least 1"):
        settings({"n": 0})


def test_a_human_plays_one_episode_after_the_other(folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "evalkit", "--model", "human", *SMALL],
        input="up\n" * 12,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert ran.returncode == 0
    prompts = [line.split("]")[0] for line in ran.stdout.split("[turn ")[1:]]
    assert prompts == ["0", "1", "2"] * 4
    assert ran.stdout.count("You walk through a grid") == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(
    folder: Path, number: signal.Signals, code: int
) -> None:
    asked: list[int] = []

    def chat(_: dict[str, Any]) -> str:
        asked.append(1)
        if len(asked) == 5:
            process.send_signal(number)
        return "<action>up</action>"

    with FakeServer(chat) as server:
        argv = ["--model", server.url, "--env", "key_door", "-n", "2000", "-c", "2"]
        with subprocess.Popen(
            # A gate that runs in the background passes on that SIGINT is ignored.
            ["env", "--default-signal=INT", sys.executable, "-m", "evalkit", *argv],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        ) as process:
            assert process.stderr is not None
            said = process.stderr.read()
        assert process.returncode == code
    run = the_run(folder).path
    assert f"stopped; go on with: python -m evalkit resume {run.relative_to(folder)}" in said
    assert "Traceback" not in said
    assert (run / "journal.jsonl").stat().st_size > 0
    assert not (run / "summary.csv").exists()


def test_a_closed_pipe_is_no_crash(folder: Path) -> None:
    command = f"{sys.executable} -m evalkit {' '.join(RANDOM)} 2>err | true"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run(["bash", "-c", command], cwd=folder, env=environment, check=True)
    assert "Traceback" not in (folder / "err").read_text()


def test_the_end_of_input_stops_a_human(folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "evalkit", "--model", "human", *SMALL],
        input="up\n",
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert ran.returncode == 130
    assert "Traceback" not in ran.stderr


def test_an_edited_script_is_another_run(folder: Path) -> None:
    (folder / "s.txt").write_text("<action>up</action>\n")
    assert main(["--model", "script:s.txt", *SMALL]) == 0
    first = the_run(folder).path
    (folder / "s.txt").write_text("<action>down</action>\n")
    assert main(["resume", str(first)]) == 2
    assert main(["--model", "script:s.txt", *SMALL]) == 0
    assert len({run.name.split(".")[0] for run in first.parent.iterdir()}) == 2


def test_a_replay_sends_no_control_characters(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "s.txt").write_text("\x1b[31mred <action>up</action>\n")
    assert main(["--model", "script:s.txt", *SMALL]) == 0
    capsys.readouterr()
    assert main(["replay", str(the_run(folder).path), "--seed", "0"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert r"\x1b[31mred" in shown
