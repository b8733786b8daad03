"""Functions on the loopback: run, mapped, spawned, retried, rerun, cancelled, stopped."""

import json
from pathlib import Path

import pytest

from tests.loopback_modal import FunctionView, LoopbackModal

WAIT_S = 120.0


@pytest.fixture(scope="module")
def jobs(modal: LoopbackModal, apps: Path, state: dict[str, str]) -> dict[str, FunctionView]:
    """The functions of the jobs app, deployed by the real CLI."""
    done = modal.cli("deploy", str(apps / "jobs.py"), env=state)
    assert done.returncode == 0, done.stdout + done.stderr
    return modal.app("jobs").functions


def _client(modal: LoopbackModal, program: str) -> str:
    head = "import modal, json\ndef f(name): return modal.Function.from_name('jobs', name)\n"
    done = modal.python("-c", head + program)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def _notes(modal: LoopbackModal) -> list[str]:
    file = modal.volume("job-state") / "notes"
    return file.read_text().split() if file.exists() else []


def test_run_executes_an_entrypoint(
    modal: LoopbackModal, apps: Path, state: dict[str, str]
) -> None:
    done = modal.cli("run", str(apps / "jobs.py"), "--n", "4", env=state)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "squares: ['0 apples', '1 apples', '4 apples', '9 apples']" in done.stdout
    assert "spawned: 49 apples" in done.stdout
    assert "starmap: ['4 apples', '9 apples']" in done.stdout
    assert "count: 7" in done.stdout
    assert "numbers: [0, 1, 2]" in done.stdout
    assert modal.app("jobs").state == "stopped"
    modal.wait_for(lambda: not modal.containers("jobs"), timeout_s=WAIT_S)


def test_what_was_deployed_is_seen(jobs: dict[str, FunctionView], state: dict[str, str]) -> None:
    train, retried = jobs["train"], jobs["fails_twice"]
    assert (train.gpus, train.timeout_s, train.memory_mib) == (["H100"], 30, 256)
    assert train.volumes[state["LOOPBACK_STATE"]].name == "job-state"
    assert (retried.retries, retried.retry_delay_s, retried.retry_backoff) == (2, 0.0, 2.0)
    assert jobs["nightly"].schedule == "cron 0 3 * * *"
    assert jobs["square"].secret_env == {"UNIT": "apples"}
    assert jobs["square"].max_containers == 2


def test_options_of_one_call_are_recorded_and_a_killed_container_is_rerun(
    modal: LoopbackModal, jobs: dict[str, FunctionView]
) -> None:
    call_id = _client(
        modal,
        "print(f('train').with_options(gpu='B200:8', timeout=99, memory=512).spawn(2).object_id)",
    )
    modal.wait_for(lambda: "run" in _notes(modal), timeout_s=WAIT_S)
    (container,) = modal.containers("jobs", "train")
    modal.kill(container)
    assert _client(modal, f"print(modal.FunctionCall.from_id('{call_id}').get(timeout=99))") == "2"
    (call,) = modal.function_calls("jobs", "train")
    assert (call.gpus, call.timeout_s, call.memory_mib) == (["B200:8"], 99, 512)
    assert call.statuses == ["success"]
    assert call.containers[0][0] == container.id
    assert len(call.containers[0]) == 2
    assert len(modal.called("VolumeCommit", container=call.containers[0][1])) >= 1


def test_failures_are_retried_and_then_raised(
    modal: LoopbackModal, jobs: dict[str, FunctionView]
) -> None:
    program = """
print(f('fails_twice').remote())
try:
    f('broken').remote()
except ValueError as error:
    print(error)
try:
    f('slow').remote()
except modal.exception.FunctionTimeoutError as error:
    print(error)
"""
    said = _client(modal, program).splitlines()
    (call,) = modal.function_calls("jobs", "slow")
    assert call.statuses == ["timeout"]
    late = f"Task's current input in {call.inputs[0]} hit its timeout of 1s"
    assert said == ["3", "expected 1, found 2", late]


def test_a_preempted_input_is_rerun_and_a_cancelled_one_is_not(
    modal: LoopbackModal, jobs: dict[str, FunctionView]
) -> None:
    program = """
call = f('patient').spawn()
try:
    call.get(timeout=0)
except TimeoutError:
    print(call.object_id)
"""
    call_id = _client(modal, program)
    modal.wait_for(lambda: "begun" in _notes(modal), timeout_s=WAIT_S)
    modal.preempt(modal.containers("jobs", "patient")[0])
    modal.wait_for(lambda: _notes(modal)[-2:] == ["ended", "begun"], timeout_s=WAIT_S)
    _client(modal, f"modal.FunctionCall.from_id('{call_id}').cancel()")
    modal.wait_for(lambda: _notes(modal)[-1] == "ended", timeout_s=WAIT_S)
    assert [call.statuses for call in modal.function_calls("jobs", "patient")] == [["terminated"]]


def test_the_cli_lists_logs_and_stops(
    modal: LoopbackModal, jobs: dict[str, FunctionView], apps: Path
) -> None:
    _client(modal, "print(list(f('square').map(range(3))))")
    logs = modal.cli("app", "logs", "jobs")
    assert "ValueError: expected 1, found 2" in logs.stdout + logs.stderr
    listed = json.loads(modal.cli("app", "list", "--json").stdout)
    assert "jobs" in {row.get("Description") or row.get("description") for row in listed}
    assert modal.cli("app", "stop", "jobs", "-y").returncode == 0
    modal.wait_for(lambda: not modal.containers("jobs"), timeout_s=WAIT_S)
    assert modal.app("jobs").state == "stopped"


def test_an_unknown_call_says_its_name(modal: LoopbackModal) -> None:
    done = modal.python("-c", "import modal; modal.Queue.objects.list()")
    assert done.returncode == 1
    assert "QueueList is not served by the loopback control plane (modal 1.6." in done.stderr
