// The debugger's page: asks for what there is to see, shows it, posts what is done. All text is set
// as text, none of it as HTML.
"use strict";
(() => {
  const PERIOD_MS = 400, SHOWN_TURNS = 20;
  const query = new URLSearchParams(location.search);
  const STRATEGIES = ["NO_HISTORY", "FULL_HISTORY", "WINDOW(4)", "SUMMARY(2)", "SCRATCHPAD", "OPTIMAL_SCRATCHPAD"];
  const root = document.getElementById("bench"), alert = document.getElementById("error");
  let seen = null, busy = false, compared = null;

  const el = (tag, given = {}, ...inside) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(given)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (name in made) made[name] = value;
      else if (value !== null) made.setAttribute(name, value);
    }
    made.append(...inside.filter((each) => each !== null));
    return made;
  };
  const say = (words) => { alert.hidden = !words; alert.textContent = words; };

  const ask = async (path, body) => {
    const posted = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch(path, body === undefined ? {} : posted);
    const text = await answer.text();
    let said;
    try { said = JSON.parse(text); } catch { throw new Error(text.slice(0, 300) || answer.statusText); }
    if (!answer.ok) throw new Error(said.error || text.slice(0, 300));
    return said;
  };
  const at = (more = "") => `/api/debug/${seen.bench}${more}`;
  const follow = async () => {
    while (busy) {
      await new Promise((done) => setTimeout(done, PERIOD_MS));
      if (!busy) return;
      try { seen = await ask(at()); } catch { return; }
      if (busy) draw();
    }
  };
  const act = async (verb, text = "") => {
    if (busy) return;
    busy = true;
    say("");
    draw();
    if (verb === "run" || verb === "step") follow();
    try {
      seen = await ask(at(), { verb, text: String(text) });
      if (compared) compared = await ask(at(`/futures?${new URLSearchParams({ left: compared.left.name, right: seen.name })}`));
    } catch (error) {
      say(error.message);
      try { seen = await ask(at()); } catch { /* the error above says it */ }
    }
    busy = false;
    draw();
  };
  const pause = () => ask(at("/pause"), {}).catch((error) => say(error.message));
  const compare = async (left) => {
    try {
      compared = await ask(at(`/futures?${new URLSearchParams({ left, right: seen.name })}`));
      draw();
    } catch (error) { say(error.message); }
  };

  const button = (words, done, given = {}) => el("button", { type: "button", onclick: done, ...given }, words);
  const pane = (title, ...inside) => el("section", { className: "pane", "aria-label": title }, el("h2", {}, title), ...inside);
  const whole = (made) => { made.classList.add("whole"); return made; };
  const hint = (words) => words ? el("p", { className: "hint" }, words) : null;

  const bar = () => {
    const over = seen.phase === "over", until = el("input", { inputMode: "numeric", ariaLabel: "until turn", placeholder: "turn" });
    const source = seen.follows_record ? "replies as recorded" : seen.model;
    return el("div", { className: "bar" },
      button("Back", () => act("back", Math.max(0, seen.turn - 1)), { disabled: busy || (!seen.turn && !over) }),
      button("Ask", () => act("ask"), { disabled: busy || over || seen.phase === "answered", title: "get the reply, and wait before it is taken" }),
      button("Step", () => act("step"), { className: "main", disabled: busy || over }),
      button("Run", () => act("run"), { disabled: busy || over }),
      el("form", { onsubmit: (event) => { event.preventDefault(); act("run", until.value); } }, until, " ", el("button", { disabled: busy || over }, "Run to")),
      button("Pause", pause, { disabled: !busy }),
      seen.follows_record ? button("Live from here", () => act("live"), { disabled: busy, title: "ask the model, also where replies are recorded" }) : null,
      el("span", { className: "at", role: "status" }, `turn ${seen.turn} of at most ${seen.max_turns}, ${seen.strategy}, ${busy ? "playing" : source}`));
  };
  const line = () => {
    const changed = new Set(seen.interventions.map((made) => made.turn)), made = el("nav", { className: "line", ariaLabel: "Turns" });
    for (let turn = 0; turn <= seen.turn - (seen.phase === "over" ? 1 : 0); turn++) {
      made.append(button(String(turn), () => act("back", turn), {
        disabled: busy || turn === seen.turn, className: changed.has(turn) ? "changed" : "", "aria-current": turn === seen.turn ? "step" : null,
        title: turn < seen.turn ? `back to turn ${turn}: ${seen.turns[turn].action || "no action"}` : "this turn",
      }));
    }
    return made;
  };
  const edited = (title, value, verb, words, off, more = null) => {
    const text = el("textarea", { value, ariaLabel: title, disabled: off, spellcheck: false });
    return pane(title, text, el("div", { className: "acts" }, button(words, () => act(verb, text.value), { disabled: off })), more);
  };
  const reply = () => {
    const off = busy || seen.phase === "over", made = edited("Reply", seen.reply ?? "", "reply", "Put in the model's mouth", off);
    const actions = el("div", { className: "acts" });
    for (const action of seen.legal_actions.slice(0, 40)) {
      actions.append(button(action, () => act("do", action), { disabled: off, className: action === seen.oracle ? "best" : "", title: action === seen.oracle ? "the oracle's action" : "" }));
    }
    if (!seen.legal_actions.length) return made;
    const more = seen.legal_actions.length > 40 ? `40 of ${seen.legal_actions.length} legal actions; ` : "";
    made.append(el("h3", {}, "Force an action"), actions, hint(`${more}underlined: the oracle's`));
    return made;
  };
  const prompt = () => whole(pane("Exact prompt",
    ...seen.prompt.messages.flatMap((each) => [el("h3", {}, each.role), el("pre", { tabIndex: 0 }, each.content)]),
    hint(seen.prompt.digest ? `digest ${seen.prompt.digest}` : "the episode is over: nothing is asked any more")));
  const player = () => {
    const model = el("input", { value: seen.model, ariaLabel: "model", spellcheck: false });
    const names = STRATEGIES.includes(seen.strategy) ? STRATEGIES : [seen.strategy, ...STRATEGIES];
    const strategy = el("select", { ariaLabel: "history strategy" }, ...names.map((name) => el("option", { selected: name === seen.strategy }, name)));
    const off = busy || seen.phase === "over";
    return pane("From here on", el("div", { className: "acts" }, model, button("Use model", () => act("model", model.value), { disabled: off })),
      el("div", { className: "acts" }, strategy, button("Use strategy", () => act("strategy", strategy.value), { disabled: off })),
      hint("a URL, URL#NAME, random, oracle or noop"));
  };
  const ended = () => seen.phase !== "over" ? null : el("p", { className: seen.success ? "good" : "bad" },
    `over: ${seen.success ? "success" : "no success"}, return ${seen.return.toFixed(2)}, ${seen.stop_reason}${seen.failure_message ? `: ${seen.failure_message}` : ""}`);
  const futures = () => {
    const others = [{ name: "recorded", ending: "as it was recorded", parts_at: undefined }, ...seen.branches];
    const list = el("ul", { className: "futures" }, ...others.map((each) => el("li", {},
      el("span", {}, el("b", {}, each.name), ` ${each.ending}${each.model ? `; ${each.strategy}, ${each.model}` : ""}${each.parts_at === null || each.parts_at === undefined || each.name === seen.name ? "" : `; parts at turn ${each.parts_at}`}`),
      each.model ? button("Switch", () => act("switch", each.name), { disabled: busy || each.name === seen.name }) : null,
      button("Compare", () => compare(each.name), { disabled: busy || each.name === seen.name }))));
    return whole(pane("Futures", list, el("div", { className: "acts" },
      button("Fork here", () => act("fork"), { disabled: busy || seen.phase === "over" }),
      button("Save as a run", () => act("save"), { disabled: busy || seen.phase !== "over" })),
      hint(seen.saved ? `saved as ${seen.saved}` : "a future can be saved when it is over"), both()));
  };
  const said = (future, turn) => {
    const played = future.turns[turn];
    return played ? el("div", {}, played.observation.trim(), el("br"), `> ${played.completion.trim() || "(nothing)"}`, el("br"),
      el("span", { className: "did" }, `${played.action || "no action"}, ${played.reward.toFixed(2)}`)) : el("div");
  };
  const both = () => {
    if (!compared) return null;
    const { left, right, parts_at: parted } = compared, most = Math.max(left.turns.length, right.turns.length);
    const made = el("div", { className: "two" });
    for (const future of [left, right]) made.append(el("div", {}, el("b", {}, future.name), ` return ${future.return_.toFixed(2)}, ${future.turns.length} turns, ${future.success === null ? "not decided" : future.success ? "success" : "no success"}`));
    const from = parted ?? most, to = Math.min(most, from + SHOWN_TURNS);
    for (let turn = from; turn < to; turn++) made.append(said(left, turn), said(right, turn));
    const words = parted === null ? "the same in all turns" : `the same up to turn ${parted}${to < most ? `; ${most - to} more turns after these` : ""}`;
    return el("div", {}, el("h3", {}, words), made);
  };
  const draw = () => {
    if (!seen) return;
    const off = busy || seen.phase === "over", top = scrollY;
    const notes = seen.notes_editable || seen.notes ? edited("Notes", seen.notes ?? "", "pad", "Rewrite", off || !seen.notes_editable, hint(seen.notes_editable ? "" : "written by a rule, not by the model")) : null;
    const env = pane("Env", el("h3", {}, "picture"), el("pre", { tabIndex: 0 }, seen.picture || ""), el("h3", {}, "state"), el("pre", { tabIndex: 0 }, JSON.stringify(seen.state, null, 1)));
    const shown = edited("What the model sees", seen.observation, "obs", "Show this instead", off);
    root.replaceChildren(bar(), line(), ended() ?? "", el("div", { className: "panes" },
      el("div", { className: "column" }, shown, notes, player()), el("div", { className: "column" }, reply(), env),
      prompt(), futures()));
    scrollTo({ top, behavior: "instant" });
  };

  document.querySelector("h1").textContent = `Seed ${query.get("seed")}, ${query.get("arm")}`;
  const number = (name) => Number(query.get(name) || 0);
  ask("/api/debug", { run: query.get("run"), arm: query.get("arm"), seed: number("seed"), repetition: number("repetition"), turn: number("turn") })
    .then((first) => { seen = first; draw(); })
    .catch((error) => say(error.message));
})();
