// Server-sent events by fetch, since EventSource sends no token. Comes back by itself after growing pauses.

import { problemOf, send } from "./api.js";

const SILENCE = 40_000; // The gateway says something every 15 s.
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 15_000;

/** Splits a stream of text into events; calls `tell(event, data)`. */
export function parser(tell) {
  let rest = "";
  let event = "message";
  let data = [];
  return (text) => {
    rest += text;
    const found = rest.split(/\r\n|\n|\r(?!$)/);
    rest = found.pop();
    for (const line of found) {
      if (line === "") {
        if (data.length) tell(event, data.join("\n"));
        event = "message";
        data = [];
      } else if (line.startsWith("event:")) {
        event = line.slice(6).trim();
      } else if (line.startsWith("data:")) {
        data.push(line.slice(5).replace(/^ /, ""));
      }
    }
  };
}

export class Stream {
  /**
   * `onEvent(event, data)`; `onState(state, more)` with `connecting`, `open`, `lost` (`{reason, again}`: milliseconds
   * until it is tried again) or `refused` (`{problem}`: it is not tried again).
   */
  constructor(path, onEvent, onState) {
    Object.assign(this, { path, onEvent, onState, pause: FIRST_PAUSE, current: null, timer: null });
  }

  start() {
    this.stop();
    this.run();
  }

  stop() {
    clearTimeout(this.timer);
    this.current?.abort();
    this.current = null;
  }

  get stopped() {
    return this.current === null;
  }

  async run() {
    const mine = (this.current = new AbortController());
    let watchdog;
    const heard = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => mine.abort("silent"), SILENCE);
    };
    let reason = "the stream has ended";
    let wait = 0;
    try {
      heard();
      this.onState("connecting");
      const answer = await send("GET", this.path, { signal: mine.signal, accept: "text/event-stream" });
      if (!answer.ok) {
        const problem = await problemOf(answer);
        if (this.current === mine && (problem.status === 401 || problem.status === 403)) {
          this.current = null;
          this.onState("refused", { problem });
          return;
        }
        wait = (problem.retryAfter ?? 0) * 1000;
        throw problem;
      }
      this.onState("open");
      const take = parser((event, data) => {
        this.pause = FIRST_PAUSE;
        this.onEvent(event, data);
      });
      const decoder = new TextDecoder();
      const reader = answer.body.getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        heard();
        take(decoder.decode(part.value, { stream: true }));
      }
    } catch (error) {
      reason = error.status ? error.message : mine.signal.reason === "silent" ? "it has gone silent" : "it cannot be reached";
    } finally {
      clearTimeout(watchdog);
    }
    // Somebody has stopped it, or begun anew.
    if (this.current !== mine) return;
    // With jitter, so that the pages of a gateway that starts again do not come all at once.
    const again = Math.max(this.pause * (0.7 + 0.6 * Math.random()), Math.min(wait, LONGEST_PAUSE));
    this.pause = Math.min(2 * this.pause, LONGEST_PAUSE);
    this.onState("lost", { reason, again });
    this.timer = setTimeout(() => this.run(), again);
  }
}
