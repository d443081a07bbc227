// Charts: a title, a canvas with words for those who do not see it, a sentence if it is empty, and the same as a table.

import { h, line, say, table, reconcile, compact, number } from "./dom.js";

const probe = document.body.appendChild(h("span", { hidden: true }));
let colours = new Map();

/** A colour of the style sheet as the canvas can read it, in the theme that holds now. */
export function colour(name) {
  if (!colours.has(name)) {
    probe.style.color = `var(--${name})`;
    colours.set(name, getComputedStyle(probe).color);
  }
  return colours.get(name);
}

const { Chart } = window;
Chart.defaults.animation = false;
Chart.defaults.maintainAspectRatio = false;
Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
Chart.defaults.font.size = 12;
Chart.defaults.plugins.legend.display = false;
Object.assign(Chart.defaults.plugins.tooltip, { cornerRadius: 6, padding: 10, boxPadding: 4, usePointStyle: true });

function paint() {
  colours = new Map();
  Chart.defaults.color = colour("ink-2");
  Chart.defaults.borderColor = colour("line");
  Object.assign(Chart.defaults.plugins.tooltip, {
    backgroundColor: colour("ink"),
    titleColor: colour("card"),
    bodyColor: colour("card"),
    footerColor: colour("card"),
  });
  for (const chart of Object.values(Chart.instances)) chart.update();
}
addEventListener("themechange", paint);
paint();

/** An axis of counts. */
export const counts = (more = {}) => ({
  beginAtZero: true,
  border: { display: false },
  grid: { color: () => colour("line") },
  ticks: { precision: 0, maxTicksLimit: 6, callback: (value) => compact(value) },
  ...more,
});
/** An axis of names or times, without lines. */
export const plain = (more = {}) => ({ border: { display: false }, grid: { display: false }, ...more });

export class Figure {
  #canvas = h("canvas", { role: "img" });
  #place;
  #empty = h("p", { className: "empty" }, "Waiting for the first answer…");
  #table;
  #details;
  #chart;
  #figure;
  #drawn = null;

  /** `heads`: of the table; those in brackets are numbers. `config`: of the chart, without data. `row`: makes a row. */
  constructor(host, { title, heads, config, aside = null, row, open = false, expect = 300, testid }) {
    this.#place = h("div", { className: "canvas", hidden: true }, this.#canvas);
    this.#table = table(title, heads, { "data-testid": testid });
    this.title = title;
    this.row =
      row ??
      ((cells) =>
        line(
          cells.map((cell, at) =>
            h(
              "td",
              { className: Array.isArray(heads[at]) ? "number" : undefined },
              typeof cell === "number" ? number(cell) : cell,
            ),
          ),
        ));
    this.#details = h(
      "details",
      { hidden: true, open, ontoggle: () => this.#fill() },
      h("summary", {}, "As a table"),
      this.#table.wrap,
    );
    this.#figure = h(
      "figure",
      { className: "card" },
      h("figcaption", {}, h("h3", {}, title), aside),
      this.#empty,
      this.#place,
      this.#details,
    );
    // Holds the place until there is an answer, so that what is below does not jump when one comes.
    this.#figure.style.minHeight = `${expect}px`;
    host.append(this.#figure);
    this.config = config;
  }

  /**
   * `data`: Chart.js's. `rows`: cells of the table, made only while it is open. `says`: what the chart shows, in
   * words. `empty`: what to say instead if there is nothing to show. `height` in pixels.
   */
  draw({ data, rows, says, empty = null, height = 220 }) {
    this.#drawn = { rows };
    this.#figure.style.minHeight = "";
    const nothing = empty !== null;
    this.#empty.hidden = !nothing;
    say(this.#empty, empty ?? "");
    this.#place.hidden = nothing;
    this.#details.hidden = nothing;
    if (nothing) return;
    this.#canvas.setAttribute("aria-label", `${this.title}. ${says}`);
    if (this.#place.style.height !== `${height}px`) this.#place.style.height = `${height}px`;
    if (this.#chart) {
      // Datasets are matched by their place, so that Chart.js keeps what it knows of them.
      this.#chart.data.labels = data.labels;
      data.datasets.forEach((dataset, at) => {
        if (this.#chart.data.datasets[at]) Object.assign(this.#chart.data.datasets[at], dataset);
        else this.#chart.data.datasets.push(dataset);
      });
      this.#chart.data.datasets.length = data.datasets.length;
      this.#chart.update();
    } else {
      this.#chart = new Chart(this.#canvas, { ...this.config, data });
    }
    this.#fill();
  }

  get options() {
    return this.#chart?.options ?? this.config.options;
  }

  #fill() {
    if (!this.#details.open || !this.#drawn) return;
    reconcile(this.#table.body, this.#drawn.rows(), (cells) => cells[0], this.row);
  }
}

/** Writes each bar's number at its end; of stacked bars their sum. */
const numbers = {
  id: "numbers",
  afterDatasetsDraw(chart) {
    const {
      ctx,
      data: { datasets },
    } = chart;
    if (datasets.length === 0) return;
    ctx.save();
    ctx.fillStyle = colour("ink-2");
    ctx.font = `12px ${Chart.defaults.font.family}`;
    ctx.textBaseline = "middle";
    chart.getDatasetMeta(datasets.length - 1).data.forEach((bar, at) => {
      ctx.fillText(number(datasets.reduce((all, { data }) => all + data[at], 0)), bar.x + 6, bar.y);
    });
    ctx.restore();
  },
};

/** The settings of a chart of horizontal bars; `pick` gets the place of a chosen bar. */
export function bars(pick, stacked = false) {
  return {
    type: "bar",
    plugins: [numbers],
    options: {
      indexAxis: "y",
      layout: { padding: { right: 44 } },
      interaction: { mode: "index", axis: "y", intersect: false },
      scales: { x: counts({ stacked, display: false }), y: plain({ stacked, ticks: { autoSkip: false } }) },
      datasets: { bar: { borderRadius: 2, maxBarThickness: 18, categoryPercentage: 0.86, barPercentage: 0.92 } },
      onClick: (_event, [hit]) => hit && pick?.(hit.index),
      onHover: ({ native }, [hit]) => {
        if (native) native.target.style.cursor = hit && pick ? "pointer" : "";
      },
      plugins: { tooltip: { callbacks: { label: ({ dataset, raw }) => ` ${dataset.label}: ${number(raw)}` } } },
    },
  };
}
