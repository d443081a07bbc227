// The server's log, newest first.

import { h, say, byId, foreign, plural, reconcile, whenClock } from "./dom.js";

const MOST = 500;
const LEVELS = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"];

export function events(live) {
  const list = document.querySelector("[data-testid=events]");
  const level = byId("level");
  const containing = byId("containing");
  let kept = [];
  let number = 0;
  let frame = null;
  let begun = false;

  const draw = () => {
    frame = null;
    const least = LEVELS.indexOf(level.value);
    const part = containing.value.trim().toLowerCase();
    const shown = kept.filter(({ event, text }) => LEVELS.indexOf(event.level) >= least && text.includes(part));
    const what =
      kept.length === 0
        ? begun
          ? "Nothing has been logged."
          : "Waiting for the server…"
        : shown.length === 0
          ? "No event fits."
          : `${shown.length === kept.length ? "" : `${shown.length} of `}${plural(kept.length, "event")}`;
    say(byId("events-count"), what);
    reconcile(
      list,
      shown,
      (it) => it.number,
      ({ event }) =>
        h(
          "li",
          { className: event.level.toLowerCase() },
          whenClock(event.time),
          h("span", { className: "level" }, event.level.toLowerCase()),
          h(
            "span",
            { className: "message" },
            foreign(event.message),
            Object.entries(event.fields ?? {}).map(([name, value]) =>
              h(
                "span",
                { className: "field" },
                h("b", {}, name),
                " ",
                foreign(typeof value === "string" ? value : JSON.stringify(value)),
              ),
            ),
            event.process ? h("span", { className: "field" }, h("b", {}, "process"), ` ${event.process}`) : null,
          ),
        ),
    );
  };
  const later = () => {
    frame ??= requestAnimationFrame(draw);
  };
  level.addEventListener("change", later);
  containing.addEventListener("input", later);

  // After a reconnection all kept events come again; those that are here already are known by what they say.
  const known = new Set();
  live.subscribe({ events: true }, ({ events: news }) => {
    begun = true;
    for (const event of news ?? []) {
      const text = JSON.stringify([event.message, event.fields]).toLowerCase();
      const name = `${event.time} ${event.process} ${text}`;
      if (known.has(name)) continue;
      known.add(name);
      kept.unshift({ number: number++, event, text, name });
    }
    kept.sort((a, b) => b.event.time - a.event.time || b.number - a.number);
    for (const gone of kept.splice(MOST)) known.delete(gone.name);
    later();
  });
  draw();
}
