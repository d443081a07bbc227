//! A column that holds others, each of which is a column of its own in the table and its files.
//!
//! The relation's schema marks it ([`MARK`]). It holds objects of JSON, texts by name, names sorted,
//! none where there is no column. The table gets a column when a file is committed that has it; a row
//! of a file without it has nothing there.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use deltalake::kernel::{Action, Add};

/// The mark of such a column, in its field's metadata.
pub const MARK: &str = "assay.further";

/// The tag by which a file's entry in the log tells which such columns it has.
const TAG: &str = "assay.columns";

/// The place of the column that holds others, if the relation has one.
pub fn place(schema: &Schema) -> Option<usize> {
    let mut fields = schema.fields().iter();
    fields.position(|field| field.metadata().contains_key(MARK))
}

/// The columns without the one that holds others, and after them those that it holds.
pub fn shown(schema: &Schema, names: &[String]) -> SchemaRef {
    let Some(place) = place(schema) else {
        return Arc::new(schema.clone());
    };
    let mut fields: Vec<FieldRef> = schema.fields().to_vec();
    fields.remove(place);
    fields.extend(names.iter().map(|name| column(name)));
    Arc::new(Schema::new(fields))
}

pub(super) fn column(name: &str) -> FieldRef {
    Arc::new(Field::new(name, DataType::Utf8, true))
}

/// The names of all columns that some row has, sorted.
fn names(rows: &RecordBatch) -> Vec<String> {
    let mut names = BTreeSet::new();
    let held = place(&rows.schema()).map(|place| rows.column(place));
    for columns in held
        .iter()
        .flat_map(|held| held.as_string::<i32>())
        .flatten()
    {
        for name in by_name(columns).into_keys() {
            if !names.contains(&*name) {
                names.insert(name.into_owned());
            }
        }
    }
    names.into_iter().collect()
}

fn by_name(columns: &str) -> BTreeMap<Cow<'_, str>, Option<Cow<'_, str>>> {
    serde_json::from_str(columns).unwrap_or_default()
}

/// The rows with columns of these names in the place of the one that holds them.
///
/// # Errors
/// None if the rows are of a relation.
pub fn expand(rows: &RecordBatch, names: &[String]) -> Result<RecordBatch, ArrowError> {
    let Some(place) = place(&rows.schema()) else {
        return Ok(rows.clone());
    };
    let mut arrays = rows.columns().to_vec();
    let held = arrays.remove(place);
    let rows_of = held.as_string::<i32>().iter();
    let rows_of: Vec<_> = rows_of
        .map(|columns| by_name(columns.unwrap_or("{}")))
        .collect();
    for name in names {
        let texts = rows_of
            .iter()
            .map(|columns| columns.get(&**name)?.as_deref());
        arrays.push(Arc::new(texts.collect::<StringArray>()) as ArrayRef);
    }
    RecordBatch::try_new(shown(&rows.schema(), names), arrays)
}

/// The columns of these names, in this order, taken out of the one that holds others where they are none of the
/// relation's own.
///
/// # Errors
/// If nothing holds others and a name is not among the columns.
pub fn select(rows: &RecordBatch, names: &[String]) -> Result<RecordBatch, ArrowError> {
    let own = rows.schema();
    let held = names.iter().filter(|name| own.index_of(name).is_err());
    let rows = expand(rows, &held.cloned().collect::<Vec<_>>())?;
    let schema = rows.schema();
    let places = names.iter().map(|name| schema.index_of(name));
    rows.project(&places.collect::<Result<Vec<_>, _>>()?)
}

/// The rows with all columns that they have in the place of the one that holds them, and the names of those.
pub(super) fn expand_all(rows: &RecordBatch) -> Result<(RecordBatch, Vec<String>), ArrowError> {
    let names = names(rows);
    Ok((expand(rows, &names)?, names))
}

/// What the column that holds others has for rows of a file.
pub(super) fn collapse(rows: &RecordBatch, schema: &Schema) -> ArrayRef {
    let file = rows.schema();
    let further = file.fields().iter().zip(rows.columns());
    let further = further.filter(|(field, array)| {
        schema.field_with_name(field.name()).is_err() && *array.data_type() == DataType::Utf8
    });
    let further: Vec<_> = further
        .map(|(field, array)| (field.name(), array.as_string::<i32>()))
        .collect();
    let held = (0..rows.num_rows()).map(|row| {
        let columns = further.iter().filter(|(_, texts)| texts.is_valid(row));
        let columns: BTreeMap<_, _> = columns
            .map(|(name, texts)| (*name, texts.value(row)))
            .collect();
        // Texts by text are always written.
        (!columns.is_empty()).then(|| serde_json::to_string(&columns).unwrap_or_default())
    });
    Arc::new(held.collect::<StringArray>())
}

/// Notes in a file's entry which further columns it has.
pub(super) fn tag(entry: &mut Add, names: &[String]) {
    if !names.is_empty() {
        let names = serde_json::Value::from(names.to_vec()).to_string();
        let tags = entry.tags.get_or_insert_with(HashMap::new);
        tags.insert(TAG.to_owned(), Some(names));
    }
}

/// The further columns of all files that some actions put into a table.
pub(super) fn tagged(actions: &[Action]) -> BTreeSet<String> {
    let entries = actions.iter().filter_map(|action| match action {
        Action::Add(entry) => entry.tags.as_ref()?.get(TAG)?.as_deref(),
        _ => None,
    });
    let names = entries.filter_map(|names| serde_json::from_str::<Vec<String>>(names).ok());
    names.flatten().collect()
}
