// Bronze, accuracy and rejects: what came in, how right the model is, and what could not be used.

import {
  h,
  cell,
  rowHead,
  line,
  span,
  muted,
  button,
  say,
  byId,
  table,
  reconcile,
  number,
  percent,
  plural,
  when,
  clip,
  quote,
  foreign,
  mark,
  polarity,
  POLARITIES,
} from "./dom.js";
import { Figure, bars, colour } from "./charts.js";
import { Panel } from "./panel.js";

const sum = (values) => values.reduce((a, b) => a + b, 0);

export function bronze(live) {
  const panel = new Panel(live, "bronze");
  const host = byId("bronze-charts");
  const top = new Figure(host, {
    title: "Who tweets most",
    heads: ["User", ["Tweets"], ["With a mention"], ["Without"]],
    config: bars(null, true),
    expect: 620,
  });
  const side = host.appendChild(h("div", { className: "stack" }));
  const histogram = new Figure(side, { title: "Tweets a user", heads: ["Tweets", ["Users"]], config: bars() });
  const nulls = new Figure(side, {
    title: "Columns left empty",
    heads: ["Column", ["Rows without it"], ["Rows with it"]],
    config: bars(),
  });
  top.options.plugins.legend = {
    display: true,
    position: "bottom",
    labels: { usePointStyle: true, boxHeight: 7 },
    onClick: () => {},
  };

  let rows = null;
  let users = null;
  const facts = () => {
    const all = [
      ["Rows", rows && number(rows.rows), "in bronze"],
      ["Users", users && number(users.users), "who tweet"],
      [
        "With a mention",
        users && number(users.with_mention),
        users && `${percent(users.with_mention / users.tweets)} of those with a user`,
      ],
      ["Without one", users && number(users.without_mention), users && percent(users.without_mention / users.tweets)],
    ];
    reconcile(
      byId("bronze-facts"),
      all,
      ([name]) => name,
      ([name, value, more]) =>
        h("div", {}, h("dt", {}, name), h("dd", {}, value ?? "–"), h("dd", { className: "muted" }, more ?? "")),
    );
  };
  facts();

  panel.ask(
    "columns",
    `select count(*) as rows, count(date) as date, count("user") as "user", count(sentiment) as sentiment from bronze`,
    ([it]) => {
      rows = it;
      facts();
      const columns = ["date", "user", "sentiment"].map((name) => ({ name, missing: it.rows - it[name] }));
      const missing = sum(columns.map((column) => column.missing));
      nulls.draw({
        data: {
          labels: columns.map((column) => column.name),
          datasets: [
            {
              label: "empty",
              data: columns.map((column) => column.missing),
              backgroundColor: () => colour("negative"),
            },
          ],
        },
        rows: () => columns.map(({ name, missing: count }) => [name, count, it.rows - count]),
        says: `A bar chart. ${columns.map((column) => `${column.name}: ${column.missing} of ${it.rows} rows without it`).join(", ")}.`,
        empty:
          it.rows === 0
            ? "There are no rows yet."
            : missing === 0
              ? "Every row has a date, a user and a sentiment."
              : null,
        height: 120,
      });
    },
  );

  const ranges = [
    ["1", "tweets = 1"],
    ["2", "tweets = 2"],
    ["3–5", "tweets between 3 and 5"],
    ["6–10", "tweets between 6 and 10"],
    ["over 10", "tweets > 10"],
  ];
  const counted = ranges.map(([, condition], at) => `count(*) filter (where ${condition}) as r${at}`).join(", ");
  panel.ask(
    "users",
    `select count(*) as users, coalesce(sum(tweets), 0) as tweets, coalesce(sum(with_mention), 0) as with_mention, coalesce(sum(without_mention), 0) as without_mention, ${counted} from users`,
    ([it]) => {
      users = it;
      facts();
      histogram.draw({
        data: {
          labels: ranges.map(([name]) => name),
          datasets: [
            { label: "users", data: ranges.map((_range, at) => it[`r${at}`]), backgroundColor: () => colour("accent") },
          ],
        },
        rows: () => ranges.map(([name], at) => [name, it[`r${at}`]]),
        says: `A bar chart. ${ranges.map(([name], at) => `${it[`r${at}`]} users with ${name}`).join(", ")}.`,
        empty: it.users === 0 ? "No one has tweeted yet." : null,
        height: 170,
      });
    },
  );

  panel.ask(
    "top",
    `select "user", tweets, with_mention, without_mention from users order by tweets desc, "user" limit 20`,
    (list) =>
      top.draw({
        data: {
          labels: list.map((it) => clip(it.user, 16)),
          datasets: [
            {
              label: "with a mention",
              data: list.map((it) => it.with_mention),
              backgroundColor: () => colour("accent"),
            },
            { label: "without", data: list.map((it) => it.without_mention), backgroundColor: () => colour("neutral") },
          ],
        },
        rows: () => list.map((it) => [it.user, it.tweets, it.with_mention, it.without_mention]),
        says: `A bar chart of ${plural(list.length, "user")}. ${list
          .slice(0, 3)
          .map((it) => `${it.user} ${it.tweets}`)
          .join(", ")}.`,
        empty: list.length === 0 ? "No one has tweeted yet." : null,
        height: list.length * 22 + 66,
      }),
  );
}

