//! SQL over live relations, each read once a query names it, all at one epoch.
//!
//! The crate keeps DataFusion, and what takes long to build with it, away from everything else. It
//! knows nothing of dataflows: [`Relations`] is all it asks for. A query can change nothing.

use std::fmt;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError, ScalarValue};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{
    BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType,
};
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::future::BoxFuture;

/// The relations as they are at one epoch.
pub trait Relations: Send + Sync + fmt::Debug {
    /// All relations by name, with their columns; the first column is the one rows are found by.
    fn schemas(&self) -> Vec<(String, SchemaRef)>;

    /// The rows of a relation, all or those of one key.
    fn read(
        &self,
        relation: String,
        key: Option<String>,
    ) -> BoxFuture<'_, Result<Vec<RecordBatch>, ReadError>>;
}

/// Why a relation could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The epoch is no longer readable; ask again at a newer one.
    #[error("the epoch is no longer readable")]
    Compacted,
    /// The dataflow did not answer.
    #[error("{0}")]
    Unavailable(String),
}

/// Why a query was not answered.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The query is at fault; the message says where.
    #[error("{0}")]
    Query(String),
    /// A relation could not be read.
    #[error(transparent)]
    Read(ReadError),
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        if let DataFusionError::External(source) = error.find_root()
            && let Some(read) = source.downcast_ref::<ReadError>()
        {
            return Self::Read(read.clone());
        }
        Self::Query(error.strip_backtrace())
    }
}

/// The rows of an answer, and their columns even if there are none.
#[derive(Debug)]
pub struct Answer {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
}

/// The names that a query reads from, to choose an epoch that is complete for all of them.
///
/// # Errors
/// If the query is not understood.
pub fn relations_of(sql: &str) -> Result<Vec<String>, QueryError> {
    let state = SessionStateBuilder::new().with_default_features().build();
    let dialect = state.config().options().sql_parser.dialect;
    let statement = state.sql_to_statement(sql, &dialect)?;
    let references = state.resolve_table_references(&statement)?;
    Ok(references
        .into_iter()
        .map(|reference| reference.table().to_owned())
        .collect())
}

/// Answers a query over the relations.
///
/// # Errors
/// If the query is not understood or would change something, or a relation cannot be read.
pub async fn query(sql: &str, relations: Arc<dyn Relations>) -> Result<Answer, QueryError> {
    let config = SessionConfig::new()
        .with_default_catalog_and_schema("assay", "public")
        .with_information_schema(true)
        .with_target_partitions(1);
    let context = SessionContext::new_with_config(config);
    for (name, schema) in relations.schemas() {
        let relations = Arc::clone(&relations);
        let table = LiveRelation {
            name: name.clone(),
            schema,
            relations,
        };
        context.register_table(name, Arc::new(table))?;
    }
    let read_only = SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false);
    let frame = context.sql_with_options(sql, read_only).await?;
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let batches = frame.collect().await?;
    Ok(Answer { schema, batches })
}

/// A condition on the columns of a relation, as after `where`.
#[derive(Debug)]
pub struct Condition {
    evaluated: Arc<dyn PhysicalExpr>,
    literals: Vec<String>,
}

impl Condition {
    /// Understands a condition on these columns.
    ///
    /// # Errors
    /// If it is not understood, or is neither true nor false.
    pub fn parse(condition: &str, schema: &SchemaRef) -> Result<Self, QueryError> {
        let context = SessionContext::new();
        let columns = DFSchema::try_from(schema.as_ref().clone())?;
        let parsed = context.parse_sql_expr(condition, &columns)?;
        let mut literals = Vec::new();
        parsed.apply(|part| {
            if let Expr::Literal(literal, _) = part
                && let Some(Some(text)) = literal.try_as_str()
            {
                literals.push(text.to_owned());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        let evaluated = context.create_physical_expr(parsed, &columns)?;
        if evaluated.data_type(schema)? != DataType::Boolean {
            let message = format!("\"{condition}\" is no condition: it is neither true nor false");
            return Err(QueryError::Query(message));
        }
        Ok(Self {
            evaluated,
            literals,
        })
    }

    /// The texts that the condition names.
    pub fn literals(&self) -> &[String] {
        &self.literals
    }

    /// For each row, whether the condition holds; where it is null it does not.
    ///
    /// # Errors
    /// If the rows do not have the columns.
    pub fn holds(&self, rows: &RecordBatch) -> Result<Vec<bool>, QueryError> {
        let held = self.evaluated.evaluate(rows)?.into_array(rows.num_rows())?;
        let held = held.as_any().downcast_ref::<BooleanArray>();
        let held = held.map(|held| held.iter().map(|held| held == Some(true)).collect());
        held.ok_or_else(|| QueryError::Query("the condition is neither true nor false".to_owned()))
    }
}

/// The answer's rows as JSON objects, one a row, nulls included.
///
/// # Errors
/// If a column's type has no JSON form.
pub fn to_json(batches: &[RecordBatch]) -> Result<Vec<serde_json::Value>, QueryError> {
    let unfit =
        |error: &dyn fmt::Display| QueryError::Query(format!("cannot show the rows: {error}"));
    let mut json = Vec::new();
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::JsonArray>(&mut json);
    let batches: Vec<_> = batches.iter().collect();
    writer
        .write_batches(&batches)
        .map_err(|error| unfit(&error))?;
    writer.finish().map_err(|error| unfit(&error))?;
    drop(writer);
    if json.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&json).map_err(|error| unfit(&error))
}

/// A relation as DataFusion sees it.
#[derive(Debug)]
struct LiveRelation {
    name: String,
    schema: SchemaRef,
    relations: Arc<dyn Relations>,
}

impl LiveRelation {
    /// The key that a filter asks for, if it asks for one.
    fn key_in(&self, filter: &Expr) -> Option<String> {
        let Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::Eq,
            right,
        }) = filter
        else {
            return None;
        };
        let (column, literal) = match (&**left, &**right) {
            (Expr::Column(column), Expr::Literal(literal, _))
            | (Expr::Literal(literal, _), Expr::Column(column)) => (column, literal),
            _ => return None,
        };
        let key_column = self.schema.fields().first()?.name();
        match literal {
            ScalarValue::Utf8(Some(key))
            | ScalarValue::Utf8View(Some(key))
            | ScalarValue::LargeUtf8(Some(key))
                if column.name() == key_column =>
            {
                Some(key.clone())
            }
            _ => None,
        }
    }
}

