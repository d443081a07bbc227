// Who is mentioned: the best and the worst spoken of, one mention closely, and why a count is what it is.

import {
  h,
  cell,
  rowHead,
  line,
  span,
  button,
  say,
  byId,
  table,
  reconcile,
  number,
  plural,
  when,
  clip,
  quote,
  foreign,
  mark,
  polarity,
  POLARITIES,
} from "./dom.js";
import { Figure, bars, colour, counts, plain } from "./charts.js";
import { Panel } from "./panel.js";

const COUNTS = ["negative", "neutral", "positive", "predicted_negative", "predicted_neutral", "predicted_positive"];
const words = (column) => column.replace("_", " ");

function open(mention) {
  if (!mention) return;
  const hash = `#search/${encodeURIComponent(mention)}`;
  // Going where one is already changes nothing, but the reader may have scrolled away.
  if (location.hash === hash) dispatchEvent(new Event("hashchange"));
  else location.hash = hash;
}

/** Which labels count: the reader's choice, unless there is no model and so nothing predicted. */
class Labels extends EventTarget {
  choice = "predicted";
  modelled = true;
  /** Whether the top mentions have told; until then a single mention may. */
  told = false;

  get used() {
    return this.modelled ? this.choice : "given";
  }

  column(name) {
    return this.used === "predicted" ? `predicted_${name}` : name;
  }

  set(values) {
    const before = this.used;
    Object.assign(this, values);
    byId("no-model").hidden = this.modelled || this.choice === "given";
    if (this.used !== before) this.dispatchEvent(new Event("change"));
  }
}
const labels = new Labels();

export function mentions(live) {
  const explain = explainer(live);
  tops(live, explain);
  search(live, explain);
}

function tops(live, explain) {
  const panel = new Panel(live, "mentions");
  const answers = new Map();
  const host = byId("tops");
  const sides = ["positive", "negative"].map((side) => {
    const picked = [];
    const figure = new Figure(host, {
      title: `Most ${side}`,
      heads: ["Mention", [`${side[0].toUpperCase()}${side.slice(1)}`], ["All"], "Why"],
      config: bars((at) => picked[at] && open(picked[at].mention)),
      row: ([mention, count, total, column]) =>
        h(
          "tr",
          {},
          rowHead(
            button("link", () => open(mention), { "data-focus": `m${mention}`, title: mention }, foreign(mention)),
          ),
          cell(count),
          cell(total),
          cell(
            button(
              "small",
              () => explain(mention, column),
              { "data-focus": `e${mention}`, "aria-label": `Explain ${count} ${side} of ${mention}` },
              "Explain",
            ),
          ),
        ),
      open: true,
      expect: 960,
      testid: `top-${side}`,
    });
    return { side, figure, picked };
  });

  const draw = ({ side, figure, picked }) => {
    const rows = answers.get(side);
    if (!rows) return;
    const column = labels.column(side);
    const sum = (row) =>
      (labels.used === "predicted" ? COUNTS.slice(3) : COUNTS.slice(0, 3)).reduce((all, name) => all + row[name], 0);
    const some = rows.filter((row) => row[column] > 0);
    picked.splice(0, Infinity, ...some);
    figure.draw({
      data: {
        labels: some.map((row) => clip(row.mention, 16)),
        datasets: [
          {
            label: `${labels.used} as ${side}`,
            data: some.map((row) => row[column]),
            backgroundColor: () => colour(side),
          },
        ],
      },
      rows: () => some.map((row) => [row.mention, row[column], sum(row), column]),
      says: `A bar chart of ${plural(some.length, "mention")}. ${some
        .slice(0, 3)
        .map((row) => `${row.mention} ${row[column]}`)
        .join(", ")}.`,
      empty: some.length === 0 ? `No one has been mentioned with a ${side} label yet.` : null,
      height: some.length * 22 + 36,
    });
  };

  const ask = () => {
    for (const it of sides) {
      const column = labels.column(it.side);
      panel.ask(
        it.side,
        `select mention, ${COUNTS.join(", ")}, total from mention_sentiment order by ${column} desc, mention limit 20`,
        (rows) => {
          answers.set(it.side, rows);
          // With no model every predicted count is 0; a mention with none at all would have no row.
          const all = [...answers.values()].flat();
          if (all.length > 0)
            labels.set({ told: true, modelled: all.some((row) => COUNTS.slice(3).some((name) => row[name] > 0)) });
          draw(it);
        },
      );
    }
  };
  for (const radio of document.querySelectorAll("input[name=labels]")) {
    radio.addEventListener("change", () => labels.set({ choice: radio.value }));
  }
  labels.addEventListener("change", () => {
    answers.clear();
    ask();
  });
  ask();
}

