"""Runs to Markdown: three tables of medians and ratios, and whether each goal was met. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.gateway_parts.records import Run

QUIET_CORES = 0.25
IDEAL_RPS = {"2000": 4000, "6000": 12000}
NGINX_FACTOR = 2.5
LOAD_LIMIT = 0.85
RATES = {
    ("c1", "rps"): "requests/s, 1 connection",
    ("c32", "rps"): "requests/s, 32 connections",
    ("c256", "rps"): "requests/s, 256 connections",
    ("sse", "events_per_s"): "SSE chunks/s, 32 streams",
}
COSTS = {
    ("c32", "cpu_s_per_1k"): "CPU s per 1,000 requests, 32 connections",
    ("paced", "cpu_s_per_1k_events"): "CPU s per 1,000 SSE chunks, 256 paced streams",
}
RATED = {**RATES, **COSTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A goal, and whether it held; None is not measured."""

    goal: str
    held: bool | None
    seen: str


class Results:
    """Runs, asked for medians over their rounds."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.peers = list(dict.fromkeys(run.peer for run in runs))

    def of(self, peer: str) -> list[Run]:
        """Return a peer's runs."""
        return [run for run in self.runs if run.peer == peer]

    def cell(self, peer: str, load: str, figure: str) -> float | None:
        """Return the median of a load's figure over the quiet rounds, or the quietest round's."""
        cells = [run.cells[load] for run in self.of(peer) if load in run.cells]
        seen = [(cell["foreign"], cell[figure]) for cell in cells if figure in cell]
        quiet = [value for foreign, value in seen if foreign <= QUIET_CORES]
        if quiet:
            return statistics.median(quiet)
        return min(seen)[1] if seen else None

    def figure(self, peer: str, name: str) -> float | None:
        """Return the median of a figure of the start as a whole."""
        seen = [run.figures[name] for run in self.of(peer) if name in run.figures]
        return statistics.median(seen) if seen else None

    def failed(self, peer: str, load: str) -> int | None:
        """Return the most requests of a load that failed in a round, for whatever reason."""
        cells = [run.cells[load] for run in self.of(peer) if load in run.cells]
        if not cells or any(load in run.problems for run in self.of(peer)):
            return None
        return int(max(max(c["errors"], c["cut"]) + c["refused"] + c["stuck"] for c in cells))

    def added_us(self, peer: str, percentile: str) -> float | None:
        """Return the latency at the low rate over that without a gateway."""
        mine, bare = (self.cell(p, "low", f"latency_{percentile}_us") for p in (peer, "direct"))
        return None if mine is None or bare is None else mine - bare


def report(results: Results) -> str:
    """Return every table and the claims, as Markdown."""
    parts = [requests_table(results), streams_table(results), noise_table(results)]
    parts += [problems_list(results), claims_table(claims(results))]
    return "\n\n".join(part for part in parts if part)


def requests_table(results: Results) -> str:
    """Return requests/s, CPU, latency and memory per peer."""
    heads = ["peer", "req/s c1", "c32", "/direct", "/nginx", "c256", "/nginx", "64 kB c32"]
    heads += ["CPU s per 1,000 (c32)", "/nginx", "added p50 µs at 100/s", "added p99 µs"]
    heads += ["RSS idle MB", "RSS after MB", "kB per idle connection", "without a key"]
    rows = []
    for peer in results.peers:
        c1, c32, c256, big = (results.cell(peer, at, "rps") for at in ("c1", "c32", "c256", "64kB"))
        cpu = results.cell(peer, "c32", "cpu_s_per_1k")
        row = [_named(results, peer), _n(c1), _n(c32), _ratio(c32, results, "direct", "c32", "rps")]
        row += [_ratio(c32, results, "nginx", "c32", "rps"), _n(c256)]
        row += [_ratio(c256, results, "nginx", "c256", "rps"), _n(big)]
        row += [_n(cpu, 4), _ratio(cpu, results, "nginx", "c32", "cpu_s_per_1k")]
        row += [_n(results.added_us(peer, point)) for point in ("p50", "p99")]
        row += [_n(results.figure(peer, name)) for name in ("rss_idle_mb", "rss_after_mb")]
        row += [_n(results.figure(peer, "kb_per_idle"), 1)]
        row += [_n(results.figure(peer, "anonymous_status"))]
        rows.append(row)
    return _markdown(heads, rows)


