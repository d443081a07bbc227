// The connection: one WebSocket that brings whatever was asked for, again and again, and mends itself.

const LONGEST_WAIT_MS = 5_000;
/** Statuses come every second; after such a silence the connection is taken for dead. */
const SILENCE_MS = 12_000;
/** A tab that nobody looks at gives its connection back. */
const HIDDEN_MS = 5 * 60_000;
const UNAUTHORIZED = 4401;

const stored = () => {
  try {
    return sessionStorage.getItem("assay-token");
  } catch {
    return null;
  }
};

export class Live extends EventTarget {
  state = "connecting";
  /** Since when nothing has been heard, while nothing is. */
  since = Date.now();
  #token = stored();
  #socket = null;
  #subscriptions = new Map();
  #nextId = 1;
  #failures = 0;
  #heard = 0;
  #retry;
  #hidden;

  start() {
    this.#connect();
    setInterval(() => {
      if (this.#socket !== null && Date.now() - this.#heard > SILENCE_MS) this.#drop();
      this.dispatchEvent(new Event("tick"));
    }, 1000);
    document.addEventListener("visibilitychange", () => {
      clearTimeout(this.#hidden);
      if (document.hidden) this.#hidden = setTimeout(() => this.#drop(), HIDDEN_MS);
      else if (this.#socket === null && this.state !== "unauthorized") this.#connect();
    });
    addEventListener("online", () => this.#socket === null && this.state !== "unauthorized" && this.#connect());
  }

  /** Sends a request now and after each reconnection; returns how to end it. */
  subscribe(request, take) {
    const id = this.#nextId++;
    this.#subscriptions.set(id, { request, take });
    this.#send({ id, ...request });
    return () => {
      if (this.#subscriptions.delete(id)) this.#send({ id, end: true });
    };
  }

  set token(token) {
    this.#token = token;
    try {
      sessionStorage.setItem("assay-token", token);
    } catch {
      /* it lasts as long as the page */
    }
    this.#connect();
  }

  get hasToken() {
    return Boolean(this.#token);
  }

  /** A request over HTTP, as the same user. */
  async get(path) {
    const headers = this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
    const response = await fetch(path, { headers });
    const body = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(body.error ?? `the server answered ${response.status}`);
    return body;
  }

  #connect() {
    clearTimeout(this.#retry);
    this.#heard = Date.now();
    this.#socket?.close();
    const socket = new WebSocket(new URL("/v1/live", location.href.replace(/^http/, "ws")));
    this.#socket = socket;
    // A socket that was given up may still speak; only the present one counts.
    const mine = (act) => (event) => {
      if (this.#socket === socket) act(event);
    };
    socket.onopen = mine(() => {
      if (this.#token) this.#send({ token: this.#token });
      for (const [id, { request }] of this.#subscriptions) this.#send({ id, ...request });
    });
    socket.onmessage = mine(({ data }) => this.#take(JSON.parse(data)));
    socket.onclose = mine(({ code }) => this.#lost(code));
  }

  #take(message) {
    this.#heard = Date.now();
    if (message.id === undefined) {
      if (message.error === "unauthorized") this.#lost(UNAUTHORIZED);
      return;
    }
    this.#failures = 0;
    this.#become("live");
    this.#subscriptions.get(message.id)?.take(message);
  }

  #drop() {
    const socket = this.#socket;
    this.#lost();
    socket?.close();
  }

  #lost(code) {
    this.#socket = null;
    clearTimeout(this.#retry);
    if (code === UNAUTHORIZED) return this.#become("unauthorized");
    this.#become("reconnecting");
    if (document.hidden) return; // It connects when somebody looks again.
    const wait = Math.min(LONGEST_WAIT_MS, 500 * 2 ** this.#failures++);
    this.#retry = setTimeout(() => this.#connect(), wait * (0.75 + Math.random() / 2));
  }

  #become(state) {
    if (this.state === state && state !== "unauthorized") return;
    if (this.state === "live") this.since = Date.now();
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }
}
