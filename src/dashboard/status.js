// What the server says of itself: overview, stream monitor, source. All from the statuses of each second.

import {
  h,
  cell,
  rowHead,
  line,
  muted,
  say,
  byId,
  table,
  reconcile,
  number,
  rate,
  compact,
  plural,
  bytes,
  duration,
  clock,
  minute,
  whenClock,
  foreign,
} from "./dom.js";
import { Figure, colour, counts, plain } from "./charts.js";
import { Panel } from "./panel.js";

const WINDOW_MS = 15 * 60_000;
/** Samples older than the newest lie this far apart, as in the history that the server sends. */
const STEP_MS = 5_000;

const STAGES = [
  { name: "bronze", title: "Bronze", of: "rows of the source", dash: [] },
  { name: "silver", title: "Silver", of: "mentions, dated", dash: [7, 3] },
  { name: "gold", title: "Gold", of: "mentions, scored", dash: [] },
  { name: "mention_sentiment", title: "Mention sentiment", of: "who is mentioned", dash: [2, 3] },
  { name: "scores", title: "Scores", of: "texts scored", dash: [10, 3, 2, 3] },
  { name: "accuracy", title: "Accuracy", of: "pairs of labels", dash: [4, 4] },
  { name: "users", title: "Users", of: "who tweets", dash: [12, 4] },
  { name: "rejects", title: "Rejects", of: "could not be used", dash: [3, 2] },
];

const sum = (values) => values.reduce((a, b) => a + b, 0);
const stageOf = (process, name) => process.stages?.find((stage) => stage.name === name);
const total = (status, name, field) => sum(status.processes.map((process) => stageOf(process, name)?.[field] ?? 0));
const lagOf = (status, name) => Math.max(0, ...status.processes.map((process) => stageOf(process, name)?.lag_ms ?? 0));
const waitingTexts = (status) => sum(status.processes.map((process) => process.scoring?.waiting ?? 0));

/** How fast a total grew between two statuses, a second. A process that began anew counts from then on. */
function speed(before, after, read) {
  const seconds = (after.time - before.time) / 1000;
  if (seconds <= 0) return 0;
  const grown = after.processes.map((process) => {
    const same = before.processes.find(
      (other) => other.process === process.process && other.started === process.started,
    );
    return same ? Math.max(0, read(process) - read(same)) : 0;
  });
  return sum(grown) / seconds;
}
const stageSpeed = (before, after, name, field) =>
  speed(before, after, (process) => stageOf(process, name)?.[field] ?? 0);

export class Status {
  /** Oldest first; the last is the newest and may lie closer to the one before it. */
  samples = [];

  constructor(live) {
    this.overview = new Overview(live);
    this.monitor = new Monitor(live, this);
    this.source = new Source(live, this);
    live.subscribe({ status: true }, (message) => {
      if (message.history) this.#recall(message.history);
      if (message.status) this.#add(message.status);
      const now = this.samples.at(-1);
      if (!now) return;
      this.overview.draw(now, this.samples);
      if (this.monitor.panel.visible) this.monitor.draw();
      if (this.source.panel.visible) this.source.draw();
    });
  }

  get now() {
    return this.samples.at(-1);
  }

  /** What the server remembers, after what this page saw of an earlier one. */
  #recall(history) {
    const first = history[0]?.time ?? Infinity;
    this.samples = [...this.samples.filter((sample) => sample.time < first), ...history];
  }

  #add(status) {
    const samples = this.samples;
    const last = samples.at(-1);
    if (last && status.time <= last.time) return;
    const between = samples.length > 1 && last.time - samples.at(-2).time < STEP_MS - 500;
    if (between) samples.pop();
    samples.push(status);
    while (samples[0].time < status.time - WINDOW_MS) samples.shift();
  }
}

class Overview {
  #panel;
  #tiles = new Map();
  #facts = byId("facts");

