//! Queries over relations that are made up.

use std::sync::Mutex;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use futures::{FutureExt, StreamExt};

use super::*;

const LIMITS: Limits = Limits {
    memory: 10 << 20,
    time: Duration::from_secs(10),
};

#[derive(Debug, Default)]
struct Fixed {
    asked: Arc<Mutex<Vec<Selection>>>,
    compacted: bool,
}

impl Relations for Fixed {
    fn epoch(&self) -> u64 {
        7
    }

    fn relations(&self) -> Vec<Relation> {
        let fields = vec![
            Field::new("name", DataType::Utf8, false),
            Field::new("n", DataType::Int64, false),
        ];
        vec![Relation {
            name: "counts".to_owned(),
            schema: Arc::new(Schema::new(fields)),
            look_ups: vec!["name".to_owned()],
        }]
    }

    fn read(&self, _: &str, selection: Selection) -> RowStream {
        self.asked.lock().unwrap().push(selection.clone());
        if self.compacted {
            return futures::stream::iter([Err(ReadError::Compacted)]).boxed();
        }
        let wanted = |name: &str| match &selection.look_up {
            Some((_, values)) => values.iter().any(|value| value == name),
            None => true,
        };
        let rows: Vec<_> = [("a", 1), ("b", 2), ("b", 3)]
            .into_iter()
            .filter(|(name, _)| wanted(name))
            .collect();
        let names = StringArray::from_iter_values(rows.iter().map(|row| row.0));
        let counts = Int64Array::from_iter_values(rows.iter().map(|row| row.1));
        let columns: Vec<ArrayRef> = vec![Arc::new(names), Arc::new(counts)];
        let rows = RecordBatch::try_new(self.relations().remove(0).schema, columns).unwrap();
        let schema = rows.schema();
        let places = selection
            .columns
            .iter()
            .map(|name| schema.index_of(name).unwrap());
        let rows = rows.project(&places.collect::<Vec<_>>()).unwrap();
        futures::stream::iter([Ok(rows)]).boxed()
    }

    fn progress(&self) -> BoxFuture<'static, Result<Vec<Progress>, ReadError>> {
        let counts = Progress {
            relation: "counts".to_owned(),
            epoch: 7,
            lag_ms: 3,
        };
        std::future::ready(Ok(vec![counts])).boxed()
    }
}

fn run(sql: &str, relations: &Arc<Fixed>) -> Result<String, QueryError> {
    run_within(LIMITS, sql, relations)
}

fn run_within(limits: Limits, sql: &str, relations: &Arc<Fixed>) -> Result<String, QueryError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let relations = Arc::clone(relations);
    let answer = runtime.block_on(query(sql, relations, limits))?;
    Ok(serde_json::to_string(&to_json(&answer.batches)?).unwrap())
}

fn code_of(sql: &str) -> &'static str {
    run(sql, &Arc::default()).unwrap_err().code()
}

#[test]
fn rows_are_filtered_grouped_and_shown() {
    let relations = Arc::default();
    let sql = "select name, sum(n) as n from counts group by name order by name";
    assert_eq!(
        run(sql, &relations).unwrap(),
        r#"[{"n":1,"name":"a"},{"n":5,"name":"b"}]"#
    );
    assert_eq!(
        run("select * from counts where n > 9", &relations).unwrap(),
        "[]"
    );
}