def streams_table(results: Results) -> str:
    """Return streams and many requests in flight per peer."""
    heads = ["peer", "SSE chunks/s", "/direct", "/nginx", "CPU s per 1,000 chunks"]
    heads += ["paced 256 x 50/s: chunks/s", "CPU s per 1,000 chunks", "TTFT p99 ms", "gap p99 ms"]
    for load, ideal in IDEAL_RPS.items():
        heads += [f"{int(load):,} in flight: req/s (ideal {ideal:,})", "failed", "p99 ms"]
    rows = []
    for peer in results.peers:
        sse = results.cell(peer, "sse", "events_per_s")
        row = [_named(results, peer), _n(sse)]
        row += [_ratio(sse, results, base, "sse", "events_per_s") for base in ("direct", "nginx")]
        row += [_n(results.cell(peer, "sse", "cpu_s_per_1k_events"), 5)]
        row += [_n(results.cell(peer, "paced", "events_per_s"))]
        row += [_n(results.cell(peer, "paced", "cpu_s_per_1k_events"), 5)]
        row += [_ms(results.cell(peer, "paced", name)) for name in ("ttft_p99_us", "gap_p99_us")]
        for load in IDEAL_RPS:
            row += [_n(results.cell(peer, load, "rps")), _n(results.failed(peer, load))]
            row += [_ms(results.cell(peer, load, "latency_p99_us"))]
        rows.append(row)
    return _markdown(heads, rows)


def noise_table(results: Results) -> str:
    """Return the cores that other processes took during each load, the worst round of each."""
    loads = list(dict.fromkeys(load for run in results.runs for load in run.cells))
    rows = []
    for peer in results.peers:
        cells = [[run.cells[at] for run in results.of(peer) if at in run.cells] for at in loads]
        worst = [max((cell["foreign"] for cell in seen), default=None) for seen in cells]
        rows.append([peer, *(_n(foreign, 2) for foreign in worst)])
    return "Cores used by other processes:\n\n" + _markdown(["peer", *loads], rows)


def problems_list(results: Results) -> str:
    """Return what was not measured and why; nothing where all was."""
    lines = [
        f"- {run.peer}, {step}, round {run.round + 1}: {why}"
        for run in results.runs
        for step, why in run.problems.items()
    ]
    return "Not measured:\n\n" + "\n".join(lines) if lines else ""


def claims(results: Results) -> list[Claim]:
    """Return what ours was to be, and whether it was."""
    gateways = [peer for peer in results.peers if peer not in {"direct", "nginx", "ours"}]
    found = [_ahead(results, gateways, load, figure) for load, figure in RATED]
    found += [_near_nginx(results, load, figure) for load, figure in RATED]
    failed = results.failed("ours", "6000")
    rps = results.cell("ours", "6000", "rps")
    seen = f"{_n(failed)} failed, {_n(rps)} req/s"
    held = None if failed is None or rps is None else failed == 0 and rps > 0
    found.append(Claim(goal="6,000 requests in flight, none fails", held=held, seen=seen))
    statuses = [results.figure("ours", f"{name}_status") for name in ("anonymous", "metrics")]
    guarded = None if None in statuses else statuses == [401, 200]
    seen = f"without a key {_n(statuses[0])}, /metrics {_n(statuses[1])}"
    found.append(Claim(goal="measured with keys and metrics on", held=guarded, seen=seen))
    return found


def claims_table(found: Iterable[Claim]) -> str:
    """Return the claims block."""
    words = {True: "yes", False: "NO", None: "not measured"}
    rows = [[claim.goal, words[claim.held], claim.seen] for claim in found]
    return "Claims:\n\n" + _markdown(["goal", "held", "seen"], rows)


def _ahead(results: Results, gateways: Sequence[str], load: str, figure: str) -> Claim:
    mine = results.cell("ours", load, figure)
    seen = {peer: results.cell(peer, load, figure) for peer in gateways}
    others = {peer: value for peer, value in seen.items() if value is not None}
    missing = ", ".join(peer for peer in gateways if peer not in others)
    goal = f"ahead of every peer but nginx: {RATED[load, figure]}"
    if mine is None or not others:
        return Claim(goal=goal, held=None, seen="")
    least = (load, figure) in COSTS
    best = (min if least else max)(others, key=lambda peer: others[peer])
    ratio = others[best] / mine if least else mine / others[best]
    digits = 4 if least else 0
    words = f"{_n(mine, digits)} against {_n(others[best], digits)} of {best}: {ratio:.2f} x"
    bare = results.cell("direct", load, figure)
    if bare and not least and max(mine, others[best]) > LOAD_LIMIT * bare:
        words += "; near what the load itself can do"
    if missing:
        words += f"; without {missing}"
    return Claim(goal=goal, held=ratio > 1, seen=words)


def _near_nginx(results: Results, load: str, figure: str) -> Claim:
    mine, base = (results.cell(peer, load, figure) for peer in ("ours", "nginx"))
    goal = f"within {NGINX_FACTOR} x of nginx: {RATED[load, figure]}"
    if not mine or not base:
        return Claim(goal=goal, held=None, seen="")
    times = mine / base if (load, figure) in COSTS else base / mine
    return Claim(goal=goal, held=times <= NGINX_FACTOR, seen=f"nginx is {times:.2f} x as good")


def _named(results: Results, peer: str) -> str:
    version = next((run.version for run in results.of(peer) if run.version), "")
    return f"{peer} {version}".strip()


def _ratio(value: float | None, results: Results, base: str, load: str, figure: str) -> str:
    of = results.cell(base, load, figure)
    return "-" if value is None or not of else f"{value / of:.2f}"


def _n(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _ms(us: float | None) -> str:
    return _n(None if us is None else us / 1000, 1)


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
