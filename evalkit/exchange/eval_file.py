"""The zip of JSON that a log of inspect is, read without inspect.

inspect compresses with zstd, which Python's zipfile reads from 3.14 on only: pyarrow unpacks it.
Knows nothing of what the JSON means.
"""

from __future__ import annotations

import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import orjson

from evalkit.errors import BadConfig
from evalkit.exchange.parquet_tables import pyarrow

ZSTD = 93
"""The number of zstd among the methods of a zip."""
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
MOST_BYTES = 2**30
"""Of one part, unpacked: a small file that claims more is not a log, and would fill the memory."""
DAMAGES = (*(ValueError, RuntimeError, EOFError, struct.error, zlib.error, zipfile.BadZipFile),)
"""What the readers of zip and JSON raise on damaged or hostile bytes.

RuntimeError is raised for what is encrypted, nested too deeply or of a zip too new.
"""


class EvalFile:
    """An `.eval` file, open for reading.

    Raises:
        BadConfig: on opening, that it is not one; on reading, that a part cannot be unpacked.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise BadConfig(f"{path}: {error.strerror or error}") from error
        try:
            self._zip = zipfile.ZipFile(self._file)
        except (OSError, *DAMAGES) as error:
            self._file.close()
            raise BadConfig(f"{path} is not a .eval log of inspect: {error}") from error
        self._names = {info.filename: info for info in self._zip.infolist()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def samples(self) -> Iterator[Any]:
        """Read every sample, one at a time, in the order of the file."""
        return (
            self.read(name)
            for name in self._names
            if name.startswith("samples/") and name.endswith(".json")
        )

    def read(self, name: str) -> Any:  # noqa: ANN401 - JSON
        """Read a part as JSON; NaN and Infinity are numbers, as inspect writes them."""
        info = self._names[name]
        try:
            if info.file_size > MOST_BYTES:
                raise ValueError(f"it unpacks to {info.file_size} bytes, above {MOST_BYTES}")
            packed = info.compress_type == ZSTD and sys.version_info < (3, 14)
            return _parsed(self._unpacked(info) if packed else self._zip.read(info))
        except (OSError, *DAMAGES) as error:
            raise BadConfig(f"{self.path}: {name} cannot be read: {error}") from error

    def _unpacked(self, info: zipfile.ZipInfo) -> bytes:
        arrow = pyarrow()
        self._file.seek(info.header_offset)
        *_, name_bytes, extra_bytes = LOCAL_HEADER.unpack(self._file.read(LOCAL_HEADER.size))
        self._file.seek(name_bytes + extra_bytes, 1)
        data = arrow.BufferReader(self._file.read(info.compress_size))
        text = bytes(arrow.CompressedInputStream(data, "zstd").read(info.file_size + 1))
        if len(text) != info.file_size:
            found = "more" if len(text) > info.file_size else len(text)
            raise ValueError(f"expected {info.file_size} bytes, found {found}")
        return text


def _parsed(text: bytes) -> Any:  # noqa: ANN401 - JSON
    """Parse JSON: the fast way, and where it has NaN or Infinity the one that knows these."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)