export function accuracy(live) {
  const panel = new Panel(live, "accuracy");
  const body = byId("accuracy-body");
  body.append(h("p", { className: "empty card" }, "Waiting for the first answer…"));
  let chosen = null;
  let answer = [];
  const select = h("select", {
    id: "model",
    onchange: () => {
      chosen = select.value;
      draw();
    },
  });
  const chooser = h("label", { className: "chooser" }, "Model ", select);

  const draw = () => {
    const models = new Map();
    for (const it of answer) models.set(it.model, (models.get(it.model) ?? 0) + it.rows);
    const sorted = [...models.keys()].sort((a, b) => models.get(b) - models.get(a));
    if (sorted.length === 0) {
      body.replaceChildren(
        h(
          "p",
          { className: "empty card" },
          "There is nothing to compare: no row carries both a given and a predicted label. Without a model there are no predictions.",
        ),
      );
      return;
    }
    const model = models.has(chosen) ? chosen : sorted[0];
    reconcile(
      select,
      sorted.map((name) => ({ name, rows: models.get(name) })),
      (it) => it.name,
      (it) => h("option", { value: it.name }, `${it.name.slice(0, 12)}… (${plural(it.rows, "row")})`),
    );
    select.value = model;
    const focused = document.activeElement === select;
    body.replaceChildren(
      chooser,
      h("div", { className: "two" }, ...compare(answer.filter((it) => it.model === model))),
    );
    if (focused) select.focus({ preventScroll: true });
  };
  panel.ask(
    "cells",
    "select model, given_label, predicted_label, rows from accuracy order by model, given_label, predicted_label",
    (rows) => {
      answer = rows;
      draw();
    },
  );
}

/** The confusion matrix of one model, and what follows from it. */
function compare(rows) {
  const cells = new Map();
  const key = (given, predicted) => JSON.stringify([given, predicted]);
  const names = new Set(POLARITIES);
  for (const it of rows) {
    const [given, predicted] = [polarity(it.given_label), polarity(it.predicted_label)];
    names.add(given).add(predicted);
    cells.set(key(given, predicted), (cells.get(key(given, predicted)) ?? 0) + it.rows);
  }
  const count = (given, predicted) => cells.get(key(given, predicted)) ?? 0;
  const given = (name) => sum(all.map((other) => count(name, other)));
  const predicted = (name) => sum(all.map((other) => count(other, name)));
  let all = [...names];
  all = all.filter((name) => given(name) + predicted(name) > 0);
  const total = sum([...cells.values()]);
  const right = sum(all.map((name) => count(name, name)));

  const matrix = h(
    "table",
    { className: "matrix", "data-testid": "confusion" },
    h("caption", { className: "visually-hidden" }, "Rows of gold by given label (down) and predicted label (across)"),
    h(
      "thead",
      {},
      line(
        h("td", { className: "muted" }, span("predicted →"), span("given ↓")),
        all.map((name) => h("th", { scope: "col" }, mark(name))),
        h("th", { scope: "col", className: "all muted" }, "all"),
      ),
    ),
    h(
      "tbody",
      {},
      all.map((name) =>
        line(
          rowHead(mark(name)),
          all.map((other) => {
            const share = given(name) ? count(name, other) / given(name) : 0;
            const td = h(
              "td",
              { className: name === other ? "cell right" : "cell" },
              h("strong", {}, number(count(name, other))),
              span(percent(share)),
            );
            td.style.setProperty("--share", `${Math.round(share * 45)}%`);
            return td;
          }),
          h("td", { className: "all" }, number(given(name))),
        ),
      ),
    ),
  );

  const scores = all.map((name) => {
    const precision = count(name, name) / predicted(name);
    const recall = count(name, name) / given(name);
    // What is not defined counts as 0 in the averages, so that a label that is never predicted shows.
    return {
      name,
      precision,
      recall,
      f1: (2 * count(name, name)) / (predicted(name) + given(name)),
      rows: given(name),
    };
  });
  const mean = (field) => sum(scores.map((it) => it[field] || 0)) / scores.length;
  const { body, wrap } = table("Precision, recall and F1 of each label", [
    "Label",
    ["Precision"],
    ["Recall"],
    ["F1"],
    ["Rows"],
  ]);
  const scoreLine = (head, it) =>
    line(
      rowHead(head),
      ["precision", "recall", "f1"].map((field) => h("td", { className: "number" }, percent(it[field]))),
      cell(it.rows),
    );
  body.append(
    ...scores.map((it) => scoreLine(mark(it.name), it)),
    scoreLine("macro average", { precision: mean("precision"), recall: mean("recall"), f1: mean("f1"), rows: total }),
  );
  return [
    h(
      "div",
      { className: "card" },
      h("h3", {}, "Given and predicted"),
      h("p", { className: "muted small-print" }, "Under each count its share of the given label."),
      h("div", { className: "scroll", role: "region", tabIndex: 0, "aria-label": "Confusion matrix" }, matrix),
    ),
    h(
      "div",
      { className: "card" },
      h("h3", {}, "Accuracy"),
      h(
        "p",
        {},
        h("strong", { className: "big", "data-testid": "accuracy" }, percent(right / total)),
        muted(` ${number(right)} of ${plural(total, "row")}`),
      ),
      wrap,
    ),
  ];
}

