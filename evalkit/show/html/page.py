"""report.html: one self-contained page of a report, for a run or for a comparison of runs.

`write_page` puts it beside report.md; `html_page` returns it, for whoever serves pages. Both take

- the `Report`; its `sources` say where the episodes of each arm lie, so that arms of several runs
  stand side by side,
- `rundir`, where the report has no sources: the run whose arms they are. Without either the page
  has neither episodes nor latencies.

Of a run's files it reads only the episodes that it shows and a sample of the journal.

`live=True` is for a run that is still going: the page says so, and remembers which episode was
chosen, so that the next one that is served in its place (in a frame, say) shows it again.

The page loads nothing: its style and script lie in it, allowed by their digests; its charts are
inline SVG; what models and servers said is text only. Its bytes are a function of the report, the
recorded files. Must not know how runs are played.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from evalkit.record.chosen import Source, sources
from evalkit.record.latencies import sampled_latencies
from evalkit.record.rundir import RunDir, write_whole
from evalkit.show.html.charts.cost import cost
from evalkit.show.html.charts.evidence import evidence
from evalkit.show.html.charts.flips import flips_figure
from evalkit.show.html.charts.forest import forest
from evalkit.show.html.charts.latency import latency
from evalkit.show.html.charts.seeds import seeds_figure
from evalkit.show.html.charts.survival import survival
from evalkit.show.html.charts.taxonomy import taxonomy
from evalkit.show.html.definitions import DEFINITIONS
from evalkit.show.html.episodes import episode_data
from evalkit.show.html.head import headline
from evalkit.show.html.markup import Figure, data_block, define, esc, unbroken
from evalkit.show.qualified import qualifications
from evalkit.show.report import Report, table_cells


def write_page(path: Path, report: Report, rundir: RunDir | None = None) -> None:
    """Write the page of a report, all or nothing. Raises OSError and DamagedRun."""
    write_whole(path, html_page(report, rundir).encode("utf-8", "replace"))


def html_page(report: Report, rundir: RunDir | None = None, *, live: bool = False) -> str:
    """Return the page of a report. Raises DamagedRun."""
    played = report.sources or (sources(rundir, report.numbers) if rundir else {})
    strategies = {row["arm"]: str(row["strategy"]) for row in report.summary}
    main = [
        headline(report),
        _arms(report),
        _charts(report, played),
        _episodes(episode_data(report.numbers, played, strategies)),
        _glossary(),
    ]
    return _shell(report, "".join(main), live=live)


def _latencies_s(report: Report, played: Mapping[str, Source]) -> dict[str, list[float]]:
    """Return a sample of the seconds of each served arm's calls; baselines wait for nobody."""
    found: dict[str, list[float]] = {}
    for row in report.summary:
        source = played.get(row["arm"])
        if source is not None and row["base_url_host"]:
            journal = RunDir(source.path.parent).journal_path
            sample = sampled_latencies(journal, row["run_id"], [source.arm])
            found[row["arm"]] = sample[source.arm]
    return found


