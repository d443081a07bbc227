// Agreement: where a model that is tried beside the current one says something else.

import { h, cell, rowHead, line, muted, byId, table, reconcile, number, percent, plural, foreign, mark, polarity } from "./dom.js";
import { Panel } from "./panel.js";

const sum = (values) => values.reduce((a, b) => a + b, 0);

export function agreement(live) {
  const panel = new Panel(live, "agreement");
  const none = h("p", { className: "empty card" }, "No model is tried beside the current one.");
  const progress = h("p", { className: "muted", "data-testid": "candidate" });
  const share = h("p", {});
  const pairs = table("Rows of gold by the label now and the candidate's", ["Now", "Then", ["Rows"], ["Texts"]]);
  const differ = table("Where they differ most", ["Mention", "Now", "Then", ["Rows"], "Example"]);
  const cards = h(
    "div",
    { className: "two", hidden: true },
    h("div", { className: "card" }, h("h3", {}, "Labels"), progress, share, pairs.wrap),
    h("div", { className: "card" }, h("h3", {}, "Where they differ most"), differ.wrap),
  );
  byId("agreement-body").append(none, cards);

  const labels = (it) => [h("td", {}, mark(polarity(it.label))), h("td", {}, mark(polarity(it.candidate_label)))];
  const drawPairs = (rows) => {
    const all = sum(rows.map((it) => it.rows));
    const same = sum(rows.filter((it) => it.agrees).map((it) => it.rows));
    share.replaceChildren(
      h("strong", { className: "big", "data-testid": "agreement" }, all ? percent(same / all) : "–"),
      muted(` of ${plural(all, "row")} would keep the label`),
    );
    reconcile(
      pairs.body,
      rows,
      (it) => `${it.label} ${it.candidate_label}`,
      (it) => line(...labels(it), cell(it.rows), cell(it.texts)),
    );
  };
  const drawDiffering = (rows) =>
    reconcile(
      differ.body,
      rows,
      (it) => `${it.mention} ${it.label} ${it.candidate_label}`,
      (it) => line(rowHead(foreign(it.mention)), ...labels(it), cell(it.rows), h("td", { className: "text" }, foreign(it.example))),
    );

  live.subscribe({ status: true }, (message) => {
    const status = message.status ?? message.history?.at(-1);
    if (!status) return;
    const candidates = status.processes.map((process) => process.model?.candidate).filter(Boolean);
    const tried = candidates.length > 0;
    none.hidden = tried;
    cards.hidden = !tried;
    if (tried) {
      const [scored, waiting] = ["scored", "waiting"].map((field) => sum(candidates.map((it) => it[field])));
      progress.replaceChildren(foreign(candidates[0].name), ` has scored ${number(scored)} of ${plural(scored + waiting, "text")}`);
    }
    // The question costs a join of gold: it is asked only while there is something to tell.
    panel.ask(
      "pairs",
      tried &&
        "select label, candidate_label, agrees, sum(rows) as rows, sum(texts) as texts from model_agreement group by 1, 2, 3 order by rows desc limit 50",
      drawPairs,
    );
    panel.ask(
      "differ",
      tried &&
        "select mention, label, candidate_label, rows, example from model_agreement where not agrees order by rows desc, mention, label limit 20",
      drawDiffering,
    );
  });
}
