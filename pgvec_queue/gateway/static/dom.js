// Builds and updates elements. Texts become text nodes and nothing else: whatever stands in the database stays text.

const CONTROL = /[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\u200e\u200f\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

const written = (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`;

/** Returns a text in one line, with control characters (those that turn the direction of text too) written out. */
export function plain(text) {
  return String(text ?? "").replace(/\s+/g, " ").trim().replace(CONTROL, written);
}

/** Returns a text whose lines stay lines, with other control characters written out. */
export function lines(text) {
  return String(text ?? "").replace(/\r\n?/g, "\n").replace(CONTROL, (found) =>
    found === "\n" || found === "\t" ? found : written(found));
}

/** Makes an element: `el("td", {class: "number", role: "cell"}, child, "text")`. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children);
  return made;
}

/** Makes an element of an SVG. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/** Gives an element its text, where it has another. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Gives an element an attribute, where it has another value; null takes it away. */
export function mark(element, name, value) {
  if (value === null) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, String(value));
  }
}

/**
 * Makes the children of an element be those of a list: what stays is updated in its place, so that focus and
 * selection stay as well. `make(item)` returns `{node, update}`; `node` may be a list of elements.
 */
export class Rows {
  constructor(parent, keyOf, make) {
    this.parent = parent;
    this.keyOf = keyOf;
    this.make = make;
    this.rows = new Map();
  }

  show(items, ...more) {
    const kept = new Map();
    let next = this.parent.firstChild;
    for (const item of items) {
      const key = this.keyOf(item);
      if (kept.has(key)) continue;
      const row = this.rows.get(key) ?? this.make(item);
      kept.set(key, row);
      this.rows.delete(key);
      row.update(item, ...more);
      for (const node of [row.node].flat()) {
        if (node === next) next = next.nextSibling;
        else this.parent.insertBefore(node, next);
      }
    }
    for (const row of this.rows.values()) for (const node of [row.node].flat()) node.remove();
    this.rows = kept;
  }
}

/** Makes a bar that tells a share, and a part of it in another pattern. */
export function bar(label) {
  const done = el("span", { class: "bar-done" });
  const failed = el("span", { class: "bar-failed" });
  const node = el("span", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": label },
    done, failed);
  return {
    node,
    update(share, failedShare, text) {
      done.style.width = `${(100 * share).toFixed(2)}%`;
      failed.style.width = `${(100 * failedShare).toFixed(2)}%`;
      failed.style.minWidth = failedShare > 0 ? "3px" : "0";
      mark(node, "aria-valuenow", Math.floor(100 * Math.min(share + failedShare, 1)));
      mark(node, "aria-valuetext", text);
    },
  };
}
