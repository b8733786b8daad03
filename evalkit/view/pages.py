"""What every page has, and the plain ones: a run, a comparison, a run's files, errors.

Everything that came from a server, a manifest or an address passes through `esc`. Must not know
where it came from; scripts and styles are files in `assets/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote, urlencode

import orjson

from evalkit.record.trajectory import Key
from evalkit.show.html.markup import esc
from evalkit.view.folder import Entry, RunState


def page(
    title: str,
    body: str,
    *,
    nav: Sequence[tuple[str, str]] = (),
    about: str = "",
    framed: bool = False,
    script: str = "",
) -> str:
    """Return a whole page in the look of the reports.

    `body` is HTML; `title` is text, and so is `about`, which stands beside the links of `nav`:
    (words, address). A framed body is as wide as the page, and has its own choice of theme.
    `script` is a further file of `assets/`.
    """
    links = "".join(f'<a href="{esc(address)}">{esc(words)}</a>' for words, address in nav)
    theme = "" if framed else '<button id="theme" type="button" hidden>Theme</button>'
    more = f'<script src="/assets/{esc(script)}" defer></script>' if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{esc(title)}</title><link rel="icon" href="data:,">'
        '<link rel="stylesheet" href="/assets/style.css">'
        '<link rel="stylesheet" href="/assets/view.css">'
        f'<script src="/assets/view.js" defer></script>{more}</head>\n'
        f'<body class="view"><header class="top"><nav aria-label="Pages">{links}</nav>'
        f'<span class="run">{esc(about)}</span><span class="live" id="live" role="status" hidden>'
        f"</span>{theme}</header>\n<main{' class=framed' * framed}>{body}</main></body></html>\n"
    )


def error_page(title: str, said: str) -> str:
    """Return the page of something that cannot be shown."""
    body = f'<h1>{esc(title)}</h1><p class="note">{esc(said)}</p>'
    return page(title, body, nav=[("Runs", "/")])


def run_nav(name: str, *, alone: bool) -> list[tuple[str, str]]:
    """Return the links that every page of a run has; `alone`: it is the only run."""
    at = run_path(name)
    runs = [] if alone else [("Runs", "/")]
    return [*runs, ("Report", at), ("All episodes", f"{at}/episodes"), ("Files", f"{at}/files")]


def run_page(entry: Entry, version: str, *, alone: bool) -> str:
    """Return the page of a run: its report in a frame, which view.js renews while the run goes on.

    `version` names what the report is made of now.
    """
    at = run_path(entry.name)
    going = "" if entry.state is RunState.FINISHED else " data-going-on"
    body = (
        f'<div id="report" data-src="{at}/report" data-progress="/api{at}/progress" '
        f'data-version="{esc(version)}"{going}><iframe title="Report" src="{at}/report"></iframe>'
        "</div>"
    )
    nav = run_nav(entry.name, alone=alone)
    return page(f"{entry.env}: {entry.name}", body, nav=nav, framed=True)


def compare_page(a: str, b: str) -> str:
    """Return the page of two runs side by side, in a frame."""
    query = esc(urlencode({"a": a, "b": b}))
    frame = f'<iframe title="Comparison" src="/compare/report?{query}"></iframe>'
    nav = [("Runs", "/"), (f"A: {a}", run_path(a)), (f"B: {b}", run_path(b))]
    return page(f"{a} against {b}", f'<div id="report">{frame}</div>', nav=nav, framed=True)


def files_page(entry: Entry, files: Sequence[tuple[str, int]], *, alone: bool) -> str:
    """Return what a run is, and what of it can be taken away: names with their sizes in bytes."""
    at = run_path(entry.name)
    rows = "".join(
        f'<tr><th scope="row"><a href="{at}/files/{quote(file)}" download>{esc(file)}</a></th>'
        f"<td>{_size(size_bytes)}</td></tr>"
        for file, size_bytes in files
    )
    facts = {
        "state": words(entry),
        "kind": entry.fork,
        "env": entry.env,
        "parameters": arguments(entry),
        "seeds": f"{entry.n_seeds}" + (f", each {entry.k} times" if entry.k > 1 else ""),
        "began, UTC": minute(entry.started_at),
        "ended, UTC": minute(entry.finished_at),
        "config digest": entry.config_digest,
        "env digest": entry.env_digest,
        "commit": entry.git_sha,
    }
    listed = "".join(
        f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>"
        for name, value in facts.items()
        if value
    )
    problem = f'<p class="note">{esc(entry.problem)}</p>' if entry.problem else ""
    body = (
        f'<h1>Files</h1>{problem}<dl class="about">{listed}</dl><div class="scroll">'
        f'<table class="files"><tbody>{rows}</tbody></table></div>'
    )
    nav = run_nav(entry.name, alone=alone)
    return page(f"files: {entry.name}", body, nav=nav, about=entry.name)


def words(entry: Entry) -> str:
    """Say how far a run is."""
    most = "at most " if entry.may_stop_early else ""
    done = f"{entry.played:,} of {most}{entry.total:,} episodes"
    if entry.state is RunState.INTERRUPTED:
        return f"interrupted after {done}"
    return f"finished, {entry.played:,} episodes" if entry.state is RunState.FINISHED else done


def run_path(name: str) -> str:
    """Return the address of a run's page."""
    return f"/runs/{quote(name, safe='')}"


def debug_path(name: str, key: Key) -> str:
    """Return the address at which an episode of a run is debugged."""
    asked = {"run": name, "seed": key.env_seed, "arm": key.arm, "repetition": key.repetition}
    return f"/debug?{urlencode(asked)}"


def minute(when: str) -> str:
    """Return a time of the manifest, UTC, to the minute."""
    return when[:16].replace("T", " ")


def arguments(entry: Entry) -> str:
    """Write the parameters of a run's env."""
    return " ".join(f"{name}={_plain(value)}" for name, value in entry.env_args.items())


def _size(size_bytes: int) -> str:
    if size_bytes < 10_000:
        return f"{size_bytes:,} bytes"
    return (
        f"{size_bytes / 1e3:,.0f} kB" if size_bytes < 10_000_000 else f"{size_bytes / 1e6:,.0f} MB"
    )


def _plain(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
