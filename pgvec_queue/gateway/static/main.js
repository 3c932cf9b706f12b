// The page: takes the stream's states, shows them, and does what buttons ask for.

import { onRefusal, path, request, token } from "./api.js";
import { Chart, lately } from "./chart.js";
import { el, mark, plain, say } from "./dom.js";
import { Events } from "./events.js";
import { Failures } from "./failures.js";
import { between, clock, duration, number, percent, plural, rate } from "./format.js";
import { Search } from "./search.js";
import { Stream } from "./stream.js";
import { Vectorizers } from "./vectorizers.js";
import { Workers, summary } from "./workers.js";

const HIDDEN = 60_000; // A page that nobody sees for so long asks for nothing.
const $ = (id) => document.getElementById(id);

let seen = null; // The last state, `{at, state}`, and when it came.
let cameAt = 0;
let link = { state: "connecting" };

const now = () => seen.at + (performance.now() - cameAt) / 1000;

const vectorizers = new Vectorizers($("vectorizer-rows"), steer);
const workers = new Workers($("worker-rows"));
const failures = new Failures($("failure-groups"), $("failures-empty"), retry);
const events = new Events($("event-rows"), $("events-empty"));
const chart = new Chart($("chart"), $("chart-says"), $("chart-rows"));
const search = new Search($("search-form"), $("search-says"), $("answers"));
const stream = new Stream("overview/events", onEvent, onState);

function onEvent(event, data) {
  if (event === "overview") {
    seen = JSON.parse(data);
    cameAt = performance.now();
    link = { state: "open" };
    show();
  } else if (event === "outage") {
    link = { state: "outage", reason: JSON.parse(data).reason, since: link.since ?? Date.now() };
  }
  showLink();
}

function onState(state, more = {}) {
  if (state === "refused") {
    ask(more.problem);
    link = { state: "refused" };
  } else if (state === "lost") {
    link = { state, reason: more.reason, again: Date.now() + more.again, since: link.since ?? Date.now() };
  } else if (state === "open") {
    link = { ...link, state: "open", reason: undefined };
    signedIn();
  } else if (link.since === undefined) {
    link = { state };
  }
  showLink();
}

/** Says how the page stands with the gateway, and the gateway with its database. */
function showLink() {
  const texts = { connecting: "Connecting", open: seen ? "Live" : "Connected", lost: "Connection lost", outage: "No database", refused: "Not signed in" };
  const state = link.state === "open" && link.reason ? "outage" : link.state;
  mark($("link"), "data-state", state);
  say($("link-text"), texts[state] + (seen && state !== "refused" ? ` · ${clock(seen.at)}` : ""));
  const wrong = state === "lost" || state === "outage";
  mark($("content"), "data-old", wrong && seen ? "" : null);
  if (wrong) {
    const what = state === "lost" ? `The connection to the gateway is lost: ${link.reason}.` : `The gateway has no answer: ${plain(link.reason)}.`;
    say($("outage"), `${what}${seen ? ` What you see is of ${clock(seen.at)}.` : ""} It is tried again by itself.`);
  }
  $("outage").hidden = !wrong;
}

function show() {
  const { state } = seen;
  const at = now();
  const { totals } = state;
  const done = totals.rows_total ? (totals.rows_done + totals.rows_failed) / totals.rows_total : 0;
  say($("total-done"), totals.rows_total ? percent(done) : "–");
  say($("total-done-more"), `${number(totals.rows_done)} of ${number(totals.rows_total)}`);
  say($("total-rate"), `${rate(totals.rows_per_second)} rows/s`);
  say($("total-rate-more"), leftOf(state.vectorizers));
  say($("total-workers"), number(totals.workers));
  say($("total-workers-more"), summary(totals));
  say($("total-failed"), number(totals.rows_failed));
  say($("total-failed-more"), totals.rows_failed ? plural(state.failures.length, "kind of error", "kinds of errors") : "nothing to look at");
  mark($("total-failed"), "class", totals.rows_failed ? "bad" : null);
  document.title = `${totals.rows_total ? `${percent(done)} · ` : ""}pgvec-queue`;

  const minutes = new Map(state.throughput.vectorizers.map((one) => [one.name, one.minutes]));
  vectorizers.show(state.vectorizers, minutes, at);
  $("vectorizers-empty").hidden = state.vectorizers.length > 0;
  workers.show(state.workers, at);
  $("workers-empty").hidden = state.workers.length > 0;
  failures.show(state.failures, new Map(state.vectorizers.map((one) => [one.name, one.rows_failed])), at);
  events.show(state.events, at);
  const names = state.vectorizers.map((one) => one.name);
  offer($("throughput-of"), names, 1);
  offer($("search-in"), names, 0);
  showChart(minutes, at);
}