/** Reasons are told apart by their beginning; what follows may differ with each message. */
const REASON = "substr(reason, 1, 160)";

export function rejects(live) {
  const panel = new Panel(live, "rejects");
  const body = byId("rejects-body");
  const none = h("p", { className: "empty card" }, "Waiting for the first answer…");
  const { body: lines, wrap } = table("Rejects by stage and reason", ["Reason", ["Rejects"], "Examples"]);
  const list = h("ol", { className: "tweets" });
  const title = h("h3", { tabIndex: -1 });
  const examples = h("div", { className: "card", hidden: true }, title, list);
  const card = h("div", { className: "card", hidden: true }, wrap);
  body.append(none, card, examples);

  const show = ({ stage, reason }) => {
    examples.hidden = false;
    title.replaceChildren("Examples of ", foreign(reason, "q"));
    list.replaceChildren(h("li", {}, "Looking…"));
    title.focus();
    panel.ask(
      "examples",
      `select position, key, reason, raw, first_seen from rejects where stage = ${quote(stage)} and ${REASON} = ${quote(reason)} order by first_seen desc, position limit 10`,
      (rows) => {
        if (rows.length === 0) return list.replaceChildren(h("li", {}, "None is left: all have been corrected."));
        list.querySelectorAll("li:not([data-key])").forEach((item) => item.remove());
        reconcile(
          list,
          rows,
          (it) => it.position,
          (it) =>
            h(
              "li",
              {},
              h("pre", { className: "raw", dir: "auto", tabIndex: 0, "aria-label": "What came" }, unhex(it.raw)),
              it.reason === reason ? null : foreign(it.reason, "p"),
              h(
                "p",
                { className: "meta" },
                span("at ", foreign(it.position)),
                it.key && it.key !== it.position ? span("key ", foreign(it.key)) : null,
                span("first seen ", when(it.first_seen)),
              ),
            ),
        );
      },
    );
  };

  panel.ask(
    "reasons",
    `select stage, ${REASON} as reason, count(*) as rejects, max(first_seen) as latest from rejects group by 1, 2 order by rejects desc, stage, reason limit 50`,
    (rows) => {
      none.hidden = rows.length > 0;
      card.hidden = rows.length === 0;
      say(none, "Nothing was rejected.");
      if (rows.length === 0) {
        panel.ask("examples", null);
        examples.hidden = true;
      }
      reconcile(
        lines,
        rows,
        (it) => `${it.stage} ${it.reason}`,
        (it) =>
          h(
            "tr",
            {},
            h(
              "td",
              { className: "text" },
              foreign(it.reason),
              h("p", { className: "meta" }, span("stage ", it.stage), span("latest ", when(it.latest))),
            ),
            cell(it.rejects),
            cell(
              button(
                "small",
                () => show(it),
                { "data-focus": `${it.stage} ${it.reason}`, "aria-label": `Show examples of: ${it.reason}` },
                "Show",
              ),
            ),
          ),
      );
    },
  );
}

/** Bytes as text, if they are that. */
function unhex(hex) {
  if (!hex) return "(nothing)";
  const octets = Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
  const most = 2_000;
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(octets);
    return text.length > most ? `${text.slice(0, most)}… (${plural(octets.length, "byte")})` : text;
  } catch {
    return `${plural(octets.length, "byte")}, not text: ${hex.slice(0, 200).replace(/(..)/g, "$1 ")}${hex.length > 200 ? "…" : ""}`;
  }
}
