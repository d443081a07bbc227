//! Sessions: what a query may name, and what it may take.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList,
    MemorySchemaProvider, SchemaProvider,
};
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{
    ColumnarValue, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use crate::live::{Current, Known, LiveSchema, RelationsTable};
use crate::views::{self, WithViews};
use crate::{Answer, Condition, QueryError, Relations, codes};

/// The catalog's name, as clients see it.
pub(crate) const CATALOG: &str = "assay";

/// What one query may take, so that none harms the stream.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that it may hold in memory, its answer included where that is gathered.
    pub memory: usize,
    /// How long it may run.
    pub time: Duration,
}

/// Functions and settings, which all sessions begin with: to gather them takes longer than a look-up.
static FEATURES: LazyLock<SessionState> = LazyLock::new(|| {
    let config = SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, "public")
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(false)
        .with_target_partitions(1);
    SessionStateBuilder::new()
        .with_config(config)
        .with_default_features()
        .build()
});

/// What a query may do.
static READ_ONLY: LazyLock<SQLOptions> = LazyLock::new(|| {
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false)
});

/// Makes sure that a plan does nothing but read.
pub(crate) fn reads_alone(plan: &LogicalPlan) -> Result<(), QueryError> {
    let refused = |error: DataFusionError| QueryError::Query {
        message: error.strip_backtrace(),
        code: codes::READ_ONLY,
    };
    READ_ONLY.verify_plan(plan).map_err(refused)
}

/// The names that a query reads from, to choose an epoch that is complete for all of them.
///
/// # Errors
/// If the query is not understood.
pub fn relations_of(sql: &str) -> Result<Vec<String>, QueryError> {
    Ok(views::expanded(named_in(sql)?))
}

/// The names of relations and views in a query.
pub(crate) fn named_in(sql: &str) -> Result<Vec<String>, QueryError> {
    let dialect = FEATURES.config().options().sql_parser.dialect;
    let statement = FEATURES.sql_to_statement(sql, &dialect)?;
    let references = FEATURES.resolve_table_references(&statement)?;
    let names = references.into_iter();
    Ok(names.map(|name| name.table().to_owned()).collect())
}

/// What all sessions begin with, over these catalogs.
pub(crate) fn state(
    catalogs: Arc<dyn CatalogProviderList>,
    runtime: Option<Arc<RuntimeEnv>>,
) -> SessionState {
    let mut builder = SessionStateBuilder::new_from_existing(FEATURES.clone());
    if let Some(runtime) = runtime {
        builder = builder.with_runtime_env(runtime);
    }
    builder.with_catalog_list(catalogs).build()
}

/// A session over these relations, which reads the snapshots that are set to be current.
pub(crate) fn session(
    known: Known,
    current: &Arc<Current>,
    limits: Limits,
) -> Result<SessionContext, DataFusionError> {
    let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(GreedyMemoryPool::new(limits.memory)))
        .with_disk_manager_builder(disk)
        .build_arc()?;
    let catalogs = Arc::new(MemoryCatalogProviderList::new());
    let context = SessionContext::new_with_state(state(catalogs, Some(runtime)));
    let own = MemorySchemaProvider::new();
    let public = Arc::new(LiveSchema {
        known,
        current: Arc::clone(current),
    });
    let relations = RelationsTable::new(Arc::clone(current));
    own.register_table("relations".to_owned(), Arc::new(relations))?;
    // Views read relations alone, so these lie in a catalog of their own as well.
    let beneath = MemoryCatalogProviderList::new();
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema("public", Arc::clone(&public) as Arc<dyn SchemaProvider>)?;
    beneath.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
    let catalog = MemoryCatalogProvider::new();
    let public = WithViews::new(public, Arc::new(beneath));
    catalog.register_schema("public", Arc::new(public))?;
    catalog.register_schema(CATALOG, Arc::new(own))?;
    context.register_catalog(CATALOG, Arc::new(catalog));
    let epoch = EpochFunction::new(Arc::clone(current));
    context.register_udf(ScalarUDF::new_from_impl(epoch));
    Ok(context)
}

/// Answers a query over the relations.
///
/// # Errors
/// If the query is not understood, would change something or takes more than it may, or a relation
/// cannot be read.
pub async fn query(
    sql: &str,
    relations: Arc<dyn Relations>,
    limits: Limits,
) -> Result<Answer, QueryError> {
    let answer = tokio::time::timeout(limits.time, answer(sql, relations, limits));
    answer.await.unwrap_or_else(|_| {
        Err(QueryError::Query {
            message: format!("the query took longer than {:?}", limits.time),
            code: codes::QUERY_CANCELED,
        })
    })
}

async fn answer(
    sql: &str,
    relations: Arc<dyn Relations>,
    limits: Limits,
) -> Result<Answer, QueryError> {
    let context = context_of(relations, limits)?;
    let plan = context.state().create_logical_plan(sql).await?;
    reads_alone(&plan)?;
    let frame = context.execute_logical_plan(plan).await?;
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let mut rows = frame.execute_stream().await?;
    let (mut batches, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = rows.try_next().await? {
        bytes += batch.get_array_memory_size();
        if bytes > limits.memory {
            return Err(QueryError::Query {
                message: format!(
                    "the answer is larger than {} bytes; add a limit",
                    limits.memory
                ),
                code: codes::OUT_OF_MEMORY,
            });
        }
        batches.push(batch);
    }
    Ok(Answer { schema, batches })
}

fn context_of(
    relations: Arc<dyn Relations>,
    limits: Limits,
) -> Result<SessionContext, DataFusionError> {
    let current = Arc::<Current>::default();
    let known = Arc::clone(&relations);
    current.set(relations);
    session(Arc::new(move || known.relations()), &current, limits)
}

/// Rows of an answer as they come.
pub type AnswerStream = BoxStream<'static, Result<RecordBatch, QueryError>>;

/// All columns of a relation's rows for which a condition holds, or of all of them, as they come.
///
/// # Errors
/// If the relation is not there, or the condition does not fit it.
pub async fn rows(
    relation: &str,
    condition: Option<&Condition>,
    relations: Arc<dyn Relations>,
    limits: Limits,
) -> Result<AnswerStream, QueryError> {
    let context = context_of(relations, limits)?;
    let mut frame = context.table(relation).await?;
    if let Some(condition) = condition {
        frame = frame.filter(condition.parsed().clone())?;
    }
    let rows = frame.execute_stream().await?;
    Ok(rows.map_err(QueryError::from).boxed())
}

/// `assay_epoch()`: the epoch that the statement reads.
#[derive(Debug)]
struct EpochFunction {
    current: Arc<Current>,
    signature: Signature,
}

impl EpochFunction {
    fn new(current: Arc<Current>) -> Self {
        let signature = Signature::nullary(Volatility::Stable);
        Self { current, signature }
    }
}

// One function a session: which session it is of tells them apart.
impl PartialEq for EpochFunction {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.current, &other.current)
    }
}

impl Eq for EpochFunction {}

impl std::hash::Hash for EpochFunction {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.current).hash(state);
    }
}

impl ScalarUDFImpl for EpochFunction {
    fn name(&self) -> &str {
        "assay_epoch"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> datafusion::common::Result<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> datafusion::common::Result<ColumnarValue> {
        let epoch = self.current.get()?.epoch();
        Ok(ColumnarValue::Scalar(ScalarValue::Int64(Some(
            epoch as i64,
        ))))
    }
}
