"""The Hugging Face hub: a checkpoint goes there in one commit, and comes from there in one rename.

The one door of train to huggingface_hub, which is imported when it is needed. A folder that was
pulled is whole: every file has the digest that the hub has of it.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from train.errors import BadConfig, HubFailed

_CHUNK_BYTES = 1 << 20


def push(
    repo: str, files: Mapping[str, Path | bytes], *, private: bool, message: str
) -> tuple[str, str]:
    """Make a repository unless it is there, and put files into it in one commit.

    `private` is about a repository that is made. Returns its name and the commit's address.

    Raises:
        BadConfig: there is no token, or the hub refuses it, the name, or the files.
        HubFailed: the hub cannot be reached, or fails.

    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token  # noqa: PLC0415  # heavy

    if get_token() is None:
        raise BadConfig(
            "pushing needs a token that may write: set HF_TOKEN, or log in by `hf auth login`"
        )
    api = HfApi()
    additions = [
        CommitOperationAdd(name, io.BytesIO(file) if isinstance(file, bytes) else str(file))
        for name, file in files.items()
    ]
    with _translated(repo):
        name = api.create_repo(repo, private=private, exist_ok=True).repo_id
        done = api.create_commit(name, additions, commit_message=message)
    return name, str(done.commit_url)


def pull(repo: str, to: Path, *, revision: str | None, say: Callable[[str], object]) -> str:
    """Bring a repository's files into the folder `to`, which is not there yet; return the commit.

    Raises:
        BadConfig: there is no such repository or revision, or the folder is there.
        HubFailed: the hub cannot be reached, or a file came over otherwise.

    """
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415  # heavy

    if to.exists():
        raise BadConfig(f"{to} is there already: move it away, or name another folder")
    api = HfApi()
    with _translated(repo, revision):
        commit = str(api.model_info(repo, revision=revision).sha)
        entries = list(api.list_repo_tree(repo, recursive=True, revision=commit))
        say(f"{repo} at {commit[:12]}: {len(entries)} files")
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as scratch:
                whole = Path(scratch) / to.name
                snapshot_download(repo, revision=commit, local_dir=whole)
                shutil.rmtree(whole / ".cache", ignore_errors=True)
                for entry in entries:
                    _verify(whole / entry.path, entry)
                whole.rename(to)
        except PermissionError as error:
            raise BadConfig(f"cannot write {to}: {error.strerror}") from error
    return commit


def _verify(path: Path, entry: Any) -> None:  # noqa: ANN401  # a file or folder of the hub's
    """Compare a file's digest with the hub's: SHA-256 of large files, git's of the others."""
    if not hasattr(entry, "blob_id"):
        return
    if not path.is_file():
        raise HubFailed(f"{entry.path} did not come over: try again")
    expected = entry.lfs.sha256 if entry.lfs is not None else entry.blob_id
    digest = hashlib.sha256() if entry.lfs is not None else hashlib.sha1(usedforsecurity=False)
    if entry.lfs is None:
        digest.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise HubFailed(
            f"{entry.path} came over with other bytes: expected {expected[:12]}, found "
            f"{digest.hexdigest()[:12]}: try again"
        )


@contextmanager
def _translated(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the client's errors into one line each."""
    import httpx2  # noqa: PLC0415  # what huggingface_hub speaks by
    from huggingface_hub import constants, errors  # noqa: PLC0415

    hub = constants.ENDPOINT
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise BadConfig(f"{repo} at {hub} has no revision {revision!r}") from error
    except errors.GatedRepoError as error:
        raise BadConfig(
            f"{repo} at {hub} is gated: accept its terms there, then set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BadConfig(
            f"there is no {repo} at {hub}, or the token may not see it (HF_TOKEN)"
        ) from error
    except errors.HFValidationError as error:
        raise BadConfig(f"{repo!r} is no name for a repository: expected ORG/NAME") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        said = f"{hub} refuses {repo} with {status}: {error.server_message or _first(error)}"
        if status in {401, 403}:
            raise BadConfig(f"{said}; does the token in HF_TOKEN allow it?") from error
        raise (BadConfig if status in {400, 409} else HubFailed)(said) from error
    except (httpx2.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise HubFailed(f"{hub} cannot be reached: {_first(error)}") from error
    except RuntimeError as error:  # what the client makes of a failed upload of a large file
        raise HubFailed(f"{hub}: {_first(error.__cause__ or error)}") from error


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