def _shell(report: Report, main: str, *, live: bool) -> str:
    style, script = _asset("style.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    title = f"{report.env}: {' against '.join(report.numbers)}"
    going = '<span class="live">still going</span>' if live else ""
    going += (
        f'<span class="unfinished">{esc(report.unfinished)}</span>' if report.unfinished else ""
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{esc(title)}</title>\n<style>{style}</style>\n</head>\n"
        f'<body data-run="{esc(report.run_id)}"{" data-live" if live else ""}>\n'
        '<a class="skip" href="#report">To the verdict</a>\n'
        f'<header class="top"><span class="run">{esc(report.env)} '
        f"<code>{esc(report.run_id)}</code></span>{going}"
        '<button id="theme" type="button" hidden>Theme</button></header>\n'
        f'<main id="report">{main}</main>\n'
        '<div id="tip" role="tooltip" hidden></div>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _arms(report: Report) -> str:
    head, *body = table_cells(report)
    columns = "".join(f'<th scope="col">{define(name)}</th>' for name in head)
    order = list(report.numbers)
    rows = ""
    for place, (first, *cells) in enumerate(body):
        arm = place < len(order)
        name = f'<i class="swatch a{place % 8}" aria-hidden="true"></i>' if arm else ""
        label = esc(first) if arm else define(first)
        rows += f'<tr{"" if arm else " class=soft"}><th scope="row">{name}{label}</th>'
        rows += "".join(f"<td>{esc(cell)}</td>" for cell in cells) + "</tr>"
    return (
        '<section aria-labelledby="h-arms"><h2 id="h-arms">Arms</h2>'
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="h-arms">'
        f"<table><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"{_notes(report)}</section>"
    )


def _notes(report: Report) -> str:
    """Return what qualifies the table."""
    first = report.general_notes
    for arm, found in report.numbers.items():
        if found.n_error:
            lost = f"{found.n_error:,} of {found.stops.total():,} episodes"
            first.append(f"`{arm}`: {lost} were lost to errors and are not scored.")
    others = list(qualifications(report.summary, report.numbers, report.of_fixed_size))
    more = f"<summary>What else qualifies these numbers</summary>{_paragraphs(others)}"
    return _paragraphs(first) + (f'<details class="more">{more}</details>' if others else "")


def _paragraphs(notes: Sequence[str]) -> str:
    """Return sentences as paragraphs; names of arms stand in backticks."""
    lines = (re.sub("`([^`]*)`", r"<b>\1</b>", esc(note)) for note in notes)
    return "".join(f'<p class="soft note">{line}</p>' for line in lines)


def _charts(report: Report, played: Mapping[str, Source]) -> str:
    """Return the charts that have something to show: the narrow ones in twos, then the wide."""
    clock = latency(list(report.numbers), _latencies_s(report, played))
    drawn = [draw(report) for draw in (forest, flips_figure, survival, taxonomy, evidence, cost)]
    figures = [one for one in (*drawn, clock, seeds_figure(report)) if one is not None]
    narrow = [one for one in figures if not one.wide]
    if len(narrow) % 2:
        figures = [replace(one, wide=True) if one is narrow[-1] else one for one in figures]
    figures.sort(key=lambda one: (one.name != "forest") + one.wide)
    return (
        '<section aria-labelledby="h-charts"><h2 id="h-charts">What was found</h2>'
        f'<div class="figures">{"".join(map(_figure, figures))}</div></section>'
    )


def _figure(figure: Figure) -> str:
    return (
        f'<figure id="{figure.name}" class="card{" wide" if figure.wide else ""}">'
        f'<figcaption><p class="kind">{define(figure.kind)}</p>'
        f"<h3>{unbroken(figure.finding)}</h3></figcaption>{figure.body}"
        f'<p class="reading">{figure.reading}</p></figure>'
    )


def _episodes(data: Mapping[str, Any]) -> str:
    if not data["seeds"]:
        return ""
    several = len(data["arms"]) > 1
    title = "Episodes, side by side" if several else "Episodes"
    return (
        f'<section id="episodes" aria-labelledby="h-episodes"><h2 id="h-episodes">{title}</h2>'
        f'<p class="soft">{esc(_left_out(data))} All of them: '
        "<code>python -m evalkit replay RUN --seed N</code>.</p>"
        '<div id="picker" class="picker"></div><div id="played" aria-live="polite"></div>'
        "<noscript><p>Episodes are shown by a script, and scripts are off.</p></noscript>"
        f"{data_block('episode-data', data)}</section>"
    )


def _left_out(data: Mapping[str, Any]) -> str:
    words = {"flip": "that flip", "error": "with an error", "alike": "that end alike"}
    if len(data["arms"]) == 1:
        words["alike"] = "without an error"
    shown = [one["kind"] for one in data["seeds"]]
    parts = [
        f"{shown.count(kind):,} of the {number:,} seeds {words[kind]}"
        for kind, number in data["counts"].items()
        if number
    ]
    return f"Here are {', '.join(parts)}; long texts are cut."


def _glossary() -> str:
    terms = "".join(
        f"<div><dt>{esc(term)}</dt><dd>{esc(meaning)}</dd></div>"
        for term, meaning in sorted(DEFINITIONS.items(), key=lambda item: item[0].lower())
    )
    return (
        '<section aria-labelledby="h-words"><h2 id="h-words">What the words mean</h2>'
        f'<dl class="glossary">{terms}</dl></section>'
    )


@cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
