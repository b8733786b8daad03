
"use strict";
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const make = (tag, css, ...children) => {
    const made = document.createElement(tag);
    if (css) made.className = css;
    made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return made;
  };
  // Where there is no storage, what is remembered lasts as long as the page.
  const recall = (place, name) => { try { return window[place].getItem(name); } catch { return null; } };
  const keep = (place, name, value) => { try { window[place].setItem(name, value); } catch { /* see above */ } };

  const themes = ["auto", "light", "dark"];
  const chosen = recall("localStorage", "theme");
  let theme = themes.includes(chosen) ? chosen : "auto";
  const paint = () => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    byId("theme").textContent = `Theme: ${theme}`;
  };
  byId("theme").hidden = false;
  byId("theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % 3];
    keep("localStorage", "theme", theme);
    paint();
  });
  paint();

  const tip = byId("tip");
  let told = null;
  const show = (target) => {
    told = target;
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const box = target.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const left = Math.min(box.left + box.width / 2 - own.width / 2, innerWidth - own.width - 12);
    const above = box.top - own.height - 9;
    tip.style.left = `${Math.max(12, left)}px`;
    tip.style.top = `${above > 6 ? above : box.bottom + 9}px`;
  };
  const hide = () => { told = null; tip.hidden = true; };
  for (const name of ["mouseover", "focusin", "click"]) {
    document.addEventListener(name, (event) => {
      const target = event.target.closest ? event.target.closest("[data-tip]") : null;
      if (target) show(target); else hide();
    });
  }
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", () => { if (told) show(told); }, { passive: true, capture: true });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  addEventListener("beforeprint", () => {
    for (const shut of document.querySelectorAll("details:is(.others, .more):not([open])")) {
      shut.open = true;
      addEventListener("afterprint", () => { shut.open = false; }, { once: true });
    }
  });

  let data = null, at = 0, left = 0, right = 1;

  const parts = (a, b) => {
    if (!a || !b) return null;
    const until = Math.min(a.turns.length, b.turns.length);
    for (let n = 0; n < until; n += 1) {
      const x = a.turns[n], y = b.turns[n];
      if (x.o !== y.o || x.a !== y.a || x.k !== y.k) return n;
    }
    return a.n === b.n ? null : until;
  };
  const ending = (played) => {
    if (!played) return "not played";
    if (!played.scored) return "not scored";
    return played.won ? "success" : "no success";
  };
  const label = (one) => {
    const kinds = { flip: "flips", error: "error", alike: "alike" };
    const ends = one.played.map((played, n) => `${data.arms[n].name} ${ending(played)}`).slice(0, 3).join(", ");
    return `seed ${one.seed}${one.rep ? `, repetition ${one.rep}` : ""} (${data.arms.length > 1 ? `${kinds[one.kind]}: ` : ""}${ends})`;
  };

  const reply = (text) => {
    const box = make("pre", "said");
    const found = /<scratchpad>([\s\S]*?)(<\/scratchpad>|$)/i.exec(text || "");
    if (!text) { box.append("(nothing)"); return box; }
    if (!found) { box.append(text); return box; }
    box.append(text.slice(0, found.index), make("span", "pad", found[0]), text.slice(found.index + found[0].length));
    return box;
  };
  const fact = (name, value) => make("span", "", `${name} `, make("b", "", String(value)));
  const cell = (turn, arm) => {
    const box = make("div", `cell a${arm % 8}`, make("p", "who", data.arms[arm].name));
    box.append(make("p", "seen", turn.o || ""));
    if (turn.r) box.append(make("details", "", make("summary", "", "reasoning"), make("p", "seen", turn.r)));
    box.append(reply(turn.c));
    const facts = make("p", "facts", fact("action", turn.a || "none"), fact("outcome", turn.k), fact("reward", turn.w));
    if (turn.e) facts.append(fact("event", turn.e));
    if (turn.m) facts.append(fact("notes", turn.m));
    if (turn.p || turn.t) facts.append(fact("tokens", `${turn.p || 0} + ${turn.t || 0}`));
    if (turn.x) facts.append(fact("refused:", turn.x));
    box.append(facts);
    return box;
  };
  const last = (played, arm) => {
    const box = make("div", `cell a${arm % 8}`, make("p", "who", data.arms[arm].name));
    box.append(make("p", "seen", played.final || ""));
    return box;
  };
  const over = (played, arm) => make("div", "cell over", make("p", "who", data.arms[arm].name), played ? "The episode is over." : "Not played.");
  const end = (played, arm) => {
    const box = make("div", `end a${arm % 8}`, make("h3", "", data.arms[arm].name));
    const word = ending(played);
    const line = make("p", "", make("span", word === "success" ? "good" : "bad", word));
    if (played) line.append(`, ${played.stop}, return ${played.ret.toFixed(2)}, ${played.n} turns`, played.best === null ? "" : ` (oracle: ${played.best})`);
    box.append(line, make("p", "", data.arms[arm].strategy));
    if (played && played.why) box.append(make("p", "bad", played.why));
    return box;
  };
  const row = (n, shown, part) => {
    const box = make("section", n === part ? "turn part" : "turn");
    const differ = shown.length > 1 && shown.every(([played]) => played && played.turns[n]) && shown[0][0].turns[n].d !== shown[1][0].turns[n].d;
    const where = n === part ? `Turn ${n}: here they part` : `Turn ${n}${differ && (part === null || n < part) ? ", in other words" : ""}`;
    const grid = make("div", `columns turns${shown.length > 1 ? "" : " alone"}`);
    for (const [played, arm] of shown) {
      if (played && n < played.turns.length) grid.append(cell(played.turns[n], arm));
      else if (played && n === played.turns.length && played.n === n) grid.append(last(played, arm));
      else if (played && n < played.n) grid.append(make("div", "cell over", make("p", "who", data.arms[arm].name), `${played.n - played.turns.length} more turns are not in this page.`));
      else grid.append(over(played, arm));
    }
    box.append(make("h4", "", where), grid);
    return box;
  };

  const draw = () => {
    const one = data.seeds[at];
    const arms = data.arms.length > 1 ? [left, right] : [0];
    const shown = arms.map((arm) => [one.played[arm], arm]);
    const part = shown.length > 1 ? parts(shown[0][0], shown[1][0]) : null;
    const heads = make("div", `columns${shown.length > 1 ? "" : " alone"}`, ...shown.map(([played, arm]) => end(played, arm)));
    const content = [heads];
    const most = Math.max(0, ...shown.map(([played]) => (played ? played.turns.length + 1 : 0)));
    let first = 0;
    if (part !== null && part > 0) {
      const rows = [];
      for (; first < part; first += 1) rows.push(row(first, shown, part));
      const said = part === 1 ? "Turn 0 is the same in both" : `Turns 0 to ${part - 1} are the same in both`;
      content.push(make("details", "same", make("summary", "", said), ...rows));
    } else if (shown.length > 1 && part === null && shown.every(([played]) => played)) {
      content.push(make("p", "soft", "They never part: the same was seen and done in every turn."));
    }
    for (; first < most; first += 1) content.push(row(first, shown, part));
    byId("played").replaceChildren(...content);
    const select = byId("seed");
    if (select) select.value = String(at);
    byId("earlier").disabled = at === 0;
    byId("later").disabled = at === data.seeds.length - 1;
  };
  const going = "live" in document.body.dataset, place = `seed of ${document.body.dataset.run}`;
  const go = (number) => {
    at = Math.min(Math.max(0, number), data.seeds.length - 1);
    if (going) keep("sessionStorage", place, data.seeds[at].seed);
    draw();
  };

  const option = (text, value) => { const made = make("option", "", text); made.value = String(value); return made; };
  const seedPicker = () => {
    const select = make("select", "");
    select.id = "seed";
    data.seeds.forEach((one, n) => select.append(option(label(one), n)));
    select.addEventListener("change", () => go(Number(select.value)));
    return make("label", "", "Seed", select);
  };
  const armPicker = (word, chosen, take) => {
    const select = make("select", "");
    data.arms.forEach((arm, n) => select.append(option(arm.name, n)));
    select.value = String(chosen);
    select.addEventListener("change", () => { take(Number(select.value)); draw(); });
    return make("label", "", word, select);
  };
  const button = (id, text, act) => {
    const made = make("button", "", text);
    made.type = "button";
    made.id = id;
    made.addEventListener("click", act);
    return made;
  };
  const begin = () => {
    for (const term of document.querySelectorAll("abbr.def[title]")) {
      term.dataset.tip = term.title;
      term.setAttribute("aria-description", term.title);
      term.removeAttribute("title");
    }
    const block = byId("episode-data");
    data = block ? JSON.parse(block.textContent) : null;
    if (!data) return;
    const before = going ? recall("sessionStorage", place) : null;
    at = Math.max(0, data.seeds.findIndex((one) => String(one.seed) === before));
    const tools = [button("earlier", "Earlier", () => go(at - 1)), seedPicker(), button("later", "Later", () => go(at + 1))];
    if (data.arms.length > 2) tools.push(armPicker("Left", left, (n) => { left = n; }), armPicker("Right", right, (n) => { right = n; }));
    byId("picker").replaceChildren(...tools);
    draw();
  };
  document.addEventListener("click", (event) => {
    const clicked = event.target.closest && event.target.closest("[data-seed]");
    if (!clicked || !data) return;
    const found = data.seeds.findIndex((one) => one.seed === Number(clicked.dataset.seed));
    if (found >= 0) { go(found); byId("episodes").scrollIntoView(); }
  });
  begin();
})();
