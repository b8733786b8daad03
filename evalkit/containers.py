"""The fleet on Modal: shards go to containers, and come back.

With `modal_app` the one door to modal. A call that was begun is remembered beside the shards, so
that a command that is typed again waits for it instead of beginning another.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import modal
import orjson

from evalkit.cargo import BACK, SENT, Job, Returned, named_files, pack, take_back
from evalkit.errors import RunFailed
from evalkit.record.rundir import RunDir, write_whole
from evalkit.sharded import Ended, Task

NOTE = "modal.json"
FORMAT = "modal-call/1"
PlaysShard = modal.Function[[Job], Returned, Returned]
PlaysRun = modal.Function[[PlaysShard, Sequence[Job]], list[Returned], list[Returned]]


class Containers:
    """A fleet of one container for each shard."""

    name = "modal"

    def __init__(
        self,
        whole: PlaysRun,
        one: PlaysShard,
        volume: modal.Volume,
        secrets: Sequence[str] = (),
    ) -> None:
        self._whole = whole
        self._one = one
        self._volume = volume
        self._secrets = secrets

    async def play(self, task: Task, show: TextIO | None) -> Sequence[Ended]:
        """Play shards; a call that still runs, since this command was last here, is waited for."""
        note = _Note(task)
        left: Sequence[RunDir] = task.todo
        earlier = await _finished_or_running(note.call_id)
        if earlier is not None:
            _say(show, f"run {task.run.path}: waiting for the call {note.call_id}\n")
            await self._taken_back(task, await _outcomes(earlier), note.key)
            left = [shard for shard in task.todo if shard.manifest()["finished_at"] is None]
        if not left:
            return []
        jobs = [
            Job(
                shard=shard.path.name,
                kept=_kept(note.key, shard),
                concurrency=task.concurrency(shard),
                options=tuple(task.options),
            )
            for shard in left
        ]
        try:
            await self._send(task, left, note.key)
            function = await self._function(task).hydrate.aio()
            call = await self._whole.spawn.aio(function, jobs)
        except modal.exception.Error as error:
            raise RunFailed(
                f"Modal does not take the run: {' '.join(str(error).split())}"
            ) from error
        note.write(call.object_id)
        _say(show, f"run {task.run.path} in {len(jobs)} containers, call {call.object_id}\n")
        return await self._taken_back(task, await _outcomes(call), note.key)

    async def _send(self, task: Task, shards: Sequence[RunDir], key: str) -> None:
        """Put shards, and the files that the config names, onto the volume."""
        here = Path.cwd()
        files = named_files(task.config, here)
        async with self._volume.batch_upload.aio(force=True) as batch:
            for shard in shards:
                batch.put_file(io.BytesIO(pack(shard, here, files)), f"/{_kept(key, shard)}/{SENT}")

    async def _taken_back(self, task: Task, outcomes: Sequence[Returned], key: str) -> list[Ended]:
        """Put what is on the volume in its place here; return what did not finish."""
        by_name = {shard.path.name: shard for shard in task.shards}
        ended = []
        for outcome in outcomes:
            shard = by_name[outcome.shard]
            cargo = await self._read(f"{_kept(key, shard)}/{BACK}")
            if cargo:
                take_back(shard, cargo)
            if shard.manifest()["finished_at"] is None:
                ended.append(Ended(shard=shard, said=outcome.said, usage=outcome.code == 2))
        return ended

    async def _read(self, path: str) -> bytes:
        """Return a file of the volume, nothing where there is none."""
        try:
            return b"".join([piece async for piece in self._volume.read_file.aio(path)])
        except FileNotFoundError:
            return b""

    def _function(self, task: Task) -> PlaysShard:
        """Return what plays a shard, with the API keys that the run names."""
        keys = task.config.api_keys()
        if self._secrets:
            secrets = [modal.Secret.from_name(name) for name in self._secrets]
        elif keys:
            secrets = [modal.Secret.from_dict({**keys})]
        else:
            return self._one
        return self._one.with_options(secrets=secrets)


class _Note:
    """What is remembered of a run on Modal, beside its shards: where they are kept, and the call.

    Two runs of one config are two runs: the key is drawn anew for each.
    """

    def __init__(self, task: Task) -> None:
        self._path = task.run.shards_path / NOTE
        self.key, self.call_id = f"{task.run.path.name}-{os.urandom(4).hex()}", ""
        if self._path.exists():
            known = orjson.loads(self._path.read_bytes())
            self.key, self.call_id = known["key"], known["call"]
        else:
            self.write("")

    def write(self, call_id: str) -> None:
        """Remember the call that plays the shards."""
        self.call_id = call_id
        said = {"format": FORMAT, "key": self.key, "call": call_id}
        write_whole(self._path, orjson.dumps(said))


async def _finished_or_running(call_id: str) -> modal.FunctionCall[list[Returned]] | None:
    """Return a call that was begun before, unless there is none any more, or it failed."""
    if not call_id:
        return None
    call: modal.FunctionCall[list[Returned]] = modal.FunctionCall.from_id(call_id)
    try:
        await call.get.aio(timeout=0)
    except modal.exception.OutputExpiredError:
        return None
    except (TimeoutError, modal.exception.TimeoutError):
        return call
    except Exception:  # noqa: BLE001 - whatever it died of, its shards are played anew
        return None
    return call


async def _outcomes(call: modal.FunctionCall[list[Returned]]) -> list[Returned]:
    """Wait for a call; raise RunFailed if it did not come to an end of its own."""
    try:
        return await call.get.aio()
    except modal.exception.Error as error:
        raise RunFailed(f"the call {call.object_id} on Modal failed: {error}") from error


def _kept(key: str, shard: RunDir) -> str:
    """Return where a shard is kept, below the volume."""
    return f"evaluations/{key}/{shard.path.name}"


def _say(show: TextIO | None, text: str) -> None:
    if show is not None:
        show.write(text)
