//! Views: queries with a name, of the epoch of whoever asks, like everything else.
//!
//! | view | a row for each |
//! |---|---|
//! | `accuracy_by_model` | model: accuracy, and precision, recall and F1, averaged over labels and weighted |
//! | `accuracy_by_label` | model and label: precision, recall, F1 |
//! | `accuracy_by_mention` | model and who is mentioned: how many rows, and which share of them is right |
//! | `accuracy_by_day` | model and day of the tweets |
//! | `model_agreement` | who is mentioned, the model's label and that of the candidate beside it |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, LazyLock};

use datafusion::catalog::{CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::ViewTable;

use crate::live::LiveSchema;
use crate::session;

/// The views by name.
static VIEWS: LazyLock<BTreeMap<&'static str, View>> = LazyLock::new(|| {
    // Each has a name of its own for them, as one query may hold another.
    let cells_named = |name: &str| {
        format!(
            "{name} as (select model, given_label as given, {} as predicted, rows from accuracy)",
            meaning("predicted_label")
        )
    };
    let cells = cells_named("cells");
    let by_label = format!(
        "with {cells}, \
         labels as (select model, given as label from cells union select model, predicted from cells), \
         counts as (select l.model, l.label, \
             sum(case when c.given = l.label and c.predicted = l.label then c.rows else 0 end) as hits, \
             sum(case when c.given = l.label then c.rows else 0 end) as rows, \
             sum(case when c.predicted = l.label then c.rows else 0 end) as predicted \
             from labels l join cells c on c.model = l.model group by l.model, l.label) \
         select model, label, coalesce(hits / nullif(cast(predicted as double), 0), 0) as precision, \
             coalesce(hits / nullif(cast(rows as double), 0), 0) as recall, \
             2.0 * hits / (rows + predicted) as f1, rows, predicted from counts"
    );
    let pairs = cells_named("pairs");
    let by_model = format!(
        "with {pairs}, \
         means as (select model, avg(precision) as macro_precision, avg(recall) as macro_recall, \
             avg(f1) as macro_f1, sum(precision * rows) / sum(rows) as weighted_precision, \
             sum(recall * rows) / sum(rows) as weighted_recall, sum(f1 * rows) / sum(rows) as weighted_f1 \
             from ({by_label}) group by model), \
         totals as (select model, sum(rows) as rows, \
             sum(case when given = predicted then rows else 0 end) as hits from pairs group by model) \
         select t.model, cast(hits as double) / t.rows as accuracy, macro_precision, macro_recall, macro_f1, \
             weighted_precision, weighted_recall, weighted_f1, t.rows \
         from totals t join means m on m.model = t.model"
    );
    let judged = format!(
        "judged as (select model, mention, \"timestamp\", \
             case when {} = {} then 1 else 0 end as hit \
             from gold where sentiment is not null and predicted_sentiment <> '')",
        meaning("sentiment"),
        meaning("predicted_sentiment")
    );
    let by = |key: &str, named: &str| {
        format!(
            "with {judged} select model, {key} as {named}, count(*) as rows, sum(hit) as hits, \
             avg(hit) as accuracy from judged group by model, {key}"
        )
    };
    let agreement = "select g.mention, g.predicted_sentiment as label, s.label as candidate_label, \
         g.predicted_sentiment = s.label as agrees, count(*) as rows, \
         count(distinct g.cleaned_text) as texts, min(g.cleaned_text) as example, g.model, \
         s.model as candidate \
         from gold g join scores s on g.cleaned_text = s.text where s.model <> g.model \
         group by g.mention, g.predicted_sentiment, s.label, g.model, s.model";
    let views = [
        ("accuracy_by_label", by_label),
        ("accuracy_by_model", by_model),
        ("accuracy_by_mention", by("mention", "mention")),
        (
            "accuracy_by_day",
            by("date_trunc('day', \"timestamp\")", "day"),
        ),
        ("model_agreement", agreement.to_owned()),
    ];
    let view = |(name, sql): (&'static str, String)| {
        let relations = session::named_in(&sql).unwrap_or_default();
        (name, View { sql, relations })
    };
    views.into_iter().map(view).collect()
});

struct View {
    sql: String,
    /// The relations that it reads.
    relations: Vec<String>,
}

/// A label by what it says, since several are written for the same: in SQL, what the dataflow counts by.
fn meaning(column: &str) -> String {
    let (lower, plain) = (format!("lower({column})"), column);
    format!(
        "case when {lower} in ('negative', 'neg', '0', '0.0', 'label_0') then 'negative' \
         when {lower} in ('neutral', 'neu', '2', '2.0', 'label_1') then 'neutral' \
         when {lower} in ('positive', 'pos', '4', '4.0', 'label_2') then 'positive' else {plain} end"
    )
}

/// Relations, with those that views among the names read.
pub(crate) fn expanded(names: Vec<String>) -> Vec<String> {
    let read = names
        .into_iter()
        .flat_map(|name| match VIEWS.get(name.as_str()) {
            Some(view) => view.relations.clone(),
            None => vec![name],
        });
    let distinct: BTreeSet<_> = read.collect();
    distinct.into_iter().collect()
}

/// Relations, and views over them that are planned when someone names them.
pub(crate) struct WithViews {
    relations: Arc<LiveSchema>,
    /// Where views find their relations.
    catalogs: Arc<dyn CatalogProviderList>,
}

impl WithViews {
    pub(crate) fn new(relations: Arc<LiveSchema>, catalogs: Arc<dyn CatalogProviderList>) -> Self {
        Self {
            relations,
            catalogs,
        }
    }

    /// Whether all that the view reads is there.
    fn possible(&self, view: &View) -> bool {
        view.relations
            .iter()
            .all(|name| self.relations.table_exist(name))
    }
}

impl fmt::Debug for WithViews {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.relations.fmt(formatter)
    }
}

#[async_trait::async_trait]
impl SchemaProvider for WithViews {
    fn table_names(&self) -> Vec<String> {
        let mut names = self.relations.table_names();
        let views = VIEWS.iter().filter(|(_, view)| self.possible(view));
        names.extend(views.map(|(name, _)| (*name).to_owned()));
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some(view) = VIEWS.get(name).filter(|view| self.possible(view)) else {
            return self.relations.table(name).await;
        };
        let state = session::state(Arc::clone(&self.catalogs), None);
        let plan = state.create_logical_plan(&view.sql).await?;
        Ok(Some(Arc::new(ViewTable::new(plan, Some(view.sql.clone())))))
    }

    fn table_exist(&self, name: &str) -> bool {
        let view = VIEWS.get(name);
        view.is_some_and(|view| self.possible(view)) || self.relations.table_exist(name)
    }
}
