//! Models that turn texts into labels, and the threads they run on.
//!
//! - [`evaluation`]: what predicted labels are worth.
//! - [`files`]: where a model comes from: a directory, or the one that is built in.
//! - [`onnx`]: a text classifier in ONNX with a Hugging Face tokenizer, run by tract or ONNX Runtime.
//! - [`pool`]: batches of equal length on threads of their own.
//!
//! A score is a function of its text alone: a text is padded by a rule that looks at nothing else, and a
//! batch holds texts of one length, in 32-bit floats, so a text gets the same score in any company.

pub mod evaluation;
pub mod files;
pub mod onnx;
pub mod pool;

use std::str::FromStr;
use std::sync::Arc;

use serde::de::IntoDeserializer;
use serde::{Deserialize, Serialize};

/// What runs a model's graph.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// tract, which is part of the program.
    #[default]
    Tract,
    /// ONNX Runtime, a library that is loaded with the first model.
    OnnxRuntime,
}

/// Why a program cannot load ONNX Runtime.
const LEFT_OUT: &str = "this program was built without ONNX Runtime; build it with `--features onnxruntime`, \
                        or use tract";

impl Runtime {
    /// Whether this program was built with it.
    ///
    /// # Errors
    /// If it was built without.
    pub fn built_in(self) -> Result<(), ModelError> {
        match self {
            Self::OnnxRuntime if !cfg!(feature = "onnxruntime") => {
                Err(ModelError(LEFT_OUT.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

impl FromStr for Runtime {
    type Err = serde::de::value::Error;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::deserialize(name.into_deserializer())
    }
}

/// What a model says of one text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prediction {
    /// The model's own label.
    pub label: Arc<str>,
    /// How sure it is, in parts per million.
    pub confidence: u32,
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ModelError(String);

impl ModelError {
    fn new(
        what: impl std::fmt::Display,
    ) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Self {
        move |error| Self(format!("{what}: {error}"))
    }
}
