//! A graph run by ONNX Runtime, whose library is loaded when the first one is.

use std::borrow::Cow;
use std::env;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use ort::environment::Environment;
use ort::session::{Session, SessionInputValue};
use ort::value::{Outlet, Tensor, TensorElementType};

use super::{Graph, Input};

/// The variable that names ONNX Runtime's library.
const LIBRARY: &str = "ORT_DYLIB_PATH";

/// A graph that is ready to run.
pub(super) struct OnnxRuntime {
    /// What sessions are made of.
    model: Cow<'static, [u8]>,
    inputs: Vec<Input>,
    /// What the inputs are called, and what kind of numbers each takes.
    kinds: Vec<(String, TensorElementType)>,
    /// Which of the outputs holds the logits.
    logits: usize,
    /// Sessions that no thread is using. One serves a thread at a time, so there come to be as many as threads,
    /// each with weights of its own.
    idle: Mutex<Vec<Session>>,
}

impl OnnxRuntime {
    /// Loads the library if need be, and reads `model.onnx`.
    ///
    /// # Errors
    /// If the library is missing or too old, or this is not the graph of a text classifier.
    pub(super) fn load(model: Cow<'static, [u8]>) -> Result<Self, String> {
        let environment = environment()?;
        let unfit = |error: String| format!("model.onnx: {error}");
        let session = session(environment, &model).map_err(|error| unfit(error.to_string()))?;
        let names = session.inputs().iter().map(Outlet::name);
        let inputs = super::inputs(names).map_err(unfit)?;
        let kinds = session.inputs().iter().map(kind);
        let kinds = kinds.collect::<Result<Vec<_>, _>>().map_err(unfit)?;
        let outputs: Vec<_> = session.outputs().iter().map(Outlet::name).collect();
        let logits = super::logits(&outputs).map_err(unfit)?;
        Ok(Self {
            model,
            inputs,
            kinds,
            logits,
            idle: Mutex::new(vec![session]),
        })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        // Sessions are whole wherever a thread may have panicked.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(
        &self,
        session: &mut Session,
        shape: [usize; 2],
        values: Vec<Vec<i64>>,
    ) -> ort::Result<(Vec<usize>, Vec<f32>)> {
        let named = self.kinds.iter().zip(values);
        let inputs = named.map(|((name, kind), values)| {
            let tensor = tensor(*kind, shape, values);
            tensor.map(|tensor| (name.as_str(), tensor))
        });
        let inputs = inputs.collect::<ort::Result<Vec<_>>>()?;
        let outputs = session.run(inputs)?;
        let (shape, logits) = outputs[self.logits].try_extract_tensor::<f32>()?;
        let shape = shape.iter().map(|side| *side as usize).collect();
        Ok((shape, logits.to_vec()))
    }
}

impl Graph for OnnxRuntime {
    fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    fn arithmetic(&self) -> Option<&str> {
        // Tells the very build: another may add up otherwise.
        Some(ort::info())
    }

    fn run(
        &self,
        shape: [usize; 2],
        values: Vec<Vec<i64>>,
    ) -> Result<(Vec<usize>, Vec<f32>), String> {
        // The lock must not be held while a session is made.
        let idle = self.idle().pop();
        let mut session = match idle {
            Some(session) => session,
            None => session(environment()?, &self.model).map_err(|error| error.to_string())?,
        };
        let answer = self.answer(&mut session, shape, values);
        self.idle().push(session);
        answer.map_err(|error| error.to_string())
    }
}

/// What sessions are made in; there is one in a process.
fn environment() -> Result<&'static Environment, String> {
    static ENVIRONMENT: OnceLock<Result<Environment, String>> = OnceLock::new();
    let environment = ENVIRONMENT.get_or_init(load_library);
    environment.as_ref().map_err(Clone::clone)
}

fn load_library() -> Result<Environment, String> {
    let library = env::var_os(LIBRARY).ok_or_else(|| {
        format!("{LIBRARY} must name the library of ONNX Runtime, such as libonnxruntime.so")
    })?;
    let builder = ort::init_from(library)
        .map_err(|error| format!("cannot use the library that {LIBRARY} names: {error}"))?;
    let environment = builder.with_telemetry(false).build();
    environment.map_err(|error| format!("cannot start ONNX Runtime: {error}"))
}

/// A session that computes in 32-bit floats, on the thread that runs it and no other.
fn session(environment: &Environment, model: &[u8]) -> ort::Result<Session> {
    Session::builder(environment)?
        // Weights stored as whole numbers become floats once, when the session is made, instead of what they are
        // multiplied with becoming whole numbers at every run.
        .with_quant_qdq(false)?
        .with_intra_threads(1)?
        .commit_from_memory(model)
}

/// What an input is called, and what kind of numbers it takes.
fn kind(input: &Outlet) -> Result<(String, TensorElementType), String> {
    let (name, takes) = (input.name(), input.dtype());
    match takes.tensor_type() {
        Some(kind @ (TensorElementType::Int64 | TensorElementType::Int32)) => {
            Ok((name.to_owned(), kind))
        }
        _ => Err(format!("input \"{name}\" takes {takes}, not whole numbers")),
    }
}

fn tensor(
    kind: TensorElementType,
    shape: [usize; 2],
    values: Vec<i64>,
) -> ort::Result<SessionInputValue<'static>> {
    if kind == TensorElementType::Int64 {
        return Ok(Tensor::from_array((shape, values))?.into());
    }
    // Numbers of tokens, zeros and ones are small.
    let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
    Ok(Tensor::from_array((shape, values))?.into())
}
