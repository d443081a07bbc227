//! A graph run by tract.

use std::io::Cursor;
use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;

use super::{Graph, Input};

/// What tract must know of shapes to choose its fast kernels: without it, an empty tensor would be possible, and
/// tensors of one shape would be added number by number. No more than this is made of it, so the upper bounds
/// need only be far away.
const BOUNDS: [&str; 4] = [
    "batch >= 1",
    "batch <= 65536",
    "length >= 1",
    "length <= 65536",
];

/// A graph that is ready to run.
pub(super) struct Tract {
    plan: Arc<RunnableModel<TypedFact, Box<dyn TypedOp>>>,
    inputs: Vec<Input>,
    /// What kind of numbers each input takes.
    kinds: Vec<DatumType>,
}

impl Tract {
    /// Reads `model.onnx`.
    ///
    /// # Errors
    /// If it is not the graph of a text classifier.
    pub(super) fn load(bytes: &[u8]) -> Result<Self, String> {
        Self::read(bytes).map_err(|error| format!("model.onnx: {error:#}"))
    }

    fn read(bytes: &[u8]) -> TractResult<Self> {
        let mut graph = tract_onnx::onnx().model_for_read(&mut Cursor::new(bytes))?;
        let batch = graph.symbols.sym("batch");
        let length = graph.symbols.sym("length");
        for bound in BOUNDS {
            graph.symbols.add_assertion(bound)?;
        }
        let outlets = graph.input_outlets()?.to_vec();
        let names = outlets
            .iter()
            .map(|outlet| graph.node(outlet.node).name.as_str());
        let inputs = super::inputs(names).map_err(TractError::msg)?;
        let mut kinds = Vec::new();
        for (index, outlet) in outlets.into_iter().enumerate() {
            let kind = graph.input_fact(index)?.datum_type.concretize();
            let kind = kind.unwrap_or(DatumType::I64);
            if ![DatumType::I64, DatumType::I32].contains(&kind) {
                let name = &graph.node(outlet.node).name;
                let message = format!("input \"{name}\" takes {kind:?}, not whole numbers");
                return Err(TractError::msg(message));
            }
            kinds.push(kind);
            let shape = tvec![TDim::from(batch.clone()), TDim::from(length.clone())];
            graph.set_input_fact(index, kind.fact(shape).into())?;
        }
        let outputs = graph.output_outlets()?.to_vec();
        let names: Vec<_> = outputs
            .iter()
            .map(|outlet| graph.outlet_label(*outlet).unwrap_or_default())
            .collect();
        let logits = super::logits(&names).map_err(TractError::msg)?;
        graph.select_output_outlets(&[outputs[logits]])?;
        let plan = graph
            .into_typed()?
            .into_decluttered()?
            .into_optimized()?
            .into_runnable()?;
        Ok(Self {
            plan,
            inputs,
            kinds,
        })
    }

    fn answer(
        &self,
        shape: [usize; 2],
        values: &[Vec<i64>],
    ) -> TractResult<(Vec<usize>, Vec<f32>)> {
        let inputs = self.kinds.iter().zip(values).map(|(kind, values)| {
            let values = Tensor::from_shape(&shape, values)?;
            Ok(values.cast_to_dt(*kind)?.into_owned().into())
        });
        let outputs = self.plan.run(inputs.collect::<TractResult<_>>()?)?;
        let logits = outputs[0].cast_to::<f32>()?;
        let logits = logits.to_plain_array_view::<f32>()?;
        Ok((logits.shape().to_vec(), logits.iter().copied().collect()))
    }
}

impl Graph for Tract {
    fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    fn arithmetic(&self) -> Option<&str> {
        None
    }

    fn run(
        &self,
        shape: [usize; 2],
        values: Vec<Vec<i64>>,
    ) -> Result<(Vec<usize>, Vec<f32>), String> {
        let answer = self.answer(shape, &values);
        answer.map_err(|error| format!("{error:#}"))
    }
}
