//! A table gets the columns that its relation has got since it was made.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should fail there"
)]

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
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