#[async_trait::async_trait]
impl TableProvider for LiveRelation {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> datafusion::common::Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| match self.key_in(filter) {
            // Exact, since a look-up returns the rows of this very key and no others.
            Some(_) => TableProviderFilterPushDown::Exact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> datafusion::common::Result<Arc<dyn ExecutionPlan>> {
        let keys: Vec<_> = filters
            .iter()
            .filter_map(|filter| self.key_in(filter))
            .collect();
        let batches = match keys.as_slice() {
            [first, rest @ ..] if rest.iter().any(|other| other != first) => Vec::new(),
            keys => {
                let read = self
                    .relations
                    .read(self.name.clone(), keys.first().cloned())
                    .await;
                read.map_err(|error| DataFusionError::External(Box::new(error)))?
            }
        };
        let schema = Arc::clone(&self.schema);
        Ok(MemorySourceConfig::try_new_exec(
            &[batches],
            schema,
            projection.cloned(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{Field, Schema};

    use super::*;

    #[derive(Debug, Default)]
    struct Fixed {
        keys_asked: Mutex<Vec<Option<String>>>,
        compacted: bool,
    }

    impl Relations for Fixed {
        fn schemas(&self) -> Vec<(String, SchemaRef)> {
            let fields = vec![
                Field::new("name", DataType::Utf8, false),
                Field::new("n", DataType::Int64, false),
            ];
            vec![("counts".to_owned(), Arc::new(Schema::new(fields)))]
        }

        fn read(
            &self,
            _: String,
            key: Option<String>,
        ) -> BoxFuture<'_, Result<Vec<RecordBatch>, ReadError>> {
            self.keys_asked.lock().unwrap().push(key.clone());
            let rows = [("a", 1), ("b", 2), ("b", 3)];
            let rows: Vec<_> = rows
                .into_iter()
                .filter(|(name, _)| key.as_deref().is_none_or(|key| key == *name))
                .collect();
            let names = StringArray::from_iter_values(rows.iter().map(|row| row.0));
            let counts = Int64Array::from_iter_values(rows.iter().map(|row| row.1));
            let schema = self.schemas().remove(0).1;
            let batch =
                RecordBatch::try_new(schema, vec![Arc::new(names), Arc::new(counts)]).unwrap();
            let answer = if self.compacted {
                Err(ReadError::Compacted)
            } else {
                Ok(vec![batch])
            };
            Box::pin(async move { answer })
        }
    }

    fn run(sql: &str, relations: &Arc<Fixed>) -> Result<String, QueryError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let relations = Arc::clone(relations);
        let answer = runtime.block_on(query(sql, relations))?;
        Ok(serde_json::to_string(&to_json(&answer.batches)?).unwrap())
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
    fn a_look_up_by_key_reads_only_that_key() {
        let relations: Arc<Fixed> = Arc::default();
        let sql = "select sum(n) as n from counts where name = 'b'";
        assert_eq!(run(sql, &relations).unwrap(), r#"[{"n":5}]"#);
        let contradiction = "select count(*) as n from counts where name = 'b' and 'a' = name";
        assert_eq!(run(contradiction, &relations).unwrap(), r#"[{"n":0}]"#);
        assert_eq!(
            *relations.keys_asked.lock().unwrap(),
            [Some("b".to_owned())]
        );
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
                matches!(run(sql, &relations), Err(QueryError::Query(_))),
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
        let schema = Fixed::default().schemas().remove(0).1;
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
}
