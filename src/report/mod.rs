//! What a running Assay knows, as one page and its charts: `assay report`.
//!
//! All of it is asked for in one query, and so is of one epoch.

mod page;

use std::path::Path;

use anyhow::Context;
use dataflows::pipelines::mentions::meaning;
use dataflows::pipelines::mentions::polarity;
use models::evaluation::Confusion;
use serde_json::Value;

use crate::charts::{self, ACCENT, NEGATIVE, NEUTRAL, OTHER, POSITIVE, Png, Series};
use crate::progress::thousands;
use crate::query::client::Server;

/// Rows of a section each: its name, up to three texts, and up to four numbers.
const QUERY: &str = r#"
select 'bronze' as section, '' as x, '' as y, '' as z, count(*) as a, count(date) as b, count("user") as c,
  count(sentiment) as d from bronze
union all select 'silver', '', '', '', count(*), 0, 0, 0 from silver
union all select 'gold', '', '', '', count(*), 0, 0, 0 from gold
union all select 'mention_sentiment', '', '', '', count(*), 0, 0, 0 from mention_sentiment
union all select 'users', '', '', '', count(*), coalesce(sum(tweets), 0), coalesce(sum(with_mention), 0),
  coalesce(sum(without_mention), 0) from users
union all select 'range', case when tweets > 10 then 'over 10' when tweets > 5 then '6 to 10'
  when tweets > 2 then '3 to 5' else cast(tweets as varchar) end, '', '', min(tweets), count(*), 0, 0
  from users group by 2
union all (select 'user', "user", '', '', tweets, with_mention, without_mention, 0 from users
  order by tweets desc, "user" limit 20)
union all (select 'positive', mention, '', '', positive, predicted_positive, total, 0 from mention_sentiment
  order by greatest(positive, predicted_positive) desc, mention limit 20)
union all (select 'negative', mention, '', '', negative, predicted_negative, total, 0 from mention_sentiment
  order by greatest(negative, predicted_negative) desc, mention limit 20)
union all select 'day', cast(cast("timestamp" as date) as varchar), predicted_sentiment, '', count(*), 0, 0, 0
  from gold group by 2, 3
union all select 'cell', model, given_label, predicted_label, rows, 0, 0, 0 from accuracy
union all (select 'reject', stage, substr(reason, 1, 160), min(position), count(*), 0, 0, 0 from rejects
  group by 2, 3 order by 5 desc, 2, 3 limit 50)
"#;

/// Days that are shown; the last ones.
const DAYS: usize = 366;

/// Which labels of mentions are shown: the model's, or the given ones where no model is.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Labels {
    Predicted,
    Given,
}

impl Labels {
    fn name(self) -> &'static str {
        match self {
            Self::Predicted => "predicted",
            Self::Given => "given",
        }
    }
}

/// One row of the answer.
struct Row {
    section: String,
    texts: [String; 3],
    numbers: [u64; 4],
}

/// The answer.
struct Found {
    epoch: u64,
    rows: Vec<Row>,
}

/// A table below a heading, with a chart of it if it can be seen.
struct Section {
    title: String,
    note: String,
    /// The chart's file and what it holds.
    chart: Option<(String, Png)>,
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// Writes `index.html` and its charts into the folder, which is made if there is none; returns what to say.
///
/// # Errors
/// If the server cannot be asked, or the folder not be written.
pub fn write(server: &Server, folder: &Path) -> anyhow::Result<String> {
    let answer = server.ask(QUERY, None)?;
    let found = Found::of(&answer).context("the answer is none of Assay's")?;
    let sections = found.sections()?;
    let unwritable = || format!("cannot write to {}", folder.display());
    std::fs::create_dir_all(folder).with_context(unwritable)?;
    for (file, image) in sections.iter().filter_map(|section| section.chart.as_ref()) {
        std::fs::write(folder.join(file), image).with_context(unwritable)?;
    }
    let page = page::page(found.epoch, &found.facts(), &sections);
    let index = folder.join("index.html");
    std::fs::write(&index, page).with_context(unwritable)?;
    let rows = thousands(found.first("bronze")[0]);
    Ok(format!(
        "{}: {rows} rows of bronze and what became of them",
        index.display()
    ))
}

impl Found {
    fn of(answer: &Value) -> Option<Self> {
        let row = |row: &Value| {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            Some(Row {
                section: text("section"),
                texts: ["x", "y", "z"].map(text),
                numbers: ["a", "b", "c", "d"].map(|name| row[name].as_u64().unwrap_or_default()),
            })
        };
        Some(Self {
            epoch: answer["epoch"].as_u64()?,
            rows: answer["rows"]
                .as_array()?
                .iter()
                .map(row)
                .collect::<Option<_>>()?,
        })
    }

    /// The rows of a section.
    fn all(&self, section: &'static str) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.section == section)
    }

