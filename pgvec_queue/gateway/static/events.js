// What happened, newest first. Claims, of which there are many, give way to what is rare.

import { Rows, el, plain, say } from "./dom.js";
import { moment } from "./format.js";

const MOST = 40;
const WORDS = {
  claimed: "claimed", reclaimed: "taken back", quarantined: "in quarantine", blocked: "blocked", paused: "paused", resumed: "resumed",
  cancelled: "cancelled", retried: "retried", altered: "altered", dropped: "dropped", started: "started", left: "left", gone: "gone",
};

export class Events {
  constructor(list, empty) {
    this.empty = empty;
    this.rows = new Rows(list, keyOf, makeRow);
  }

  show(events, now) {
    this.empty.hidden = events.length > 0;
    this.rows.show(events.slice(0, MOST), now);
  }
}

const keyOf = (one) => [one.at, one.kind, one.vectorizer, one.host, one.job_id, one.message].join("\u0000");

function makeRow(one) {
  const when = el("time");
  const where = [one.vectorizer === null ? "" : plain(one.vectorizer), one.job_id === null ? "" : `job ${one.job_id}`,
    one.host === null ? "" : `${one.job_id === null ? "" : "by "}${plain(one.host)}`].filter(Boolean).join(" ");
  const message = one.kind === "claimed" || !one.message ? "" : `: ${plain(one.message)}`;
  return {
    node: el("li", { "data-kind": one.kind }, when, el("span", { class: "kind" }, WORDS[one.kind] ?? plain(one.kind)),
      el("span", { class: "what" }, `${where}${where ? message : message.slice(2)}`)),
    update: (_, now) => {
      when.dateTime = new Date(one.at * 1000).toISOString();
      say(when, moment(one.at, now));
    },
  };
}
