// Requests to the gateway, and the token that they carry. It is kept for this tab only.

const KEPT = "pgvec-token";
const base = new URL("api/v1/", document.baseURI);

/** What the gateway answers when it does not do what was asked: `application/problem+json`. */
export class Problem extends Error {
  constructor(status, title, detail, retryAfter = null) {
    super(detail || title);
    this.status = status;
    this.title = title;
    this.retryAfter = retryAfter;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEPT),
  set: (value) => sessionStorage.setItem(KEPT, value),
  forget: () => sessionStorage.removeItem(KEPT),
};

let refused = () => {};

/** Sets what is called when the gateway asks for another token. */
export function onRefusal(call) {
  refused = call;
}

/** Sends a request and returns the answer, whatever its status; throws `TypeError` where there is none. */
export function send(method, path, { body, signal, accept = "application/json" } = {}) {
  const headers = { Accept: accept };
  if (token.get() !== null) headers.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  return fetch(new URL(path, base), {
    method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store", credentials: "same-origin", redirect: "error",
  });
}

/** Reads the problem that an answer holds. */
export async function problemOf(answer) {
  let found = {};
  try {
    found = await answer.json();
  } catch {
    // A proxy's own page, for example.
  }
  const title = typeof found.title === "string" ? found.title : `The gateway answers ${answer.status}`;
  const detail = typeof found.detail === "string" ? found.detail : null;
  return new Problem(answer.status, title, detail, Number(answer.headers.get("Retry-After")) || null);
}

/** Sends a request and returns what it answers; throws `Problem`. */
export async function request(method, path, body, signal) {
  let answer;
  try {
    answer = await send(method, path, { body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "No answer", "the gateway cannot be reached");
  }
  if (!answer.ok) {
    const problem = await problemOf(answer);
    if (problem.status === 401) refused(problem);
    throw problem;
  }
  return answer.json();
}

/** A path with names in it: path`vectorizers/${name}/pause`. */
export function path(parts, ...names) {
  return parts.reduce((before, part, at) => before + encodeURIComponent(names[at - 1]) + part);
}
