//! Relations as DataFusion sees them.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{SchemaProvider, Session, TableProvider};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{
    BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType,
};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::{StreamExt, TryFutureExt, TryStreamExt};

use crate::{Progress, ReadError, Relation, Relations, RowStream, Selection};

/// The snapshot that a session's present statement reads.
#[derive(Debug, Default)]
pub(crate) struct Current(Mutex<Option<Arc<dyn Relations>>>);

impl Current {
    pub(crate) fn set(&self, relations: Arc<dyn Relations>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(relations);
    }

    pub(crate) fn get(&self) -> Result<Arc<dyn Relations>> {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let none = || external(ReadError::Unavailable("no epoch was chosen".to_owned()));
        current.clone().ok_or_else(none)
    }
}

/// Tells the relations that there are now.
pub(crate) type Known = Arc<dyn Fn() -> Vec<Relation> + Send + Sync>;

/// The relations as they are when a statement names them: they may have got columns since its session began.
pub(crate) struct LiveSchema {
    pub known: Known,
    pub current: Arc<Current>,
}

impl fmt::Debug for LiveSchema {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.table_names()).finish()
    }
}

#[async_trait::async_trait]
impl SchemaProvider for LiveSchema {
    fn table_names(&self) -> Vec<String> {
        let relations = (self.known)().into_iter();
        relations.map(|relation| relation.name).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let relations = (self.known)().into_iter();
        let relation = { relations }.find(|relation| relation.name == name);
        Ok(relation.map(|relation| {
            let current = Arc::clone(&self.current);
            Arc::new(LiveRelation { relation, current }) as Arc<dyn TableProvider>
        }))
    }

    fn table_exist(&self, name: &str) -> bool {
        (self.known)().iter().any(|relation| relation.name == name)
    }
}

fn external(error: ReadError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// A relation of whatever snapshot its session reads.
#[derive(Debug)]
pub(crate) struct LiveRelation {
    pub relation: Relation,
    pub current: Arc<Current>,
}

impl LiveRelation {
    /// The look-up that a filter amounts to: a column equals one of some texts.
    fn look_up(&self, filter: &Expr) -> Option<(String, Vec<String>)> {
        let (column, values) = texts_of_column(filter)?;
        let known = self.relation.look_ups.iter().any(|name| name == column);
        known.then(|| (column.to_owned(), values))
    }
}

fn texts_of_column(filter: &Expr) -> Option<(&str, Vec<String>)> {
    match filter {
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::Eq,
            right,
        }) => match (&**left, &**right) {
            (Expr::Column(column), Expr::Literal(literal, _))
            | (Expr::Literal(literal, _), Expr::Column(column)) => {
                Some((column.name(), vec![text(literal)?]))
            }
            _ => None,
        },
        // So DataFusion writes short lists.
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::Or,
            right,
        }) => {
            let (column, mut values) = texts_of_column(left)?;
            let (other, more) = texts_of_column(right)?;
            values.extend(more);
            (column == other).then_some((column, values))
        }
        Expr::InList(InList {
            expr,
            list,
            negated: false,
        }) => {
            let Expr::Column(column) = &**expr else {
                return None;
            };
            let values = list.iter().map(|value| match value {
                Expr::Literal(literal, _) => text(literal),
                _ => None,
            });
            Some((column.name(), values.collect::<Option<_>>()?))
        }
        _ => None,
    }
}

fn text(literal: &ScalarValue) -> Option<String> {
    literal.try_as_str().flatten().map(str::to_owned)
}

#[async_trait::async_trait]
impl TableProvider for LiveRelation {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.relation.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        let mut taken = false;
        let support = |filter: &&Expr| match self.look_up(filter) {
            // Exact, since a look-up returns the rows with these very values and no others; one alone,
            // since rows are found by one column.
            Some(_) if !std::mem::replace(&mut taken, true) => TableProviderFilterPushDown::Exact,
            _ => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.schema();
        let schema = match projection {
            Some(columns) => Arc::new(schema.project(columns)?),
            None => schema,
        };
        let columns = schema.fields().iter().map(|field| field.name().clone());
        let rows = LiveRows {
            relations: self.current.get()?,
            name: self.relation.name.clone(),
            selection: Selection {
                look_up: filters.iter().find_map(|filter| self.look_up(filter)),
                columns: columns.collect(),
                limit,
            },
            schema: Arc::clone(&schema),
        };
        plan(schema, Arc::new(rows), limit)
    }
}

fn plan(
    schema: SchemaRef,
    rows: Arc<dyn PartitionStream>,
    limit: Option<usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = StreamingTableExec::try_new(schema, vec![rows], None, [], false, limit)?;
    Ok(Arc::new(plan))
}

/// Rows that are read when the plan runs.
#[derive(Debug)]
struct LiveRows {
    relations: Arc<dyn Relations>,
    name: String,
    selection: Selection,
    schema: SchemaRef,
}

impl PartitionStream for LiveRows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = self.relations.read(&self.name, self.selection.clone());
        stream(&self.schema, rows)
    }
}

fn stream(schema: &SchemaRef, rows: RowStream) -> SendableRecordBatchStream {
    let rows = rows.map_err(external);
    Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), rows))
}

/// The relation of relations: how far each is complete.
#[derive(Debug)]
pub(crate) struct RelationsTable {
    schema: SchemaRef,
    current: Arc<Current>,
}

impl RelationsTable {
    pub(crate) fn new(current: Arc<Current>) -> Self {
        let fields = vec![
            Field::new("relation", DataType::Utf8, false),
            Field::new("epoch", DataType::Int64, false),
            Field::new("lag_ms", DataType::Int64, false),
        ];
        let schema = Arc::new(Schema::new(fields));
        Self { schema, current }
    }
}

#[async_trait::async_trait]
impl TableProvider for RelationsTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => Arc::clone(&self.schema),
        };
        let rows = ProgressRows {
            relations: self.current.get()?,
            all: Arc::clone(&self.schema),
            columns: projection.cloned(),
            schema: Arc::clone(&schema),
        };
        plan(schema, Arc::new(rows), limit)
    }
}

#[derive(Debug)]
struct ProgressRows {
    relations: Arc<dyn Relations>,
    all: SchemaRef,
    columns: Option<Vec<usize>>,
    schema: SchemaRef,
}

impl PartitionStream for ProgressRows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (all, columns) = (Arc::clone(&self.all), self.columns.clone());
        let rows = self.relations.progress().and_then(async move |progress| {
            let names = StringArray::from_iter_values(progress.iter().map(|row| &row.relation));
            let number = |number: fn(&Progress) -> u64| -> ArrayRef {
                let numbers = progress.iter().map(|row| number(row) as i64);
                Arc::new(Int64Array::from_iter_values(numbers))
            };
            let arrays = vec![
                Arc::new(names) as ArrayRef,
                number(|row| row.epoch),
                number(|row| row.lag_ms),
            ];
            let rows = RecordBatch::try_new(all, arrays);
            let rows = rows.and_then(|rows| match columns {
                Some(columns) => rows.project(&columns),
                None => Ok(rows),
            });
            rows.map_err(|error| ReadError::Unavailable(error.to_string()))
        });
        stream(&self.schema, futures::stream::once(rows).boxed())
    }
}