  constructor(live) {
    // Asks nearly nothing, but its answer tells the epoch that queries see.
    this.#panel = new Panel(live, "overview");
    this.#panel.ask("epoch", "select count(*) as cells from accuracy", () => {});
    for (const stage of STAGES) {
      const tile = {
        rows: h("strong", { className: "big", "data-testid": `rows-${stage.name}` }, "–"),
        rate: h("span", { className: "rate" }, "\u00a0"),
        lag: muted(""),
        line: document.createElementNS("http://www.w3.org/2000/svg", "polyline"),
      };
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", "0 0 100 24");
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("aria-hidden", "true");
      svg.append(tile.line);
      tile.item = h(
        "li",
        { className: `tile ${stage.name}` },
        h("h3", {}, stage.title),
        h("span", { className: "muted of" }, stage.of),
        tile.rows,
        h("p", {}, tile.rate, tile.lag),
        svg,
      );
      this.#tiles.set(stage.name, tile);
    }
    byId("stages").append(...[...this.#tiles.values()].map((tile) => tile.item));
  }

  draw(now, samples) {
    const before = samples.findLast((sample) => sample.time <= now.time - STEP_MS + 500) ?? samples[0];
    for (const [name, tile] of this.#tiles) {
      say(tile.rows, number(Math.max(0, total(now, name, "inserted") - total(now, name, "retracted"))));
      tile.item.classList.toggle("alarm", name === "rejects" && tile.rows.textContent !== "0");
      const added = stageSpeed(before, now, name, "inserted");
      const taken = stageSpeed(before, now, name, "retracted");
      say(tile.rate, added + taken === 0 ? "steady" : `+${rate(added)}${taken > 0 ? ` −${rate(taken)}` : ""} a second`);
      say(tile.lag, `lag ${duration(lagOf(now, name))}`);
      if (!this.#panel.visible) continue;
      const speeds = samples
        .slice(1)
        .map(
          (sample, at) =>
            stageSpeed(samples[at], sample, name, "inserted") + stageSpeed(samples[at], sample, name, "retracted"),
        );
      const top = Math.max(1, ...speeds);
      const span = Math.max(1, now.time - samples[0].time);
      tile.line.setAttribute(
        "points",
        speeds
          .map((value, at) => `${((samples[at + 1].time - samples[0].time) / span) * 100},${22 - (value / top) * 20}`)
          .join(" "),
      );
    }
    this.#drawFacts(now, before);
  }

  #drawFacts(now, before) {
    const { processes } = now;
    const sources = processes.map((process) => process.source).filter(Boolean);
    const states = [...new Set(sources.map((source) => source.state))];
    const caughtUp = sources.every((source) => source.caught_up_at);
    const checkpoint = processes
      .map((process) => process.checkpoint)
      .filter(Boolean)
      .sort((a, b) => b.epoch - a.epoch)[0];
    const reading = speed(before, now, (process) => process.read ?? 0);
    const waiting = sum(sources.flatMap((source) => source.partitions ?? []).map((partition) => partition.waiting));
    const lag = Math.max(...STAGES.map((stage) => lagOf(now, stage.name)));
    const epoch = now.epoch ?? Panel.epoch;
    const modelled = processes.some((process) => process.scoring);
    const scored = speed(before, now, (process) => process.scoring?.scored ?? 0);
    const workers = sum(processes.map((process) => process.workers));
    const versions = [...new Set(processes.map((process) => process.version))].join(", ");
    const oldest = Math.min(...processes.map((process) => process.started));
    const facts = [
      [
        "Source",
        { on: "reading", paused: "paused", "too many rejects": "stopped: too many rejects" }[states.join()] ??
          states.join(", "),
        `${caughtUp ? "caught up" : "catching up"}, ${number(waiting)} waiting, ${rate(reading)} read a second`,
        states.join() === "on" ? "good" : "bad",
      ],
      ["Lag", duration(lag), "the stage that is furthest behind"],
      [
        "Model",
        modelled ? `${rate(scored)} texts a second` : "none",
        modelled ? `${number(waitingTexts(now))} texts waiting` : "given labels are counted alone",
      ],
      [
        "Last checkpoint",
        checkpoint ? `${duration(Math.max(0, now.time - checkpoint.epoch))} ago` : "none yet",
        checkpoint ? `took ${duration(checkpoint.took_ms)}` : "nothing is kept on disk so far",
      ],
      [
        "Running",
        `${plural(processes.length, "process", "processes")}, ${plural(workers, "worker")}`,
        `Assay ${versions}, for ${duration(now.time - oldest)}`,
      ],
      [
        "Memory",
        bytes(sum(processes.map((process) => process.memory_bytes))),
        processes.length > 1 ? "of all processes" : "of the process",
      ],
      ["Epoch", epoch ? clock(epoch) : "–", epoch ? String(epoch) : "no answer yet"],
    ];
    reconcile(
      this.#facts,
      facts,
      (fact) => fact[0],
      ([name, value, more, state]) =>
        h(
          "div",
          { className: state },
          h("dt", {}, name),
          h("dd", {}, name === "Epoch" && epoch ? whenClock(epoch) : value),
          h("dd", { className: "muted" }, more),
        ),
    );
  }
}

class Monitor {
  #shown = new Set(["bronze", "silver", "gold", "mention_sentiment", "rejects"]);
  #charts;
  #status;

  constructor(live, status) {
    this.#status = status;
    this.panel = new Panel(live, "monitor", () => this.draw());
    const host = byId("monitor-charts");
    const perStage = ["Time", ...STAGES.map((stage) => [stage.title])];
    const chart = (title, unit, tell, heads = perStage) =>
      new Figure(host, { title, heads, aside: muted(unit), config: lines(tell) });
    this.#charts = [
      {
        figure: chart("Changes", "rows put in or taken back, a second", (value) => `${rate(value)} a second`),
        read: (before, after, name) =>
          stageSpeed(before, after, name, "inserted") + stageSpeed(before, after, name, "retracted"),
        tell: (value) => `${rate(value)} a second`,
      },
      {
        figure: chart(
          "Processing time",
          "busy milliseconds a second, all workers",
          (value) => `${rate(value)} ms a second`,
        ),
        read: (before, after, name) => stageSpeed(before, after, name, "busy_ms"),
        tell: (value) => `${rate(value)} ms a second`,
      },
      {
        figure: chart("Lag", "behind the clock, seconds", (value) => `${rate(value)} s`),
        read: (_before, after, name) => lagOf(after, name) / 1000,
        tell: (value) => `${rate(value)} s`,
      },
      {
        figure: chart("Texts waiting for the model", "texts", number, ["Time", ["Texts"]]),
        only: "scores",
        read: (_before, after) => waitingTexts(after),
        tell: (value) => plural(value, "text"),
      },
    ];
    byId("series").append(
      ...STAGES.map((stage) => {
        const swatch = h("span", { className: `swatch ${stage.name}`, "aria-hidden": "true" });
        const button = h(
          "button",
          {
            type: "button",
            className: "chip",
            "aria-pressed": String(this.#shown.has(stage.name)),
            onclick: () => {
              if (!this.#shown.delete(stage.name)) this.#shown.add(stage.name);
              button.setAttribute("aria-pressed", String(this.#shown.has(stage.name)));
              this.draw();
            },
          },
          swatch,
          stage.title,
        );
        return button;
      }),
    );
  }

  draw() {
    const { samples, now } = this.#status;
    if (!now) return;
    const from = Math.max(now.time - WINDOW_MS, Math.min(samples[0].time, now.time - 60_000));
    for (const { figure, read, only, tell } of this.#charts) {
      const stages = only ? STAGES.filter((stage) => stage.name === only) : STAGES;
      const values = (name) =>
        samples.slice(1).flatMap((after, at) => {
          const before = samples[at];
          // A line must not run over a time of which nothing is known.
          const gap = after.time - before.time > 4 * STEP_MS ? [{ x: before.time + 1, y: NaN }] : [];
          return [...gap, { x: after.time, y: read(before, after, name) }];
        });
      const series = new Map(stages.map((stage) => [stage.name, values(stage.name)]));
      const visible = (stage) => Boolean(only) || this.#shown.has(stage.name);
      Object.assign(figure.options.scales.x, { min: from, max: now.time });
      figure.draw({
        data: {
          datasets: stages.map((stage) => ({
            label: only ? "waiting" : stage.title,
            data: series.get(stage.name),
            hidden: !visible(stage),
            borderColor: () => colour(stage.name),
            backgroundColor: () => colour(stage.name),
            borderDash: only ? [] : stage.dash,
          })),
        },
        rows: () => {
          const every = [...series.values()];
          return every[0]
            .map((point, at) => [
              clock(point.x),
              ...every.map((points) => (Number.isNaN(points[at].y) ? "–" : rate(points[at].y))),
            ])
            .filter((row) => row[1] !== "–")
            .reverse();
        },
        says: `A line chart of the last ${duration(now.time - from)}. Now: ${stages
          .filter(visible)
          .map((stage) => `${only ? "" : `${stage.title} `}${tell(series.get(stage.name).at(-1)?.y ?? 0)}`)
          .join(", ")}.`,
        empty:
          samples.length < 2
            ? "The first points appear in a few seconds."
            : !only && this.#shown.size === 0
              ? "No stage is chosen."
              : null,
      });
    }
  }
}

/** The settings of a chart of lines over time. */
function lines(tell) {
  return {
    type: "line",
    options: {
      parsing: false,
      normalized: true,
      interaction: { mode: "index", intersect: false },
      elements: { point: { radius: 0, hitRadius: 8 }, line: { borderWidth: 1.8, tension: 0 } },
      scales: {
        x: plain({
          type: "linear",
          ticks: { maxRotation: 0, callback: (value) => minute(value) },
          afterBuildTicks: wholeMinutes,
        }),
        y: counts({ ticks: { maxTicksLimit: 5, callback: (value) => compact(value) }, suggestedMax: 1 }),
      },
      plugins: {
        tooltip: {
          callbacks: {
            title: ([item]) => item && clock(item.raw.x),
            label: ({ dataset, raw }) => ` ${dataset.label}: ${tell(raw.y)}`,
          },
        },
      },
    },
  };
}

/** Ticks at whole minutes, so few that they do not touch. */
function wholeMinutes(axis) {
  const most = Math.max(2, Math.floor(axis.width / 70));
  const step = [1, 2, 3, 5, 10].find((minutes) => (axis.max - axis.min) / 60_000 / minutes <= most) ?? 15;
  axis.ticks = [];
  for (let at = Math.ceil(axis.min / 60_000 / step) * step * 60_000; at <= axis.max; at += step * 60_000)
    axis.ticks.push({ value: at });
}

class Source {
  #body = byId("source-body");
  #status;
  #processes = table("The source, by process", ["Process", "Kind", "State", "Caught up", ["Read"], ["Waiting"]]);
  #partitions = table("Partitions", ["Partition", "Process", ["Waiting"]]);
  #none = h("p", { className: "empty" }, "Waiting for the first status…");
  #more = h("p", { className: "muted", hidden: true });

  constructor(live, status) {
    this.#status = status;
    this.panel = new Panel(live, "source", () => this.draw());
    this.#body.append(
      h("div", { className: "card" }, this.#processes.wrap),
      h("div", { className: "card" }, h("h3", {}, "Partitions"), this.#none, this.#partitions.wrap, this.#more),
    );
    this.#partitions.wrap.hidden = true;
  }

  draw() {
    const now = this.#status.now;
    if (!now) return;
    const all = now.processes.flatMap((process) =>
      (process.source?.partitions ?? []).map((partition) => ({ ...partition, process: process.process })),
    );
    const rows = now.processes.map(({ process, read, source }) => ({
      process,
      read,
      kind: source?.kind,
      state: source?.state,
      up: source?.caught_up_at,
      waiting: sum((source?.partitions ?? []).map((partition) => partition.waiting)),
    }));
    reconcile(
      this.#processes.body,
      rows,
      (row) => row.process,
      (row) =>
        h(
          "tr",
          {},
          rowHead(String(row.process)),
          foreign(row.kind ?? "–", "td"),
          h("td", { className: row.state === "on" ? "" : "bad" }, row.state ?? "–"),
          cell(row.up ? "yes" : "not yet"),
          cell(row.read),
          cell(row.waiting),
        ),
    );
    const most = 100;
    all.sort(
      (a, b) => b.waiting - a.waiting || String(a.partition).localeCompare(b.partition, "en", { numeric: true }),
    );
    reconcile(
      this.#partitions.body,
      all.slice(0, most),
      (row) => `${row.process} ${row.partition}`,
      (row) => line(foreign(row.partition, "th", { scope: "row" }), cell(String(row.process)), cell(row.waiting)),
    );
    this.#partitions.wrap.hidden = all.length === 0;
    this.#none.hidden = all.length > 0;
    say(this.#none, "This source has no partitions.");
    this.#more.hidden = all.length <= most;
    say(this.#more, `The ${most} with the most waiting, of ${number(all.length)}.`);
  }
}