/** When the last of those that move will be done. */
function leftOf(all) {
  const moving = all.filter((one) => one.state === "active" && one.eta_seconds !== null);
  if (!moving.length) return "nothing moves";
  const last = moving.reduce((one, other) => (other.eta_seconds > one.eta_seconds ? other : one));
  return `${between(last.eta_low_seconds, last.eta_high_seconds) || duration(last.eta_seconds)} left`;
}

function showChart(minutes, at) {
  const of = $("throughput-of").value;
  chart.show(lately(of === "" ? seen.state.throughput.all : minutes.get(of) ?? [], at));
}

/** Makes a list to choose from hold these names after its first `keep` options; what is chosen stays so. */
function offer(select, names, keep) {
  const have = [...select.options].slice(keep).map((option) => option.value);
  if (have.length === names.length && have.every((name, place) => name === names[place])) return;
  const chosen = select.value;
  while (select.options.length > keep) select.remove(keep);
  for (const name of names) select.append(el("option", { value: name }, plain(name)));
  if (names.includes(chosen)) select.value = chosen;
}

/** Pauses a vectorizer or lets it go on. */
async function steer(action, name) {
  try {
    await request("POST", path`vectorizers/${name}/${action}`);
    notify(action === "pause" ? `${plain(name)} is paused.` : `${plain(name)} goes on.`);
  } catch (error) {
    notify(`${plain(name)} could not be ${action === "pause" ? "paused" : "resumed"}: ${plain(error.message)}`, true);
  }
}

/** Asks, and then tries documents in quarantine again. */
async function retry(name, errorClass, documents) {
  const which = errorClass === null ? "" : ` of ${plain(errorClass)}`;
  const yes = await confirmed("Try again?",
    `${plural(documents, "document", "documents")}${which} of ${plain(name)} will be queued again.`, "Retry");
  if (!yes) return;
  try {
    const { documents: queued } = await request("POST", path`vectorizers/${name}/retry`, { error_class: errorClass });
    notify(`${plain(name)}: ${plural(queued, "document is", "documents are")} queued again.`);
  } catch (error) {
    notify(`${plain(name)} could not be retried: ${plain(error.message)}`, true);
  }
}

function confirmed(title, text, yes) {
  const dialog = $("ask");
  say($("ask-title"), title);
  say($("ask-text"), text);
  say($("ask-yes"), yes);
  return new Promise((resolve) => {
    $("ask-yes").onclick = () => dialog.close("yes");
    $("ask-no").onclick = () => dialog.close("no");
    dialog.returnValue = "";
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
    dialog.showModal();
  });
}

let quiet;

/** Says in a corner what became of a button; what went wrong stays longer. */
function notify(text, wrong = false) {
  clearTimeout(quiet);
  const said = $("said");
  said.hidden = false;
  mark(said, "data-wrong", wrong ? "" : null);
  say(said, text);
  quiet = setTimeout(() => { said.hidden = true; }, wrong ? 15_000 : 6_000);
}

/** Shows the field for a token; `problem` says why. */
function ask(problem) {
  const had = token.get() !== null;
  if (problem.status === 401) token.forget();
  say($("sign-in-why"), problem.status === 403 ? "This token may not look. Give another one."
    : had ? "The gateway does not take this token: it is unknown, revoked or no longer valid." : "");
  $("content").hidden = true;
  $("sign-in").hidden = false;
  $("forget").hidden = true;
  $("token").focus();
}

function signedIn() {
  $("sign-in").hidden = true;
  $("content").hidden = false;
  $("forget").hidden = token.get() === null;
}

onRefusal((problem) => {
  stream.stop();
  onState("refused", { problem });
});

$("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set($("token").value.trim());
  $("token").value = "";
  link = { state: "connecting" };
  stream.start();
});

$("forget").addEventListener("click", () => {
  token.forget();
  location.reload();
});

$("throughput-of").addEventListener("change", () => { if (seen) show(); });

// Ages grow while nothing comes.
setInterval(() => { if (seen && !document.hidden) show(); }, 1000);

let resting;
document.addEventListener("visibilitychange", () => {
  clearTimeout(resting);
  if (document.hidden) resting = setTimeout(() => { if (link.state !== "refused") stream.stop(); }, HIDDEN);
  else if (stream.stopped && link.state !== "refused") stream.start();
});
addEventListener("pagehide", () => stream.stop());
addEventListener("pageshow", (event) => { if (event.persisted) stream.start(); });

stream.start();
export { search };