    /// The numbers of a section that has one row.
    fn first(&self, section: &'static str) -> [u64; 4] {
        self.all(section).next().map_or([0; 4], |row| row.numbers)
    }

    /// What is told before all charts.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let [rows, ..] = self.first("bronze");
        let [users, tweets, with_mention, without_mention] = self.first("users");
        let share = |part: u64| format!("{} ({})", thousands(part), percent(part, tweets));
        let rejects: u64 = self.all("reject").map(|row| row.numbers[0]).sum();
        vec![
            ("Rows of bronze", thousands(rows)),
            ("Users", thousands(users)),
            ("Tweets with a mention", share(with_mention)),
            ("Tweets without one", share(without_mention)),
            ("Mentions (silver)", thousands(self.first("silver")[0])),
            ("Scored mentions (gold)", thousands(self.first("gold")[0])),
            (
                "Who is mentioned",
                thousands(self.first("mention_sentiment")[0]),
            ),
            ("Rejects", thousands(rejects)),
        ]
    }

    fn sections(&self) -> anyhow::Result<Vec<Section>> {
        let mut sections = vec![
            self.mentions("positive", POSITIVE)?,
            self.mentions("negative", NEGATIVE)?,
            self.days()?,
            self.users()?,
            self.tweets_a_user()?,
            self.nulls(),
        ];
        sections.extend(self.accuracy()?);
        sections.push(self.rejects());
        Ok(sections)
    }

    fn labels(&self) -> Labels {
        let mut rows = self.all("positive").chain(self.all("negative"));
        match rows.any(|row| row.numbers[1] > 0) {
            true => Labels::Predicted,
            false => Labels::Given,
        }
    }

    fn mentions(&self, side: &'static str, colour: charts::Colour) -> anyhow::Result<Section> {
        let labels = self.labels();
        let count = |row: &&Row| match labels {
            Labels::Predicted => row.numbers[1],
            Labels::Given => row.numbers[0],
        };
        let mut rows: Vec<_> = self.all(side).filter(|row| count(row) > 0).collect();
        rows.sort_by(|one, other| (count(other), &one.texts).cmp(&(count(one), &other.texts)));
        let bars = rows
            .iter()
            .map(|row| (row.texts[0].clone(), vec![count(row)]));
        let title = format!("Who is spoken of most in {side} tweets");
        let series = [(side, colour)];
        Ok(Section {
            note: format!("By {} labels.", labels.name()),
            chart: drawn(
                &format!("mentions-{side}.png"),
                || charts::bars(&title, &series, &bars.collect::<Vec<_>>()),
                rows.is_empty(),
            )?,
            title,
            head: vec!["mention", "given", "predicted", "all rows"],
            rows: rows.iter().map(|row| row.shown(1, 3)).collect(),
        })
    }

    fn days(&self) -> anyhow::Result<Section> {
        const SERIES: [Series<'_>; 4] = [
            ("positive", POSITIVE),
            ("neutral", NEUTRAL),
            ("negative", NEGATIVE),
            ("another label, or none", OTHER),
        ];
        let mut days = std::collections::BTreeMap::<String, Vec<u64>>::new();
        for row in self.all("day") {
            let [day, label, _] = &row.texts;
            let label = polarity(label).map(|label| label.name());
            let place = SERIES.iter().position(|(name, _)| Some(*name) == label);
            let counts = days
                .entry(day.clone())
                .or_insert_with(|| vec![0; SERIES.len()]);
            counts[place.unwrap_or(SERIES.len() - 1)] += row.numbers[0];
        }
        let days: Vec<_> = days.into_iter().rev().take(DAYS).collect();
        let days: Vec<_> = days.into_iter().rev().collect();
        let met = |place: &usize| days.iter().any(|(_, counts)| counts[*place] > 0);
        let met: Vec<_> = (0..SERIES.len()).filter(met).collect();
        let series: Vec<_> = met.iter().map(|place| SERIES[*place]).collect();
        let points = days.iter().map(|(day, counts)| {
            let counts = met.iter().map(|place| counts[*place]).collect();
            (day.clone(), counts)
        });
        let points: Vec<_> = points.collect();
        let title = "Mentions a day, by predicted label".to_owned();
        Ok(Section {
            note: format!("Days in UTC, the last {DAYS} that have any."),
            chart: drawn(
                "days.png",
                || charts::lines(&title, &series, &points),
                days.len() < 2,
            )?,
            title,
            head: vec!["day", "positive", "neutral", "negative", "other"],
            rows: days.iter().map(|(day, counts)| line(day, counts)).collect(),
        })
    }

