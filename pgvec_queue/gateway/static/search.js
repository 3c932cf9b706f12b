// Asking: the question goes to the gateway, its words are marked in the answers.

import { request } from "./api.js";
import { el, lines, plain, say } from "./dom.js";
import { plural } from "./format.js";

const WORD = /[\p{L}\p{N}\p{M}]+/gu;
const LEAST = 2; // Letters: shorter words stand everywhere.
const SPACELESS = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]/u;

/** Returns where words of a question stand in a text, as `[start, end]`, in order and apart from each other. */
export function places(text, question) {
  const wanted = new Set(((question.normalize("NFKC").toLowerCase().match(WORD)) ?? [])
    .filter((word) => word.length >= LEAST || SPACELESS.test(word)));
  const found = [];
  for (const match of text.matchAll(WORD)) {
    const word = match[0].normalize("NFKC").toLowerCase();
    if (wanted.has(word)) {
      found.push([match.index, match.index + match[0].length]);
      continue;
    }
    if (!SPACELESS.test(match[0])) continue;
    // Without spaces between them, words stand inside of each other.
    for (const part of wanted) {
      const at = SPACELESS.test(part) ? match[0].indexOf(part) : -1;
      if (at >= 0) found.push([match.index + at, match.index + at + part.length]);
    }
  }
  found.sort((one, other) => one[0] - other[0] || other[1] - one[1]);
  return found.filter((one, at) => at === 0 || one[0] >= Math.max(...found.slice(0, at).map((before) => before[1])));
}

/** Returns a text as nodes, the places in it marked. */
export function marked(text, ranges) {
  const nodes = [];
  let end = 0;
  for (const [from, to] of ranges) {
    nodes.push(document.createTextNode(text.slice(end, from)), el("mark", {}, text.slice(from, to)));
    end = to;
  }
  nodes.push(document.createTextNode(text.slice(end)));
  return nodes;
}

export class Search {
  constructor(form, says, answers) {
    Object.assign(this, { form, says, answers, asked: null });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
  }

  async ask() {
    const [query, source, limit] = ["query", "search-in", "search-limit"].map((id) => this.form.elements[id].value);
    this.asked?.abort();
    const asked = (this.asked = new AbortController());
    say(this.says, "Searching …");
    const began = performance.now();
    try {
      const wanted = { vectorizer: source, query, limit: Number(limit), hybrid: this.form.elements["search-hybrid"].checked };
      const { hits, best_score: best } = await request("POST", "search", wanted, asked.signal);
      const took = Math.round(performance.now() - began);
      this.answers.replaceChildren(...hits.map((hit) => shown(hit, query)));
      say(this.says, hits.length ? `${plural(hits.length, "answer", "answers")} in ${took} ms.` : `Nothing was found${typeof best === "number" ? `; the best there is has ${best.toFixed(3)}` : ""}.`);
    } catch (error) {
      if (asked.signal.aborted) return;
      this.answers.replaceChildren();
      say(this.says, `That could not be searched: ${plain(error.message)}`);
    }
  }
}

function shown(hit, question) {
  const text = lines(hit.text);
  const key = hit.key.map(plain).join(", ");
  const part = Number.isInteger(hit.chunk_index) ? el("span", {}, `piece ${hit.chunk_index}`) : "";
  const score = typeof hit.score === "number" ? el("strong", {}, hit.score.toFixed(3)) : "";
  const around = (name) => (hit[name] ? [el("p", { class: "answer-context", dir: "auto" }, lines(hit[name]))] : []);
  return el("li", {}, el("div", { class: "answer-head" }, score, el("bdi", {}, key), part),
    ...around("context_before"),
    el("p", { class: "answer-text", dir: "auto" }, ...marked(text, places(text, question))),
    ...around("context_after"));
}
