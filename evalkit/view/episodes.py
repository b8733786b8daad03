"""The episodes of a seed as HTML: arm beside arm, turn by turn, with the way to the other seeds.

What models wrote is text only: everything passes through `esc`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evalkit.record.trajectory import Key, Trajectory, Turn
from evalkit.show.html.markup import arm_class, esc
from evalkit.view.folder import Entry
from evalkit.view.live import Ended
from evalkit.view.pages import debug_path, page, run_nav, run_path

PAGE_SEEDS = 400


def episodes_page(
    entry: Entry,
    ended: Mapping[Key, Ended],
    shown: Mapping[str, Trajectory],
    seed: int,
    repetition: int,
    first: int,
) -> str:
    """Return the episodes of a seed, arm beside arm, turn by turn."""
    repeated = "" if entry.k == 1 else f", repetition {repetition} of 0 to {entry.k - 1}"
    episodes = "".join(
        _episode(index, entry.name, trajectory) for index, trajectory in enumerate(shown.values())
    )
    none = f'<p class="note">No arm has finished seed {seed}{esc(repeated)}.</p>'
    body = (
        f"<h1>Seed {seed}{esc(repeated)}</h1>{_seeds(entry, ended, seed, first)}"
        f'<div class="side n{min(len(shown), 3)}">{episodes or none}</div>'
    )
    nav = run_nav(entry.name, alone=entry.name == ".")
    return page(f"seed {seed}: {entry.name}", body, nav=nav, about=entry.name)


def _seeds(entry: Entry, ended: Mapping[Key, Ended], seed: int, first: int) -> str:
    """Return a link for every seed that was played, coloured by how many arms succeeded."""
    won: dict[int, list[bool]] = {}
    for key, each in ended.items():
        won.setdefault(key.env_seed, []).append(each.success)
    seeds = sorted(won)
    at = run_path(entry.name)
    links = "".join(
        f'<a class="{_fate(won[number])}" href="{at}/episodes?seed={number}&amp;first={first}" '
        f'title="seed {number}: {sum(won[number])} of {len(won[number])} episodes succeeded"'
        f"{' aria-current=page' * (number == seed)}>{number}</a>"
        for number in seeds[first : first + PAGE_SEEDS]
    )
    starts = range(0, len(seeds), PAGE_SEEDS) if len(seeds) > PAGE_SEEDS else ()
    more = " ".join(
        f'<a href="{at}/episodes?seed={seeds[start]}&amp;first={start}">from {seeds[start]}</a>'
        for start in starts
    )
    legend = "".join(
        f'<span><i class="swatch {fate}"></i>{said}</span>'
        for fate, said in (("all", "every episode succeeds"), ("some", "some"), ("none", "none"))
    )
    repeated = (
        "" if entry.k == 1 else '<label>repetition<input name="repetition" value="0"></label>'
    )
    return (
        f'<form class="find" action="{at}/episodes"><label>seed<input name="seed" value="{seed}" '
        f'inputmode="numeric"></label>{repeated}<button>Show</button></form>'
        f'<nav class="seeds" aria-label="Seeds">{links}</nav><p class="soft legend">{legend}</p>'
        f'<nav class="pages" aria-label="More seeds">{more}</nav>'
    )


def _fate(won: Sequence[bool]) -> str:
    if all(won):
        return "all"
    return "some" if any(won) else "none"


def _episode(index: int, run: str, played: Trajectory) -> str:
    best = "" if played.optimal_turns is None else f" (oracle {played.optimal_turns})"
    verdict = "success" if played.success else "no success"
    if not played.scored:
        verdict = f"not scored: {played.failure_message}"
    fate = "good" if played.success else "bad"
    turns = "".join(map(_turn, played.turns))
    return (
        f'<article class="{arm_class(index)}"><div class="end"><h3>{esc(played.key.arm)}</h3><p>'
        f'<span class="{fate}">{esc(verdict)}</span>, return {played.return_:.2f}, '
        f"{len(played.turns)} turns{best}, {played.stop_reason.value}. "
        f'<a href="{esc(debug_path(run, played.key))}">Step through it</a></p></div>{turns}'
        f'<div class="turn"><h4>at the end</h4><p class="seen">{esc(played.final_observation)}</p>'
        "</div></article>"
    )


def _turn(turn: Turn) -> str:
    facts = [turn.outcome.value, f"reward {turn.reward:+.2f}"]
    facts += [fact for fact in (turn.event, turn.error) if fact]
    facts += [f"notes {turn.memory.value}"] if turn.memory else []
    facts += [f"version {turn.policy_version}"] if turn.policy_version else []
    action = "none" if turn.action is None else turn.action
    listed = "".join(f"<span>{esc(fact)}</span>" for fact in facts)
    reasoning = (
        f'<details><summary>reasoning</summary><p class="said">{esc(turn.reasoning)}</p></details>'
        if turn.reasoning
        else ""
    )
    return (
        f'<div class="turn"><h4>turn {turn.turn}</h4><div class="cell">'
        f'<p class="seen">{esc(turn.observation)}</p>{reasoning}'
        f'<p class="said">{esc(turn.completion) or "(nothing)"}</p>'
        f'<p class="facts"><b>{esc(action)}</b>{listed}</p></div></div>'
    )
