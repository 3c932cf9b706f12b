// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minuteFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const dayFormat = new Intl.DateTimeFormat("en-CA", {
  year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", hour12: false });

export const number = (value) => (Math.abs(value) >= 1e8 ? short : whole).format(value);
export const exact = (value) => whole.format(value);
export const rate = (value) => (value > 0 && value < 10 ? tenth : whole).format(value);
export const clock = (seconds) => clockFormat.format(new Date(seconds * 1000));
export const minute = (seconds) => minuteFormat.format(new Date(seconds * 1000));

/** A moment: its time of day, with the date where that is another. */
export function moment(seconds, now) {
  return now - seconds < 12 * 3600 ? clock(seconds) : dayFormat.format(new Date(seconds * 1000)).replace(",", "");
}

/** A share in percent; 99.96 % is not yet 100. */
export function percent(share) {
  return share >= 1 ? "100 %" : `${tenth.format(Math.min(Math.floor(share * 1000) / 10, 99.9))} %`;
}

/** A time, with its two largest units. */
export function duration(seconds) {
  let rest = Math.round(seconds);
  if (rest < 60) return `${rest} s`;
  if (rest < 3600) return rest % 60 && rest < 600 ? `${Math.floor(rest / 60)} min ${rest % 60} s` : `${Math.round(rest / 60)} min`;
  rest = Math.round(seconds / 60);
  if (rest < 24 * 60) return rest % 60 ? `${Math.floor(rest / 60)} h ${rest % 60} min` : `${rest / 60} h`;
  rest = Math.round(seconds / 3600);
  return rest % 24 ? `${Math.floor(rest / 24)} d ${rest % 24} h` : `${rest / 24} d`;
}

/** A time with one unit, for where it is known roughly. */
export function about(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

/** `73 s to 2 min`, or `4 to 7 min`; empty where both are the same. */
export function between(low, high) {
  if (low === null || high === null) return "";
  const [from, to] = [about(low), about(high)];
  if (from === to) return `about ${to}`;
  const [value, unit] = from.split(" ");
  return unit === to.split(" ")[1] ? `${value} to ${to}` : `${from} to ${to}`;
}

export const ago = (seconds) => `${about(Math.max(seconds, 0))} ago`;

export const plural = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;
