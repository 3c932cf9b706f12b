// Rates of the last minutes, as bars: a small picture beside each vectorizer, and the large one with axes.

import { el, say, svg, Rows } from "./dom.js";
import { minute, rate } from "./format.js";

export const MINUTES = 15;
const EARLY = 20; // Seconds: what a minute says that has only just begun is mostly chance.
const MARGIN = { left: 52, right: 12, top: 30, bottom: 28 };

/** Returns the last minutes, the oldest first, as `{at, rate}`; 0 where nothing was done. */
export function lately(points, now) {
  const current = Math.floor(now / 60) * 60;
  const last = now - current < EARLY ? current - 60 : current;
  const known = new Map(points);
  return Array.from({ length: MINUTES }, (_, place) => {
    const at = last - 60 * (MINUTES - 1 - place);
    return { at, rate: known.get(at) ?? 0 };
  });
}

/** Returns the end of an axis and its steps: 1, 2 or 5 times a power of ten. */
export function scale(highest) {
  if (!(highest > 0)) return { top: 1, step: 1 };
  const raw = highest / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
  return { top: step * Math.ceil(highest / step - 1e-9), step };
}

/** Makes a picture of a few bars, for a cell of a table. */
export function spark() {
  const [width, height] = [90, 24];
  const bars = Array.from({ length: MINUTES }, (_, place) => svg("rect", { x: place * 6, width: 5, rx: 1 }));
  const node = svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" }, ...bars);
  let shown = "";
  return {
    node,
    update(minutes) {
      const highest = Math.max(...minutes.map((one) => one.rate));
      const heights = minutes.map((one) => (highest > 0 && one.rate > 0 ? Math.max((height - 1) * one.rate / highest, 2) : 1));
      const now = heights.map((one) => one.toFixed(1)).join(" ");
      if (now === shown) return;
      shown = now;
      heights.forEach((tall, place) => {
        bars[place].setAttribute("height", tall.toFixed(1));
        bars[place].setAttribute("y", (height - tall).toFixed(1));
        bars[place].classList.toggle("nothing", minutes[place].rate === 0);
      });
    },
  };
}

/** The large picture, drawn anew at the size that it has. */
export class Chart {
  constructor(picture, caption, table) {
    this.picture = picture;
    this.caption = caption;
    this.minutes = [];
    this.drawn = "";
    this.rows = new Rows(table, (one) => one.at, () => {
      const [when, value] = [el("td"), el("td", { class: "number" })];
      return { node: el("tr", {}, when, value), update: (one) => {
        say(when, minute(one.at));
        say(value, rate(one.rate));
      } };
    });
    new ResizeObserver(() => this.draw()).observe(picture);
  }

  show(minutes) {
    this.minutes = minutes;
    this.rows.show([...minutes].reverse());
    const best = minutes.reduce((one, other) => (other.rate > one.rate ? other : one));
    const last = minutes[minutes.length - 1];
    say(this.caption, best.rate > 0
      ? `Rows made right per second, by the minute: ${rate(last.rate)} in the last, ${rate(best.rate)} at most (${minute(best.at)}).`
      : "Nothing was made right in the last quarter of an hour.");
    this.draw();
  }

  draw() {
    const [width, height] = [Math.floor(this.picture.clientWidth), this.picture.clientHeight];
    if (!this.minutes.length || width < 100) return;
    const wanted = JSON.stringify([width, height, this.minutes]);
    if (wanted === this.drawn) return;
    this.drawn = wanted;
    const highest = Math.max(...this.minutes.map((one) => one.rate));
    const { top, step } = scale(highest);
    const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    const y = (value) => MARGIN.top + inner.height * (1 - value / top);
    const wide = inner.width / MINUTES;
    const parts = [];
    const steps = highest > 0 ? Math.round(top / step) : 0;
    for (let line = 0; line <= steps; line += 1) {
      const at = Math.round(y(line * step)) + 0.5;
      parts.push(svg("line", { class: line ? "grid" : "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
      parts.push(svg("text", { class: "label", x: MARGIN.left - 8, y: at + 4, "text-anchor": "end" }, rate(line * step)));
    }
    parts.push(svg("text", { class: "label", x: MARGIN.left - 8, y: 12, "text-anchor": "end" }, "rows/s"));
    const every = wide < 24 ? 5 : wide < 48 ? 3 : 2;
    this.minutes.forEach((one, place) => {
      const x = MARGIN.left + place * wide;
      const tall = Math.max(y(0) - y(one.rate), one.rate > 0 ? 1 : 0);
      const box = svg("rect", { class: "column", x: (x + wide * 0.14).toFixed(1), width: (wide * 0.72).toFixed(1),
        y: (y(0) - tall).toFixed(1), height: tall.toFixed(1), rx: Math.min(2, tall / 2) });
      box.append(svg("title", {}, `${minute(one.at)}: ${rate(one.rate)} rows/s`));
      parts.push(box);
      if ((MINUTES - 1 - place) % every === 0) {
        parts.push(svg("text", { class: "label", x: (x + wide / 2).toFixed(1), y: height - 8, "text-anchor": "middle" }, minute(one.at)));
      }
    });
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.picture.replaceChildren(...parts);
  }
}
