//! Three ways to read a relation must agree: all its rows, those found by a value, and what changed.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use dataflows::change::Epoch;
use dataflows::index::{Index, LookUp, Selection};

/// Rows in JSON, with how often each is there.
type Rows = BTreeMap<String, i64>;

/// Follows the relations of one worker.
#[derive(Default)]
pub(crate) struct Follower {
    /// What the changes add up to, and up to which epoch.
    held: BTreeMap<&'static str, (Rows, Epoch)>,
}

impl Follower {
    /// All rows of a relation at a complete epoch, after comparing them with the other ways.
    pub(crate) fn read(&mut self, index: &mut dyn Index, epoch: Epoch) -> RecordBatch {
        let rows = read(index, epoch, &Selection::default());
        let relation = index.relation();
        let (held, told) = self.held.entry(relation).or_default();
        let changes = index
            .changes(*told, epoch + 1, &Selection::default())
            .unwrap();
        add_changes(held, &changes);
        *told = epoch + 1;
        let expected = counted(&rows);
        assert_eq!(*held, expected, "changes of {relation} until {epoch}");
        // By another column than the first, rows lie on other workers.
        let column = index.look_ups()[0];
        look_up(index, epoch, column, &rows);
        rows
    }
}

/// Looks some of the values of a column up, which must find the rows that have them.
fn look_up(index: &mut dyn Index, epoch: Epoch, column: &str, rows: &RecordBatch) {
    let values = rows.column_by_name(column).unwrap().as_string::<i32>();
    let wanted: Vec<_> = values.iter().flatten().step_by(3).collect();
    let selection = |columns| Selection {
        look_up: Some(LookUp {
            column: column.to_owned(),
            values: wanted.iter().map(|&value| value.to_owned()).collect(),
            any_case: false,
        }),
        columns,
        limit: None,
    };
    let found = read(index, epoch, &selection(None));
    let has = |row: &usize| wanted.contains(&values.value(*row));
    let mut expected = Rows::new();
    for row in (0..rows.num_rows()).filter(has) {
        add_changes_of(&mut expected, &rows.slice(row, 1), &[1]);
    }
    assert_eq!(counted(&found), expected, "{column} of {wanted:?}");
    let none = read(index, epoch, &selection(Some(Vec::new())));
    assert_eq!((none.num_rows(), none.num_columns()), (found.num_rows(), 0));
}

fn read(index: &mut dyn Index, epoch: Epoch, selection: &Selection) -> RecordBatch {
    let mut rows = index.open(epoch, selection).unwrap();
    let mut chunks = Vec::new();
    loop {
        let (chunk, last) = rows.next_chunk();
        chunks.push(chunk);
        if last {
            return concat_batches(&chunks[0].schema(), &chunks).unwrap();
        }
    }
}

fn counted(rows: &RecordBatch) -> Rows {
    let mut counted = Rows::new();
    add_changes_of(&mut counted, rows, &vec![1; rows.num_rows()]);
    counted
}

fn add_changes(held: &mut Rows, changes: &RecordBatch) {
    let columns = changes.num_columns() - 2;
    let diffs = changes.column(columns + 1).as_primitive::<Int64Type>();
    let rows = changes.project(&(0..columns).collect::<Vec<_>>()).unwrap();
    add_changes_of(held, &rows, diffs.values());
}

fn add_changes_of(held: &mut Rows, rows: &RecordBatch, diffs: &[i64]) {
    for (row, diff) in sql::to_json_lines(rows).unwrap().lines().zip(diffs) {
        *held.entry(row.to_owned()).or_default() += diff;
    }
    held.retain(|_, count| *count != 0);
}
