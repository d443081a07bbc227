//! Conditions by themselves.

use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::prelude::SessionContext;

use crate::{QueryError, codes};

/// A condition on the columns of a relation, as after `where`.
#[derive(Debug)]
pub struct Condition {
    parsed: Expr,
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
        let evaluated = context.create_physical_expr(parsed.clone(), &columns)?;
        if evaluated.data_type(schema)? != DataType::Boolean {
            let message = format!("\"{condition}\" is no condition: it is neither true nor false");
            let code = codes::DATATYPE_MISMATCH;
            return Err(QueryError::Query { message, code });
        }
        Ok(Self {
            parsed,
            evaluated,
            literals,
        })
    }

    pub(crate) fn parsed(&self) -> &Expr {
        &self.parsed
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
        held.ok_or_else(|| QueryError::Query {
            message: "the condition is neither true nor false".to_owned(),
            code: codes::DATATYPE_MISMATCH,
        })
    }
}
