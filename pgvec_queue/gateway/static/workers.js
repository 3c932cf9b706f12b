// The workers: where each runs, what it does, how busy its device is, and when it was heard of.

import { Rows, bar, el, mark, plain, say } from "./dom.js";
import { about, ago, number, rate } from "./format.js";

export class Workers {
  constructor(body) {
    this.rows = new Rows(body, (one) => one.worker_id, makeRow);
  }

  show(workers, now) {
    this.rows.show(workers, now);
  }
}

function makeRow(first) {
  const [worker, state, device, doing, speed, jobs, beat, busyText] = [
    el("bdi"), el("span", { class: "badge" }), el("span"), el("span"), el("span"), el("span"), el("span"), el("span", { class: "muted" })];
  const busy = bar(`How busy the device of ${plain(first.host)}, process ${first.pid}, is`);
  const cell = (kind, label, ...children) => el("td", { role: "cell", class: kind, "data-label": label }, ...children);
  const node = el("tr", { role: "row" },
    el("th", { role: "rowheader", scope: "row", class: "c-worker" }, worker),
    cell("c-state", null, state),
    cell("c-device", "Device", device),
    cell("c-doing", null, doing),
    cell("c-busy", "Busy", el("span", { class: "busy" }, busy.node, busyText)),
    cell("c-wrate number", "Rows/s", speed),
    cell("c-jobs number", "Jobs", jobs),
    cell("c-beat number", "Last beat", beat));
  return {
    node,
    update(one, now) {
      const gone = one.state === "gone";
      mark(node, "data-state", one.waiting_for && !gone ? "waiting" : one.state);
      say(worker, `${plain(one.host)}:${one.pid}`);
      say(state, one.state);
      mark(state, "data-state", one.state);
      say(device, one.device === null ? "–" : [one.device, one.dtype, one.runtime].filter(Boolean).map(plain).join(" · "));
      say(doing, gone ? (one.jobs ? `held ${one.jobs} ${one.jobs === 1 ? "job" : "jobs"}` : "") : doingOf(one));
      mark(doing, "class", one.waiting_for && !gone ? "bad" : null);
      const share = gone ? null : one.busy;
      busy.update(share ?? 0, 0, share === null ? "not known" : `${Math.round(100 * share)} %`);
      say(busyText, share === null ? "–" : `${Math.round(100 * share)} %`);
      say(speed, gone ? "–" : rate(one.rows_per_second));
      say(jobs, number(one.jobs));
      say(beat, ago(now - one.beat_at));
    },
  };
}

function doingOf(one) {
  const at = one.job_id === null ? "" : `${plain(one.vectorizer)}, ${one.job_kind === "range" ? "job" : plain(one.job_kind)} ${one.job_id}`
    + (one.checkpoint ? ` after ${plain(one.checkpoint)}` : "");
  if (one.waiting_for) return `${plain(one.waiting_for)}${at ? ` (${at})` : ""}`;
  return at || (one.state === "loading" ? "loading a model" : "–");
}

/** What the tile says of all workers together. */
export function summary(totals) {
  return totals.workers_gone ? `${number(totals.workers_gone)} gone within ${about(900)}` : "none gone";
}