#[test]
fn look_ups_projections_and_limits_are_passed_down() {
    let relations: Arc<Fixed> = Arc::default();
    let by = |values: &[&str]| {
        let values = values.iter().map(|&value| value.to_owned());
        Some(("name".to_owned(), values.collect::<Vec<_>>()))
    };
    let sql = "select sum(n) as n from counts where name = 'b'";
    assert_eq!(run(sql, &relations).unwrap(), r#"[{"n":5}]"#);
    let sql = "select sum(n) as n from counts where name in ('a', 'b') and n < 3";
    assert_eq!(run(sql, &relations).unwrap(), r#"[{"n":3}]"#);
    let sql = "select count(*) as n from counts where name = 'b' and 'a' = name";
    assert_eq!(run(sql, &relations).unwrap(), r#"[{"n":0}]"#);
    run("select name from counts limit 2", &relations).unwrap();
    let asked = relations.asked.lock().unwrap();
    let selection = |place: usize| (&asked[place].look_up, asked[place].columns.as_slice());
    assert_eq!(selection(0), (&by(&["b"]), ["n".to_owned()].as_slice()));
    assert_eq!(
        selection(1),
        (&by(&["a", "b"]), ["n".to_owned()].as_slice())
    );
    assert_eq!(
        (asked.last().unwrap().limit, &asked.last().unwrap().columns),
        (Some(2), &vec!["name".to_owned()])
    );
}

#[test]
fn the_epoch_and_the_lags_can_be_asked_for() {
    let sql = "select assay_epoch() as e, relation, epoch, lag_ms from assay.relations";
    assert_eq!(
        run(sql, &Arc::default()).unwrap(),
        r#"[{"e":7,"epoch":7,"lag_ms":3,"relation":"counts"}]"#
    );
}

#[test]
fn a_query_takes_no_more_than_it_may() {
    let little = Limits {
        memory: 100_000,
        ..LIMITS
    };
    let large = "select a.value from generate_series(1, 100000) a order by 1 desc";
    let error = run_within(little, large, &Arc::default()).unwrap_err();
    assert_eq!(error.code(), codes::OUT_OF_MEMORY, "{error}");
    let short = Limits {
        time: Duration::from_millis(50),
        ..LIMITS
    };
    let long = "select count(*) from generate_series(1, 100000000) a";
    let error = run_within(short, long, &Arc::default()).unwrap_err();
    assert_eq!(error.code(), codes::QUERY_CANCELED, "{error}");
}

#[test]
fn errors_have_the_codes_of_postgresql() {
    assert_eq!(code_of("selec"), codes::SYNTAX_ERROR);
    assert_eq!(code_of("select * from nowhere"), "42P01");
    assert_eq!(code_of("select nme from counts"), "42703");
    assert_eq!(code_of("select nix(name) from counts"), "42883");
    assert_eq!(code_of("select 1 / (n - n) from counts"), "22000");
}

#[test]
fn nothing_can_be_changed() {
    let relations = Arc::default();
    for sql in [
        "drop table counts",
        "create table x as select 1",
        "insert into counts values ('c', 1)",
        "copy counts to 'out.csv'",
        "set datafusion.execution.batch_size = 1",
        "create external table x stored as csv location 'x.csv'",
    ] {
        assert!(
            matches!(run(sql, &relations), Err(QueryError::Query { .. })),
            "{sql}"
        );
    }
}

#[test]
fn mistakes_are_told_and_compaction_is_told_apart() {
    let error = run("select nme from counts", &Arc::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("nme"), "{error}");
    let compacted = Arc::new(Fixed {
        compacted: true,
        ..Fixed::default()
    });
    let error = run("select * from counts", &compacted).unwrap_err();
    assert!(
        matches!(error, QueryError::Read(ReadError::Compacted)),
        "{error}"
    );
}

#[test]
fn a_condition_holds_for_some_rows() {
    let schema = Fixed::default().relations().remove(0).schema;
    let names = StringArray::from(vec!["ada", "bo"]);
    let columns: Vec<arrow::array::ArrayRef> =
        vec![Arc::new(names), Arc::new(Int64Array::from(vec![1, 2]))];
    let rows = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
    let condition = Condition::parse("name = 'ada' or n > 5", &schema).unwrap();
    assert_eq!(condition.holds(&rows).unwrap(), [true, false]);
    assert_eq!(condition.literals(), ["ada"]);
    for wrong in ["nme = 'ada'", "n + 1", "name =", "exists (select 1)"] {
        assert!(Condition::parse(wrong, &schema).is_err(), "{wrong}");
    }
}

#[test]
fn the_names_that_a_query_reads_are_found() {
    let sql = "with x as (select * from gold) select * from x join silver on true where \
               exists (select 1 from bronze)";
    let mut names = relations_of(sql).unwrap();
    names.sort();
    assert_eq!(names, ["bronze", "gold", "silver"]);
    assert!(relations_of("selec").is_err());
}
