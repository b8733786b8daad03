// What the pages of runs do by themselves: they follow runs that go on, and help to pick two of one
// env. Reports have a script of their own.
"use strict";
(() => {
  const PERIOD_MS = 2000;
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  const remembered = {
    get() { try { return localStorage.getItem("theme"); } catch { return null; } },
    set(value) { try { value ? localStorage.setItem("theme", value) : localStorage.removeItem("theme"); } catch { /* no storage here: the choice lasts as long as the page */ } },
  };
  const themes = ["auto", "light", "dark"];
  let theme = themes.includes(remembered.get()) ? remembered.get() : "auto";
  const paint = () => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    if (byId("theme")) byId("theme").textContent = `Theme: ${theme}`;
  };
  if (byId("theme")) {
    byId("theme").hidden = false;
    byId("theme").addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % 3];
      remembered.set(theme === "auto" ? "" : theme);
      paint();
    });
  }
  paint();

  addEventListener("storage", () => {
    theme = themes.includes(remembered.get()) ? remembered.get() : "auto";
    paint();
  });

  const live = byId("live");
  const say = (words, lost) => {
    live.hidden = !words;
    live.textContent = words;
    live.classList.toggle("lost", Boolean(lost));
  };

  const current = document.querySelector(".seeds [aria-current]");
  if (current) current.parentElement.scrollTop = current.offsetTop - current.parentElement.offsetTop - 40;

  // A report stands in a frame as tall as its page. The next one is made ready behind it.
  const report = byId("report");
  const fit = (frame) => {
    const inside = frame.contentDocument && frame.contentDocument.documentElement;
    if (!inside || !inside.querySelector("main")) return;
    const size = () => { frame.style.height = `${Math.ceil(inside.getBoundingClientRect().height)}px`; };
    new ResizeObserver(size).observe(inside);
    size();
  };
  const open = (frame) => [...frame.contentDocument.querySelectorAll("details")];
  const exchange = (version) => new Promise((done) => {
    const old = report.querySelector("iframe"), next = document.createElement("iframe");
    next.title = old.title;
    next.className = "coming";
    next.addEventListener("load", () => {
      const before = open(old).map((each) => each.open);
      open(next).forEach((each, place) => { each.open = before[place] || each.open; });
      fit(next);
      next.className = "";
      old.remove();
      done();
    });
    next.src = `${report.dataset.src}?version=${encodeURIComponent(version)}`;
    report.append(next);
  });
  const follow = async () => {
    try {
      const answer = document.hidden ? null : await fetch(report.dataset.progress);
      if (answer && !answer.ok) throw new Error(String(answer.status));
      const now = answer && await answer.json();
      if (now) {
        if (now.report && now.report !== report.dataset.version) {
          report.dataset.version = now.report;
          await exchange(now.report);
        }
        say("", false);
        if (now.state === "finished" && now.report === report.dataset.version) return;
      }
    } catch {
      say("the server does not answer", true);
    }
    setTimeout(follow, PERIOD_MS);
  };
  if (report) {
    const frame = report.querySelector("iframe");
    frame.addEventListener("load", () => fit(frame));
    fit(frame);
    if ("goingOn" in report.dataset) setTimeout(follow, PERIOD_MS);
  }

  const filter = byId("filter");
  if (!filter) return;
  filter.addEventListener("change", () => filter.requestSubmit());

  const runs = byId("runs");
  const picked = (side) => runs.querySelector(`input[name=${side}]:checked`);
  const pick = () => {
    const a = picked("a"), b = picked("b");
    const digest = (a || b)?.dataset.digest;
    for (const radio of runs.querySelectorAll("input[type=radio]")) {
      const other = radio.name === "a" ? b : a;
      const unfit = other && (radio.dataset.digest !== digest || radio.value === other.value);
      radio.closest("td").classList.toggle("off", Boolean(unfit));
    }
    const alike = a && b && a.dataset.digest === b.dataset.digest;
    document.querySelector("#compare button").disabled = !(alike && a.value !== b.value);
    let words = "";
    if (!a && !b) words = "Pick two runs of one env.";
    else if (!a || !b) words = `Pick a run as ${a ? "B" : "A"}, too.`;
    else if (!alike) words = "A and B did not play the same env.";
    else if (a.value === b.value) words = "A and B are the same run.";
    byId("picked").textContent = words;
    document.querySelector(".dock").classList.toggle("on", Boolean(a || b));
  };
  runs.addEventListener("change", pick);
  pick();

  const period = () => runs.dataset.live === "1" ? PERIOD_MS : 5 * PERIOD_MS;
  let shown = runs.innerHTML;
  const renew = async () => {
    try {
      if (!document.hidden) {
        const answer = await fetch(location.href);
        if (!answer.ok) throw new Error(String(answer.status));
        const next = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("runs");
        if (next.innerHTML !== shown) {
          shown = next.innerHTML;
          const chosen = { a: picked("a")?.value, b: picked("b")?.value };
          runs.replaceChildren(...next.childNodes);
          for (const radio of runs.querySelectorAll("input[type=radio]")) {
            radio.checked = chosen[radio.name] === radio.value;
          }
          pick();
        }
        runs.dataset.live = next.dataset.live;
        say(runs.dataset.live === "1" ? "live" : "", false);
      }
    } catch {
      say("the server does not answer", true);
    }
    setTimeout(renew, period());
  };
  setTimeout(renew, period());
})();
