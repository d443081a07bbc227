// Making elements and writing values. Everything shown goes in as text: tweets are written by strangers.

/** An element with properties (or attributes, if it has no such property), listeners (`onclick`) and children. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name === "className" ? "class" : name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A stranger's text, whose direction must not leak into its surroundings. */
export const foreign = (text, tag = "bdi", props = {}) => h(tag, { dir: "auto", ...props }, String(text ?? ""));

/** A cell; numbers are written with separators and to the right. */
export const cell = (...children) =>
  typeof children[0] === "number" ? h("td", { className: "number" }, number(children[0])) : h("td", {}, ...children);
export const rowHead = (...children) => h("th", { scope: "row" }, ...children);
export const line = (...cells) => h("tr", {}, ...cells);
export const span = (...children) => h("span", {}, ...children);
export const muted = (...children) => h("span", { className: "muted" }, ...children);
export const button = (className, onclick, props, ...children) =>
  h("button", { type: "button", className, onclick, ...props }, ...children);

export const byId = (id) => document.getElementById(id);

/** Changes the text only if it differs, so that a selection in it survives. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Makes the children of `parent` those of `items`. An element stays the same as long as its item's key and stamp
 * (what it shows) do, and focus stays where it was: rows change under the hands of people who use the keyboard.
 */
export function reconcile(parent, items, key, make) {
  const focused = document.activeElement;
  const hint = parent.contains(focused) ? focused.getAttribute("data-focus") : null;
  const olds = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const times = new Map(); // Rows may be equal; then the second is another.
  const news = items.map((item) => {
    const name = String(key(item));
    const nth = (times.get(name) ?? 0) + 1;
    times.set(name, nth);
    const stamp = JSON.stringify(item);
    const old = olds.get(`${name}#${nth}`);
    const element = old && old.stamp === stamp ? old : make(item);
    element.dataset.key = `${name}#${nth}`;
    element.stamp = stamp;
    return element;
  });
  const kept = new Set(news);
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  // What is in its place already is not touched.
  news.forEach((element, at) => {
    if (parent.children[at] !== element) parent.insertBefore(element, parent.children[at] ?? null);
  });
  if (hint === null || document.activeElement === focused) return;
  const again = focused.isConnected ? focused : parent.querySelector(`[data-focus="${CSS.escape(hint)}"]`);
  again?.focus({ preventScroll: true });
}

/** A table that may be wider than its place: a region that scrolls and can be reached by keyboard. */
export function table(label, heads, props = {}) {
  const body = h("tbody");
  const head = (name) =>
    typeof name === "string"
      ? h("th", { scope: "col" }, name)
      : h("th", { scope: "col", className: "number" }, name[0]);
  const whole = h(
    "table",
    props,
    h("caption", { className: "visually-hidden" }, label),
    h("thead", {}, h("tr", {}, heads.map(head))),
    body,
  );
  return { body, wrap: h("div", { className: "scroll", role: "region", "aria-label": label, tabIndex: 0 }, whole) };
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const number = (value) => whole.format(value ?? 0);
export const compact = (value) => short.format(value ?? 0);
/** A rate: small ones keep a decimal. */
export const rate = (value) => (value < 10 ? tenth : whole).format(value);
export const percent = (share) => (Number.isFinite(share) ? `${(share * 100).toFixed(1)}%` : "–");
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${tenth.format(count)} ${units[unit]}`;
}

export function duration(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${tenth.format(ms / 1000)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${plural(Math.floor(s / 86400), "day")} ${Math.floor(s / 3600) % 24} h`;
}

const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minuteFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const dayFormat = new Intl.DateTimeFormat("en-GB", {
  day: "numeric",
  month: "short",
  year: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});

export const clock = (ms) => clockFormat.format(ms);
export const minute = (ms) => minuteFormat.format(ms);

/** A time in the reader's own zone, with UTC in the title. */
export function when(time, format = dayFormat) {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return foreign(time, "span");
  const utc = date.toISOString();
  return h(
    "time",
    { dateTime: utc, title: `${utc.replace("T", " ").replace(/\.000Z|Z/, "")} UTC` },
    format.format(date),
  );
}
export const whenClock = (time) => when(time, clockFormat);

/** For canvases, which know no isolation: without marks that change direction, and cut to a length. */
export function clip(text, length = 18) {
  const letters = [...String(text).replace(/[\u200e\u200f\u202a-\u202e\u2066-\u2069\p{Cc}]/gu, "")];
  return letters.length > length ? `${letters.slice(0, length - 1).join("")}…` : letters.join("");
}

/** A literal of SQL. */
export const quote = (text) => `'${String(text).replaceAll("'", "''")}'`;

export const POLARITIES = ["negative", "neutral", "positive"];

const MEANINGS = {
  0: "negative",
  2: "neutral",
  4: "positive",
  LABEL_0: "negative",
  LABEL_1: "neutral",
  LABEL_2: "positive",
  neg: "negative",
  neu: "neutral",
  pos: "positive",
};

/** A label by what it means: numbers, names in any case and their beginnings; any other stays what it is. */
export function polarity(label) {
  const name = String(label ?? "").trim();
  const known = MEANINGS[name.replace(/\.0*$/, "")] ?? MEANINGS[name.toLowerCase()];
  return known ?? (POLARITIES.includes(name.toLowerCase()) ? name.toLowerCase() : name);
}

/** A label as a small mark, told apart by its word and its sign, not by colour alone. */
export function mark(label) {
  const meaning = polarity(label);
  if (meaning === "") return h("span", { className: "mark" }, "none");
  const sign = { negative: "−", neutral: "○", positive: "+" }[meaning];
  return h(
    "span",
    { className: `mark ${sign ? meaning : ""}` },
    sign ? h("span", { "aria-hidden": "true" }, `${sign} `) : null,
    foreign(meaning),
  );
}
