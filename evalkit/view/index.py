"""The list of the runs of a folder, as HTML: filtered, sorted, each with its arms in a picture.

Everything that came from a manifest, a table or an address passes through `esc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from evalkit.show.html.markup import arm_class, esc
from evalkit.show.verdict import share
from evalkit.view.folder import ArmLine, Entry, RunState
from evalkit.view.pages import arguments, minute, page, run_path

PAGE_RUNS = 200
SORTS = {
    "date": "latest first",
    "env": "by env",
    "success": "best first",
    "name": "by name",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which runs the index shall show, and in which order."""

    env: str = ""
    model: str = ""
    sort: str = "date"
    page: int = 0

    def chosen(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the runs that are asked for, in order; `entries` come latest first."""
        found = [
            entry
            for entry in entries
            if self.env in {"", entry.env}
            and (not self.model or any(self.model == arm.model for arm in entry.arms))
        ]
        if self.sort == "env":
            found.sort(key=lambda entry: (entry.env, str(entry.env_args)))
        elif self.sort == "name":
            found.sort(key=lambda entry: entry.name)
        elif self.sort == "success":
            found.sort(
                key=lambda entry: -max((arm.success or 0.0 for arm in entry.arms), default=0)
            )
        return found


def index_page(root: str, entries: Sequence[Entry], asked: Asked) -> str:
    """Return the list of runs."""
    chosen = asked.chosen(entries)
    first = asked.page * PAGE_RUNS
    shown = chosen[first : first + PAGE_RUNS]
    rows = "".join(map(_row, shown))
    head = (
        '<thead><tr><th class="pick">A</th><th class="pick">B</th><th class="name">run</th>'
        '<th>env</th><th>success, 95 % CI</th><th class="n">episodes</th><th>verdict</th>'
        "<th>state</th></tr></thead>"
    )
    table = f'<table class="runs">{head}<tbody>{rows}</tbody></table>'
    if not shown:
        table = '<p class="note">No run is like that.</p>'
    counted = f"{len(chosen)} of {len(entries)} runs" if len(chosen) < len(entries) else ""
    counted = counted or f"{len(entries)} run{'s' * (len(entries) != 1)}"
    live = any(entry.state is RunState.RUNNING for entry in entries)
    body = (
        f'<h1>Runs</h1><div class="over"><p class="soft">{counted}</p>{_filters(entries, asked)}'
        f'</div><form action="/compare" id="compare"><div id="runs" data-live="{int(live)}">{table}'
        f'{_turning(asked, chosen)}</div><div class="dock"><button class="main">Compare A with B'
        '</button><span class="soft" id="picked">Pick two runs of one env.</span></div></form>'
    )
    return page(f"runs in {root}", body, about=root)


def _filters(entries: Sequence[Entry], asked: Asked) -> str:
    envs = sorted({entry.env for entry in entries if entry.env})
    models = sorted({arm.model for entry in entries for arm in entry.arms})
    return (
        f'<form id="filter" class="filters">{_select("env", envs, asked.env)}'
        f'{_select("model", models, asked.model)}<label>sort<select name="sort">'
        + "".join(
            f'<option value="{key}"{" selected" * (key == asked.sort)}>{esc(said)}</option>'
            for key, said in SORTS.items()
        )
        + "</select></label><noscript><button>Apply</button></noscript></form>"
    )


def _select(name: str, options: Sequence[str], chosen: str) -> str:
    listed = "".join(
        f"<option{' selected' * (option == chosen)}>{esc(option)}</option>" for option in options
    )
    return (
        f'<label>{name}<select name="{name}"><option value="">all</option>{listed}</select></label>'
    )


def _row(entry: Entry) -> str:
    at = run_path(entry.name)
    name = esc(entry.name)
    arms = "".join(_arm(index, arm) for index, arm in enumerate(entry.arms))
    able = "" if entry.state is RunState.FINISHED else " disabled"
    data = f'data-digest="{esc(entry.env_digest)}"'
    picks = "".join(
        f'<td class="pick" data-label="{side.upper()}"><input type="radio" name="{side}" '
        f'value="{name}" aria-label="{name} as {side.upper()}" {data}{able}></td>'
        for side in "ab"
    )
    more = f", shard {esc(entry.shard)}" if entry.shard else ""
    more += f", {esc(entry.fork)}" if entry.fork else ""
    if entry.config_digest not in entry.name:
        more += f", config {esc(entry.config_digest)}"
    done = f"{entry.played:,}"
    if entry.state is RunState.DAMAGED:
        done = ""
    elif entry.state is not RunState.FINISHED:
        done += f" of {entry.total:,}"
    verdict = esc(entry.headline or entry.problem)
    return (
        f'<tr class="{entry.state.value}">{picks}<td class="name"><a href="{at}">{name}</a><small>'
        f"{esc(minute(entry.date))}{more}</small></td>"
        f'<td class="env" data-label="env"><span>{esc(entry.env)}<small>'
        f"{esc(arguments(entry))}</small></span></td>"
        f'<td class="wide"><ul class="arms">{arms}</ul></td>'
        f'<td class="n" data-label="episodes">{done}</td>'
        f'<td class="wide verdict{" blank" * (not verdict)}">{verdict}</td>'
        f'<td class="state {entry.state.value}" data-label="state"><span>{entry.state.value}</span>'
        "</td></tr>"
    )


def _arm(index: int, arm: ArmLine) -> str:
    """Return an arm's success as a dot, its interval as a line, and both as numbers."""
    picture, said = "", "<small>none yet</small>"
    if arm.success is not None and arm.lo is not None and arm.hi is not None:
        at, lo, hi = (f"{100 * value:.2f}%" for value in (arm.success, arm.lo, arm.hi))
        picture = (
            f'<line class="interval" x1="{lo}" x2="{hi}" y1="11" y2="11"/>'
            f'<circle class="dot" cx="{at}" cy="11" r="5"/>'
        )
        interval = f"{100 * arm.lo:.0f} to {100 * arm.hi:.0f}"
        said = f"<b>{share(arm.success)}</b> <small>{interval}</small>"
    lost = f' <small class="bad">{arm.errors} lost</small>' if arm.errors else ""
    model = "" if arm.model == arm.name else f"{esc(arm.model)}, "
    kind = f"{model}{esc(arm.strategy)}{', guided' if arm.guided else ''}"
    return (
        f'<li class="{arm_class(index)}"><span class="who">{esc(arm.name)}<small>{kind}</small>'
        '</span><svg aria-hidden="true"><line class="axis" x1="0" x2="100%" y1="11" y2="11"/>'
        f'{picture}</svg><span class="rate">{said}{lost}</span></li>'
    )


def _turning(asked: Asked, chosen: Sequence[Entry]) -> str:
    """Return links to the pages of a long list."""
    pages = (len(chosen) + PAGE_RUNS - 1) // PAGE_RUNS
    if pages < 2:
        return ""
    kept = {"env": asked.env, "model": asked.model, "sort": asked.sort}
    links = (
        f'<a href="/?{esc(urlencode({**kept, "page": number}))}"'
        f"{' aria-current=page' * (number == asked.page)}>{number + 1}</a>"
        for number in range(pages)
    )
    return f'<nav class="pages">{" ".join(links)}</nav>'
