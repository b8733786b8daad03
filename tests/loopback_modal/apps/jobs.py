"""Functions of every kind: called, mapped, spawned, retried, cancelled, preempted; a class."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import modal

STATE = os.environ.get("LOOPBACK_STATE", "/mnt/state")
app = modal.App("jobs", image=modal.Image.debian_slim().env({"LOOPBACK_STATE": STATE}))
state = modal.Volume.from_name("job-state", create_if_missing=True, version=2)


def note(word: str) -> int:
    """Write a word on the volume; return how many there are of it."""
    file = Path(STATE) / "notes"
    with file.open("a") as notes:
        notes.write(f"{word}\n")
    return file.read_text().split().count(word)


@app.function(max_containers=2, env={"UNIT": "apples"})
def square(x: int) -> str:
    """A quick one."""
    return f"{x * x} {os.environ['UNIT']}"


@app.function(volumes={STATE: state}, retries=modal.Retries(max_retries=2, initial_delay=0.0))
def fails_twice() -> int:
    """Succeeds at the third attempt."""
    count = note("attempt")
    if count < 3:
        raise RuntimeError(f"attempt {count} fails")
    return count


@app.function(volumes={STATE: state}, gpu="H100", timeout=30, memory=256)
def train(steps: int) -> int:
    """Counts its runs, then waits to be disturbed."""
    runs = note("run")
    state.commit()
    deadline = time.time() + 20
    while runs < steps and time.time() < deadline:
        time.sleep(0.05)
    return runs


@app.function(volumes={STATE: state})
def patient() -> None:
    """Notes how it ends."""
    note("begun")
    try:
        time.sleep(60)
    finally:
        note("ended")


@app.function(timeout=1, startup_timeout=60)
def slow() -> None:
    """Takes longer than it may."""
    time.sleep(30)


@app.function()
def numbers(n: int) -> Iterator[int]:
    """A generator."""
    yield from range(n)


@app.function()
def broken() -> None:
    """Fails."""
    raise ValueError("expected 1, found 2")


@app.function()
def suicidal() -> None:
    """Dies without a word, each time."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.function(schedule=modal.Cron("0 3 * * *"))
def nightly() -> None:
    """Never runs by itself here."""


@app.cls(min_containers=0)
class Counter:
    """A class with a parameter."""

    start: int = modal.parameter(default=0)

    @modal.enter()
    def begin(self) -> None:
        """Once a container."""
        self.count = self.start

    @modal.method()
    def next(self, by: int = 1) -> int:
        """Count on."""
        self.count += by
        return self.count


@app.local_entrypoint()
def main(n: int = 3) -> None:
    """What `modal run` runs."""
    print("squares:", list(square.map(range(n))))
    call = square.spawn(7)
    print("spawned:", call.get(timeout=100))
    print("starmap:", list(square.starmap([(2,), (3,)])))
    counter = Counter(start=5)  # type: ignore[call-arg]  # what the decorator makes of it
    print("count:", counter.next.remote(2))
    print("numbers:", list(numbers.remote_gen(3)))