function search(live, explain) {
  const panel = new Panel(live, "search");
  const input = byId("mention");
  const found = byId("found");
  const list = byId("suggestions");
  let mention = null;
  let unit = "day";
  let endSuggestions = null;
  let typing;

  const start = h("p", { className: "empty card" }, "Type a name, or choose one above.");
  found.append(start);

  const clean = (text) => text.trim().replace(/^[@＠]/, "");
  const suggest = () => {
    endSuggestions?.();
    endSuggestions = null;
    const typed = clean(input.value);
    if (typed === "") return list.replaceChildren();
    const sql = `select mention, total from mention_sentiment where starts_with(lower(mention), lower(${quote(typed)})) order by total desc, mention limit 10`;
    endSuggestions = live.subscribe({ sql }, ({ rows }) => {
      if (rows)
        reconcile(
          list,
          rows.map((row) => row.mention),
          (name) => name,
          (name) => h("option", { value: name }),
        );
    });
  };
  input.addEventListener("input", (event) => {
    clearTimeout(typing);
    // Browsers do not tell apart choosing a suggestion and typing, but only the latter has a kind.
    if (event.inputType === undefined || event.inputType === "insertReplacementText") return open(clean(input.value));
    typing = setTimeout(suggest, 150);
  });
  input.addEventListener("blur", () => {
    clearTimeout(typing);
    endSuggestions?.();
    endSuggestions = null;
  });
  document.querySelector(".find").addEventListener("submit", (event) => {
    event.preventDefault();
    open(clean(input.value));
  });

  // The parts that show one mention.
  const title = h("h3", { tabIndex: -1 });
  const row = h("div", { className: "card", "data-testid": "mention-row" });
  const units = h(
    "span",
    { className: "switch" },
    ["day", "hour"].map((name) =>
      h(
        "button",
        {
          type: "button",
          className: "chip",
          "aria-pressed": String(name === unit),
          onclick: (event) => {
            unit = name;
            for (const other of event.currentTarget.parentElement.children)
              other.setAttribute("aria-pressed", String(other === event.currentTarget));
            askTimeline();
          },
        },
        `by ${name}`,
      ),
    ),
  );
  const charts = h("div", {});
  const timeline = new Figure(charts, {
    title: "Mentions over time",
    aside: units,
    heads: ["Time (UTC)", ["Negative"], ["Neutral"], ["Positive"], ["Other"]],
    config: {
      type: "bar",
      options: {
        scales: {
          x: plain({ stacked: true, ticks: { maxRotation: 0, autoSkipPadding: 16 } }),
          y: counts({ stacked: true }),
        },
        datasets: { bar: { maxBarThickness: 28 } },
        interaction: { mode: "index", intersect: false },
        plugins: {
          legend: {
            display: true,
            position: "bottom",
            labels: { usePointStyle: true, boxHeight: 7 },
            onClick: () => {},
          },
        },
      },
    },
  });
  const tweets = h("ol", { className: "tweets", "data-testid": "mention-tweets" });
  const noTweets = h("p", { className: "empty" }, "Waiting for the first answer…");
  const shown = h(
    "div",
    { className: "found" },
    title,
    row,
    charts,
    h("div", { className: "card" }, h("h3", {}, "Latest tweets"), noTweets, tweets),
  );

  const drawRow = ([it]) => {
    if (!it) {
      row.replaceChildren(
        h("p", { className: "empty" }, "No one mentions this name. As soon as someone does, it shows here."),
      );
      return;
    }
    const countCell = (column) =>
      h(
        "td",
        { className: "number" },
        button(
          "count",
          () => explain(it.mention, column),
          { "data-focus": column, "aria-label": `${number(it[column])} ${words(column)}, explain` },
          number(it[column]),
        ),
      );
    const countLine = (name, prefix, all) =>
      line(
        rowHead(name),
        POLARITIES.map((label) => countCell(`${prefix}${label}`)),
        all,
      );
    const predicted = COUNTS.slice(3).reduce((all, column) => all + it[column], 0);
    const grid = h(
      "table",
      { className: "grid" },
      h("caption", { className: "visually-hidden" }, "Counts by label; each opens the rows behind it"),
      h(
        "thead",
        {},
        line(
          h("td"),
          POLARITIES.map((label) => h("th", { scope: "col", className: "number" }, mark(label))),
          h("th", { scope: "col", className: "number" }, "all"),
        ),
      ),
      h(
        "tbody",
        {},
        countLine("given", "", countCell("total")),
        predicted > 0
          ? countLine("predicted", "predicted_", h("td", { className: "number muted" }, number(predicted)))
          : null,
      ),
    );
    if (!labels.told) labels.set({ modelled: predicted > 0 || it.total === 0 });
    const at =
      document.activeElement?.closest("[data-testid=mention-row]") === row
        ? document.activeElement.dataset.focus
        : null;
    row.replaceChildren(
      h("div", { className: "scroll", role: "region", tabIndex: 0, "aria-label": "Counts by label" }, grid),
      h(
        "p",
        { className: "muted" },
        "First mentioned ",
        when(it.min_timestamp),
        ", last ",
        when(it.max_timestamp),
        ". Choose a count to see what it is made of.",
      ),
    );
    if (at) row.querySelector(`[data-focus="${at}"]`)?.focus({ preventScroll: true });
  };

  const most = 180;
  const drawTimeline = (rows) => {
    const step = unit === "day" ? 86_400_000 : 3_600_000;
    const sums = new Map();
    for (const { at, label, rows: count } of rows) {
      const time = Math.floor(Date.parse(at) / step) * step;
      const meaning = polarity(label);
      const bucket = sums.get(time) ?? { negative: 0, neutral: 0, positive: 0, other: 0 };
      bucket[POLARITIES.includes(meaning) ? meaning : "other"] += count;
      sums.set(time, bucket);
    }
    const last = Math.max(...sums.keys());
    const first = Math.max(Math.min(...sums.keys()), last - (most - 1) * step);
    const cut = Math.min(...sums.keys()) < first;
    const buckets = [];
    for (let time = first; time <= last; time += step)
      buckets.push({ time, ...(sums.get(time) ?? { negative: 0, neutral: 0, positive: 0, other: 0 }) });
    const name = (time) => (unit === "day" ? days : hours).format(time);
    const kinds = [...POLARITIES, ...(buckets.some((bucket) => bucket.other) ? ["other"] : [])];
    const sumOf = (kind) => buckets.reduce((all, bucket) => all + bucket[kind], 0);
    timeline.draw({
      data: {
        labels: buckets.map((bucket) => name(bucket.time)),
        datasets: kinds.map((kind) => ({
          label: kind,
          data: buckets.map((bucket) => bucket[kind]),
          backgroundColor: () => colour(kind),
          stack: "all",
        })),
      },
      rows: () =>
        buckets
          .filter((bucket) => bucket.negative + bucket.neutral + bucket.positive + bucket.other > 0)
          .reverse()
          .map((bucket) => [name(bucket.time), bucket.negative, bucket.neutral, bucket.positive, bucket.other]),
      says:
        sums.size === 0
          ? ""
          : `Stacked bars by ${unit} of UTC, from ${name(first)} to ${name(last)}, ${labels.used} labels${cut ? `, only the last ${most} ${unit}s` : ""}: ${kinds.map((kind) => `${sumOf(kind)} ${kind}`).join(", ")}.`,
      empty: sums.size === 0 ? "No dated tweet mentions this name." : null,
      height: 240,
    });
  };
  const askTimeline = () => {
    const label = labels.used === "predicted" ? "predicted_sentiment" : "sentiment";
    panel.ask(
      "timeline",
      mention &&
        `select date_trunc('${unit}', "timestamp") as at, ${label} as label, count(*) as rows from gold where mention = ${quote(mention)} group by 1, 2 order by 1 desc limit 2000`,
      drawTimeline,
    );
  };
  labels.addEventListener("change", askTimeline);

  const drawTweets = (rows) => {
    noTweets.hidden = rows.length > 0;
    say(noTweets, "No tweet mentions this name.");
    reconcile(
      tweets,
      rows,
      (it) => it.key,
      (it) =>
        h(
          "li",
          {},
          foreign(it.cleaned_text || "(nothing but mentions)", "p", {
            className: it.cleaned_text ? "text" : "text muted",
          }),
          h(
            "p",
            { className: "meta" },
            when(it.timestamp),
            span("given ", mark(it.sentiment)),
            it.predicted_sentiment
              ? span("predicted ", mark(it.predicted_sentiment), ` ${it.predicted_score.toFixed(1)}%`)
              : null,
          ),
        ),
    );
  };

  const show = (event) => {
    const [, name] = location.hash.match(/^#search\/(.*)$/) ?? [];
    if (name === undefined) return;
    let wanted;
    try {
      wanted = decodeURIComponent(name);
    } catch {
      wanted = name;
    }
    document.querySelector('nav a[href^="#search"]').href = location.hash;
    if (wanted === mention) return;
    mention = wanted;
    input.value = mention;
    title.replaceChildren("@", foreign(mention));
    row.replaceChildren(h("p", { className: "empty" }, "Looking…"));
    found.replaceChildren(shown);
    // Whoever came here by a button elsewhere goes on reading here.
    if (event && document.activeElement !== input) title.focus({ preventScroll: true });
    panel.ask("row", `select * from mention_sentiment where mention = ${quote(mention)}`, drawRow);
    panel.ask(
      "tweets",
      `select key, "timestamp", cleaned_text, sentiment, predicted_sentiment, predicted_score from gold where mention = ${quote(mention)} order by "timestamp" desc, key limit 20`,
      drawTweets,
    );
    askTimeline();
  };
  addEventListener("hashchange", show);
  show();
}

const days = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "2-digit", timeZone: "UTC" });
const hours = new Intl.DateTimeFormat("en-GB", {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
  timeZone: "UTC",
});

