"""`evalkit export`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from evalkit.arguments import Parser
from evalkit.errors import BadConfig


class Format(StrEnum):
    """What a run can be exported to."""

    INSPECT = "inspect"
    """A log of inspect for every arm."""
    PARQUET = "parquet"
    """A table of episodes, and one of turns with their texts."""
    HF = "hf"
    """The same, as a data set that `datasets.load_dataset` takes."""
    TRL = "trl"
    """Samples for TRL's SFT and preference trainers."""


def command(words: Sequence[str]) -> int:
    """Write a finished run in the format of another tool."""
    parser = Parser(prog="evalkit export", description=command.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's directory")
    parser.add_argument(
        "--to",
        required=True,
        choices=[each.value for each in Format],
        help="inspect: a .eval per arm; parquet: episodes and turns; hf: the same as a data set; "
        "trl: samples for SFT and preference training",
    )
    parser.add_argument("--out", type=Path, help="folder to write into (default: RUN/FORMAT)")
    parser.add_argument(
        "--only", choices=("success",), help="trl: SFT samples of successful episodes only"
    )
    typed = parser.parse_args(words)
    if typed.only is not None and typed.to != Format.TRL:
        raise BadConfig(f"--only success is for --to trl: {typed.to} takes whole runs")
    folder: Path = typed.out or typed.run / typed.to
    try:
        files = _export(typed.run, Format(typed.to), folder, only_success=typed.only is not None)
    except OSError as error:
        raise BadConfig(f"cannot write below {folder}: {error}") from error
    for file in files:
        print(f"{file}  {file.stat().st_size} bytes")
    return 0


def _export(run: Path, to: Format, folder: Path, *, only_success: bool) -> list[Path]:
    from evalkit.exchange.played import Played  # noqa: PLC0415

    played = Played.open(run)
    folder.mkdir(parents=True, exist_ok=True)
    if to is Format.INSPECT:
        from evalkit.exchange.inspect_log import export_inspect  # noqa: PLC0415

        return export_inspect(played, folder)
    if to is Format.TRL:
        from evalkit.exchange.trl_samples import export_trl  # noqa: PLC0415

        return export_trl(played, folder, only_success=only_success)
    from evalkit.exchange.parquet_tables import export_hf, export_parquet  # noqa: PLC0415

    return (export_hf if to is Format.HF else export_parquet)(played, folder)