    fn users(&self) -> anyhow::Result<Section> {
        let mut users: Vec<_> = self.all("user").collect();
        users.sort_by(|one, other| (other.numbers, &one.texts).cmp(&(one.numbers, &other.texts)));
        let bars = users
            .iter()
            .map(|row| (row.texts[0].clone(), row.numbers[1..3].to_vec()));
        let title = "Who tweets most".to_owned();
        let series = [("with a mention", ACCENT), ("without one", NEUTRAL)];
        Ok(Section {
            note: String::new(),
            chart: drawn(
                "users.png",
                || charts::bars(&title, &series, &bars.collect::<Vec<_>>()),
                users.is_empty(),
            )?,
            title,
            head: vec!["user", "tweets", "with a mention", "without one"],
            rows: users.iter().map(|row| row.shown(1, 3)).collect(),
        })
    }

    fn tweets_a_user(&self) -> anyhow::Result<Section> {
        let mut ranges: Vec<_> = self.all("range").collect();
        ranges.sort_by_key(|row| row.numbers[0]);
        let bars = ranges
            .iter()
            .map(|row| (row.texts[0].clone(), vec![row.numbers[1]]));
        let bars: Vec<_> = bars.collect();
        let title = "Users by how many tweets they have".to_owned();
        Ok(Section {
            note: String::new(),
            chart: drawn(
                "tweets-a-user.png",
                || charts::bars(&title, &[("users", ACCENT)], &bars),
                bars.is_empty(),
            )?,
            title,
            head: vec!["tweets", "users"],
            rows: bars
                .iter()
                .map(|(range, users)| line(range, users))
                .collect(),
        })
    }

    fn nulls(&self) -> Section {
        let [rows, filled @ ..] = self.first("bronze");
        let columns = ["date", "user", "sentiment"].iter().zip(filled);
        Section {
            title: "What rows of bronze lack".to_owned(),
            note: "Every row has a key and a text.".to_owned(),
            chart: None,
            head: vec!["column", "rows without it", "share"],
            rows: columns
                .map(|(column, filled)| {
                    let empty = rows.saturating_sub(filled);
                    vec![(*column).to_owned(), thousands(empty), percent(empty, rows)]
                })
                .collect(),
        }
    }

    /// A section for each model that has scored what had a label.
    fn accuracy(&self) -> anyhow::Result<Vec<Section>> {
        let mut models = std::collections::BTreeMap::<&str, Confusion>::new();
        for row in self.all("cell") {
            let [model, given, predicted] = &row.texts;
            let confusion = models.entry(model).or_default();
            confusion.add(meaning(given), meaning(predicted), row.numbers[0]);
        }
        let several = models.len() > 1;
        let sections = models
            .iter()
            .enumerate()
            .map(|(place, (model, confusion))| {
                let scores = confusion.scores_and_means();
                let share = |value: f64| format!("{:.1} %", value * 100.0);
                let rows = scores.into_iter().map(|scores| {
                    let shares = [scores.precision, scores.recall, scores.f1].map(share);
                    let [precision, recall, f1] = shares;
                    vec![scores.label, precision, recall, f1, thousands(scores.given)]
                });
                let file = match several {
                    true => format!("confusion-{}.png", place + 1),
                    false => "confusion.png".to_owned(),
                };
                let title = "Given and predicted labels".to_owned();
                Ok(Section {
                    note: format!(
                        "Of {} rows {} carry the right label. Model {model}.",
                        thousands(confusion.total()),
                        share(confusion.accuracy())
                    ),
                    chart: drawn(&file, || charts::matrix(&title, confusion), false)?,
                    title,
                    head: vec!["label", "precision", "recall", "F1", "rows"],
                    rows: rows.collect(),
                })
            });
        sections.collect()
    }

    fn rejects(&self) -> Section {
        let rejects = self.all("reject").map(|row| {
            let [stage, reason, position] = row.texts.clone();
            vec![stage, reason, position, thousands(row.numbers[0])]
        });
        Section {
            title: "What could not be used".to_owned(),
            note: "By stage and reason, each with one place where it was met.".to_owned(),
            chart: None,
            head: vec!["stage", "reason", "for example", "rows"],
            rows: rejects.collect(),
        }
    }
}

impl Row {
    /// The first texts and numbers as cells of a table.
    fn shown(&self, texts: usize, numbers: usize) -> Vec<String> {
        let texts = self.texts.iter().take(texts).cloned();
        let numbers = self.numbers.iter().take(numbers);
        texts
            .chain(numbers.map(|number| thousands(*number)))
            .collect()
    }
}

fn line(name: &str, counts: &[u64]) -> Vec<String> {
    let counts = counts.iter().map(|count| thousands(*count));
    std::iter::once(name.to_owned()).chain(counts).collect()
}

fn drawn(
    file: &str,
    draw: impl FnOnce() -> anyhow::Result<Png>,
    nothing: bool,
) -> anyhow::Result<Option<(String, Png)>> {
    match nothing {
        true => Ok(None),
        false => Ok(Some((file.to_owned(), draw()?))),
    }
}

fn percent(part: u64, of: u64) -> String {
    match of {
        0 => "–".to_owned(),
        of => format!("{:.1} %", part as f64 * 100.0 / of as f64),
    }
}
