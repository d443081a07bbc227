//! A table gets the columns that its relation has got since it was made.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use connectors::delta::further::MARK;
use connectors::delta::{Action, Deletes, Table, TablesFolder};

fn schema(columns: usize) -> SchemaRef {
    let fields = [
        Field::new("key", DataType::Utf8, false),
        Field::new("tier", DataType::Int64, false),
        Field::new("note", DataType::Utf8, true),
    ];
    Arc::new(Schema::new(fields[..columns].to_vec()))
}

fn rows(columns: usize, key: &str, tier: i64, note: Option<&str>) -> RecordBatch {
    let all: [ArrayRef; 3] = [
        Arc::new(StringArray::from(vec![key])),
        Arc::new(Int64Array::from(vec![tier])),
        Arc::new(StringArray::from(vec![note])),
    ];
    RecordBatch::try_new(schema(columns), all[..columns].to_vec()).unwrap()
}

async fn append(table: &mut Table, version: i64, rows: &RecordBatch) {
    let file = table.data_files().append(rows, false).await.unwrap();
    let added = vec![Action::Add(file.entry)];
    table.commit("test", version, added).await.unwrap();
}

#[tokio::test]
async fn columns_at_the_end_are_added_and_older_rows_have_nothing_in_them() {
    for deletes in [Deletes::Vectors, Deletes::Rewrite] {
        let directory = tempfile::tempdir().unwrap();
        let folder = TablesFolder::open(directory.path().to_str().unwrap()).unwrap();
        let open = |columns| Table::open(&folder, "rows", schema(columns), deletes);
        let mut table = open(1).await.unwrap();
        append(&mut table, 1, &rows(1, "old", 0, None)).await;

        // Who only reads changes nothing.
        let all =
            async |table: &Table| concat_batches(&schema(3), &table.rows().await.unwrap()).unwrap();
        let reader = Table::open_existing(&folder, "rows", schema(3), deletes).await;
        let reader = reader.unwrap().unwrap();
        assert_eq!(all(&reader).await, rows(3, "old", 0, None));
        assert_eq!(reader.version(), 1);

        let mut table = open(3).await.unwrap();
        assert_eq!(table.version(), 2);
        append(&mut table, 2, &rows(3, "new", 1, Some("so"))).await;
        let table = open(3).await.unwrap();
        assert_eq!(table.version(), 3);
        let both = [rows(3, "new", 1, Some("so")), rows(3, "old", 0, None)];
        let found = all(&table).await;
        let found = [found.slice(0, 1), found.slice(1, 1)];
        assert!(
            found.iter().all(|row| both.contains(row)) && found[0] != found[1],
            "{found:?}"
        );

        let refused = open(1).await.err().unwrap().to_string();
        assert!(
            refused.contains("has columns (key Utf8, tier Int64, note Utf8)"),
            "{refused}"
        );
    }
}

/// Rows with a column that holds others, as objects of JSON.
fn with_further(rows: &[(&str, Option<&str>)]) -> RecordBatch {
    let mark = [(MARK.to_owned(), String::new())].into();
    let fields = vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("held", DataType::Utf8, true).with_metadata(mark),
    ];
    let keys = StringArray::from_iter_values(rows.iter().map(|(key, _)| *key));
    let held: StringArray = rows.iter().map(|(_, held)| *held).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(keys), Arc::new(held)];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

#[tokio::test]
async fn columns_that_one_holds_are_columns_of_the_table_and_come_as_files_have_them() {
    for deletes in [Deletes::Vectors, Deletes::Rewrite] {
        let directory = tempfile::tempdir().unwrap();
        let folder = TablesFolder::open(directory.path().to_str().unwrap()).unwrap();
        let schema = with_further(&[]).schema();
        let open = || Table::open(&folder, "rows", Arc::clone(&schema), deletes);
        let mut table = open().await.unwrap();
        let first = with_further(&[("a", None), ("b", Some(r#"{"lang":"en"}"#))]);
        append(&mut table, 1, &first).await;
        let second = with_further(&[("c", Some(r#"{"bio":"\u00fc \"x\"","likes":"5"}"#))]);
        append(&mut table, 2, &second).await;

        // As other readers see it.
        let names = |table: &Table| table.further().unwrap();
        assert_eq!(names(&table), ["lang", "bio", "likes"]);
        // As it was before the second.
        let earlier = table.at(1).await.unwrap();
        assert_eq!(names(&earlier), ["lang"]);

        let table = open().await.unwrap();
        assert_eq!(names(&table).len(), 3);
        let rows = concat_batches(&schema, &table.rows().await.unwrap()).unwrap();
        let all = [first.slice(0, 1), first.slice(1, 1), second];
        let found: Vec<_> = (0..3).map(|row| rows.slice(row, 1)).collect();
        let plain = |rows: &RecordBatch| {
            let held = rows.column(1).as_string::<i32>();
            let held = held
                .is_valid(0)
                .then(|| serde_json::from_str::<serde_json::Value>(held.value(0)).unwrap());
            (rows.column(0).as_string::<i32>().value(0).to_owned(), held)
        };
        for row in &all {
            assert!(
                found.iter().any(|found| plain(found) == plain(row)),
                "{row:?}"
            );
        }
        // A relation that holds none does not fit such a table.
        let refused = Table::open(&folder, "rows", self::schema(1), deletes).await;
        assert!(refused.err().unwrap().to_string().contains("lang Utf8"));
    }
}
