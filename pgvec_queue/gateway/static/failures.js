// Documents in quarantine, by vectorizer and error class; trying them again, and looking at them one by one.

import { path, request } from "./api.js";
import { Rows, el, mark, plain, say } from "./dom.js";
import { ago, exact, number, plural } from "./format.js";

const PAGE = 20;

/** `retry(name, errorClass, documents)` asks and does it; null stands for all classes. */
export class Failures {
  constructor(parent, empty, retry) {
    this.empty = empty;
    this.groups = new Rows(parent, (group) => group.name, (group) => makeGroup(group.name, retry));
  }

  /** `failed` tells of each vectorizer how many documents are in quarantine. */
  show(failures, failed, now) {
    const groups = new Map();
    for (const one of failures) {
      if (!groups.has(one.vectorizer)) groups.set(one.vectorizer, { name: one.vectorizer, classes: [] });
      groups.get(one.vectorizer).classes.push(one);
    }
    this.empty.hidden = groups.size > 0;
    this.groups.show([...groups.values()], failed, now);
  }
}

function makeGroup(name, retry) {
  const count = el("span", { class: "muted" });
  const again = el("button", { type: "button", "aria-label": `Retry all of ${plain(name)}` }, "Retry all");
  const list = el("ul", { class: "classes" });
  const node = el("article", { class: "failed-of" },
    el("header", {}, el("h3", {}, el("bdi", {}, plain(name))), count, again), list);
  let documents = 0;
  again.addEventListener("click", () => retry(name, null, documents));
  const rows = new Rows(list, (one) => one.error_class, (one) => makeClass(name, one.error_class, retry));
  return {
    node,
    update(group, failed, now) {
      const listed = group.classes.reduce((sum, one) => sum + one.documents, 0);
      documents = Math.max(failed.get(name) ?? 0, listed);
      say(count, plural(documents, "document", "documents"));
      again.hidden = group.classes.length < 2;
      rows.show(group.classes, now);
    },
  };
}

let last = 0;

function makeClass(name, errorClass, retry) {
  const shown = plain(errorClass);
  const id = `documents-${(last += 1)}`;
  const [count, when, message] = [el("strong"), el("span", { class: "muted" }), el("p", { class: "message" })];
  const look = el("button", { type: "button", "aria-expanded": "false", "aria-controls": id, "aria-label": `Documents of ${shown}` }, "Documents");
  const again = el("button", { type: "button", "aria-label": `Retry ${shown} of ${plain(name)}` }, "Retry");
  const documents = el("div", { id, class: "documents", hidden: true });
  let amount = 0;
  again.addEventListener("click", () => retry(name, errorClass, amount));
  look.addEventListener("click", () => {
    documents.hidden = !documents.hidden;
    mark(look, "aria-expanded", String(!documents.hidden));
    if (!documents.hidden) list(documents, name, errorClass);
  });
  return {
    node: el("li", {}, el("div", { class: "class-line" }, count, el("code", {}, shown), when), message,
      el("div", { class: "buttons" }, look, again), documents),
    update(one, now) {
      amount = one.documents;
      say(count, number(one.documents));
      say(when, `last ${ago(now - one.last_at)}`);
      say(message, `${plain(one.key)}: ${plain(one.message)}`);
    },
  };
}

/** Fills a box with the documents of a class, a page at a time. */
async function list(box, name, errorClass) {
  const rows = el("tbody");
  const more = el("button", { type: "button" }, "More");
  const says = el("p", { class: "note", role: "status" }, "Reading …");
  const head = el("tr", {}, ...["Key", "Error", "Attempts"].map((title) => el("th", { scope: "col" }, title)));
  box.replaceChildren(el("table", { class: "small" }, el("thead", {}, head), rows), says, more);
  let cursor = null;
  async function next() {
    more.hidden = true;
    const query = new URLSearchParams({ limit: PAGE, error_class: errorClass, ...(cursor === null ? {} : { cursor }) });
    try {
      const page = await request("GET", `${path`vectorizers/${name}/failures`}?${query}`);
      rows.append(...page.failures.map((one) => el("tr", {},
        el("td", {}, el("bdi", {}, one.key.map(plain).join(", "))), el("td", {}, plain(one.message)),
        el("td", { class: "number" }, exact(one.attempts)))));
      cursor = page.next_cursor;
      more.hidden = cursor === null;
      say(says, rows.childElementCount ? "" : "There are none any more.");
    } catch (error) {
      say(says, `They cannot be read: ${plain(error.message)}`);
      more.hidden = false;
    }
  }
  more.addEventListener("click", next);
  await next();
}
