// A section of the page. It asks its queries only while it can be seen: each costs the server something.

import { h, say } from "./dom.js";

/** How long a section may be out of sight before its queries end; scrolling past is not leaving. */
const GRACE_MS = 3_000;

export class Panel {
  visible = false;
  /** The newest epoch that any answer was of. */
  static epoch = 0;
  #live;
  #queries = new Map();
  #grace;
  #error = h("p", { className: "error", hidden: true });

  constructor(live, id, onShow = () => {}) {
    this.#live = live;
    const section = document.getElementById(id);
    section.querySelector("h2").after(this.#error);
    new IntersectionObserver(
      ([entry]) => {
        clearTimeout(this.#grace);
        if (entry.isIntersecting) {
          if (this.visible) return;
          this.visible = true;
          for (const query of this.#queries.values()) this.#start(query);
          onShow();
        } else {
          this.#grace = setTimeout(() => {
            this.visible = false;
            for (const query of this.#queries.values()) this.#end(query);
          }, GRACE_MS);
        }
      },
      { rootMargin: "150px" },
    ).observe(section);
  }

  /** Sets the query of a name; `draw` gets its rows now and whenever they change. No SQL ends it. */
  ask(name, sql, draw) {
    const before = this.#queries.get(name);
    if (before?.sql === sql) return;
    if (before) this.#end(before);
    this.#queries.delete(name);
    this.#showErrors();
    if (!sql) return;
    const query = { sql, draw, end: null, error: null };
    this.#queries.set(name, query);
    if (this.visible) this.#start(query);
  }

  #start(query) {
    if (query.end) return;
    query.end = this.#live.subscribe({ sql: query.sql }, (message) => {
      query.error = message.error ?? null;
      this.#showErrors();
      if (message.error !== undefined) return;
      Panel.epoch = Math.max(Panel.epoch, message.epoch);
      query.draw(message.rows);
    });
  }

  #end(query) {
    query.end?.();
    query.end = null;
  }

  #showErrors() {
    const error = [...this.#queries.values()].map((query) => query.error).find(Boolean);
    this.#error.hidden = !error;
    say(this.#error, error ? `The server could not answer: ${error}` : "");
  }
}
