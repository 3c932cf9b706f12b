// The vectorizers as rows: how far, how fast, until when, and why nothing moves; pause and resume.

import { lately, spark } from "./chart.js";
import { Rows, bar, el, mark, plain, say } from "./dom.js";
import { between, duration, exact, number, percent, plural, rate } from "./format.js";

const RESUMABLE = new Set(["paused", "blocked", "cancelled"]);

/** Makes the table; `act(action, name)` does something to a vectorizer and returns a promise. */
export class Vectorizers {
  constructor(body, act) {
    this.rows = new Rows(body, (one) => one.name, (one) => makeRow(one.name, act));
  }

  /** `minutes` are points by the vectorizer's name, `now` is the database's time. */
  show(vectorizers, minutes, now) {
    this.rows.show(vectorizers, minutes, now);
  }
}

let last = 0;

function makeRow(name, act) {
  const shownName = plain(name);
  const id = `details-${(last += 1)}`;
  const state = el("span", { class: "badge" });
  const open = el("button", { type: "button", class: "open", "aria-expanded": "false", "aria-controls": id },
    el("bdi", {}, shownName));
  const progress = bar(`Progress of ${shownName}`);
  const [share, counts] = [el("strong"), el("span", { class: "muted" })];
  const reason = el("p", { class: "reason" });
  const failed = el("span");
  const [speed, speedMore, left, leftMore] = [el("span"), el("small"), el("span"), el("small")];
  const picture = spark();
  const button = el("button", { type: "button", class: "act" });
  const cell = (kind, label, ...children) =>
    el("td", { role: "cell", class: kind, "data-label": label }, ...children);
  const row = el("tr", { role: "row" },
    el("th", { role: "rowheader", scope: "row", class: "c-name" }, open, state),
    cell("c-progress", null, progress.node, el("p", { class: "counts" }, share, " ", counts), reason),
    cell("c-failed number", "Failed", failed),
    cell("c-rate number", "Rate", speed, speedMore),
    cell("c-left number", "Left", left, leftMore),
    cell("c-spark", null, picture.node),
    cell("c-act", null, button));
  const list = el("dl", { class: "facts" });
  const facts = el("tr", { role: "row", class: "details", id, hidden: true }, el("td", { role: "cell", colspan: 7 }, list));
  const shown = new Rows(list, ([term]) => term, ([term]) => {
    const value = el("dd");
    return { node: el("div", {}, el("dt", {}, term), value), update: ([, text]) => say(value, text) };
  });
  open.addEventListener("click", () => {
    facts.hidden = !facts.hidden;
    mark(open, "aria-expanded", String(!facts.hidden));
  });
  let action = "pause";
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await act(action, name);
    } finally {
      button.disabled = false;
      // A button that was disabled has lost the focus.
      if (document.activeElement === document.body) button.focus();
    }
  });
  function update(one, minutes, now) {
    mark(row, "data-state", one.state);
    say(state, one.state);
    mark(state, "data-state", one.state);
    const total = Math.max(one.rows_total, 1);
    const done = one.rows_total ? one.rows_done / total : one.state === "complete" ? 1 : 0;
    const bad = one.rows_failed / total;
    say(share, percent(done + bad));
    say(counts, `${number(one.rows_done)} of ${number(one.rows_total)} rows`);
    progress.update(done, bad, `${percent(done + bad)}, ${exact(one.rows_done)} of ${exact(one.rows_total)} rows done, ${exact(one.rows_failed)} failed`);
    say(reason, one.reason === null ? "" : plain(one.reason));
    say(failed, one.rows_failed ? number(one.rows_failed) : "0");
    mark(failed, "class", one.rows_failed ? "bad" : "muted");
    const moving = one.state === "active" && one.rows_per_second > 0;
    say(speed, moving ? `${rate(one.rows_per_second)}/s` : "–");
    say(speedMore, moving && one.chunks_per_second > 1.05 * one.rows_per_second ? `${rate(one.chunks_per_second)} chunks/s` : "");
    const known = one.state === "active" && one.eta_seconds !== null;
    say(left, known ? duration(one.eta_seconds) : "–");
    say(leftMore, known ? between(one.eta_low_seconds, one.eta_high_seconds) : "");
    picture.update(lately(minutes.get(one.name) ?? [], now));
    action = RESUMABLE.has(one.state) ? "resume" : "pause";
    const label = action === "pause" ? "Pause" : "Resume";
    say(button, label);
    mark(button, "aria-label", `${label} ${shownName}`);
    // What is done has nothing to pause, unless it follows changes.
    button.classList.toggle("unseen-kept", one.state === "complete" && !one.sync);
    shown.show(factsOf(one));
  }
  return { node: [row, facts], update };
}

function factsOf(one) {
  return [
    ["From", plain(one.source)],
    ["Into", plain(one.destination)],
    ["Model", plain(one.model)],
    ["Rows", `${exact(one.rows_done)} of ${exact(one.rows_total)}, ${exact(one.rows_failed)} failed`],
    ["Chunks", exact(one.chunks)],
    ["Jobs", `${exact(one.jobs.running)} running, ${exact(one.jobs.queued)} queued, ${exact(one.jobs.done)} done`],
    ["Plan", one.plan_complete ? "complete" : "being made"],
    ["Rate of 15 min", `${rate(one.rows_per_second_15m)} rows/s`],
    ["Tokens", `${number(one.tokens)}${one.tokens_per_second > 0 ? `, ${rate(one.tokens_per_second)}/s` : ""}`],
    ["Live changes", one.sync ? `followed; the oldest waits ${duration(one.lag_seconds ?? 0)}` : "not followed"],
    ["Priority", String(one.priority)],
    ["Limit", one.rows_per_second_limit === null ? "none" : `${rate(one.rows_per_second_limit)} rows/s`],
    ["Cut to fit", plural(one.rows_truncated, "row", "rows")],
    ["Embedded in vain", plural(one.rows_wasted, "row", "rows")],
  ];
}