/** Opens the dialog with the rows behind one count. */
function explainer(live) {
  const dialog = byId("explain");
  const body = byId("explain-body");
  const most = 500;
  let asked = 0;
  byId("explain-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });

  return async (mention, column) => {
    const mine = ++asked;
    byId("explain-title").replaceChildren(`Why ${words(column)} of `, foreign(`@${mention}`));
    body.replaceChildren(h("p", { className: "empty", role: "status" }, "Asking…"));
    if (!dialog.open) dialog.showModal();
    try {
      const answer = await live.get(
        `/v1/explain/mention_sentiment?mention=${encodeURIComponent(mention)}&column=${encodeURIComponent(column)}`,
      );
      if (mine === asked) body.replaceChildren(...explained(answer));
    } catch (error) {
      if (mine === asked)
        body.replaceChildren(
          h("p", { className: "error", role: "alert" }, `This could not be explained: ${error.message}`),
        );
    }
  };

  function explained({ rows, value, count, epoch }) {
    const { body: lines, wrap } = table(
      "The rows behind the count",
      ["Time", "Text", "Given", "Predicted", ["Score"], "Came from", "Key"],
      { className: "explained" },
    );
    reconcile(
      lines,
      rows.slice(0, most),
      (it) => it.key,
      (it) =>
        h(
          "tr",
          {},
          cell(when(it.timestamp)),
          foreign(it.text, "td", { className: "text" }),
          cell(mark(it.sentiment)),
          cell(it.predicted_sentiment ? mark(it.predicted_sentiment) : "–"),
          h("td", { className: "number" }, it.predicted_sentiment ? Number(it.predicted_score).toFixed(1) : "–"),
          foreign(it.source_file, "td"),
          foreign(it.key, "td"),
        ),
    );
    const agrees = count === value;
    return [
      h(
        "p",
        {},
        "The count is ",
        h("strong", {}, number(value)),
        ". It is made of ",
        h("strong", { "data-testid": "explain-count" }, number(count)),
        count === 1 ? " row" : " rows",
        agrees ? "" : ", which differs",
        ". Epoch ",
        when(epoch),
        ".",
        count > Math.min(rows.length, most) ? ` The first ${most} are shown.` : "",
      ),
      rows.length > 0 ? wrap : h("p", { className: "empty" }, "No row counts here."),
    ];
  }
}
