//! Models that turn texts into labels, and the threads they run on.
//!
//! - [`evaluation`]: what predicted labels are worth.
//! - [`files`]: where a model comes from: a directory, or the one that is built in.
//! - [`onnx`]: a text classifier in ONNX with a Hugging Face tokenizer, run by tract or ONNX Runtime.
//! - [`ngrams`]: a text classifier by hashed n-grams, some hundred times as fast and less often right.
//! - [`pool`]: batches of equal length on threads of their own.
//!
//! A score is a function of its text alone: a text is padded by a rule that looks at nothing else, and a
//! batch holds texts of one length, in 32-bit floats, so a text gets the same score in any company.

pub mod evaluation;
pub mod files;
pub mod ngrams;
pub mod onnx;
pub mod pool;

use std::str::FromStr;
use std::sync::Arc;

use serde::de::IntoDeserializer;
use serde::{Deserialize, Serialize};

use crate::files::{Kind, ModelFiles};
use crate::ngrams::NGramClassifier;
use crate::onnx::OnnxClassifier;

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

/// A model that labels texts, shared by threads.
pub trait Classifier: Send + Sync {
    /// The digest of the model's files and of what runs them.
    fn fingerprint(&self) -> &str;

    /// The labels, in the model's order.
    fn labels(&self) -> &[Arc<str>];

    /// How much of a text is looked at, in words.
    fn extent(&self) -> String;

    /// How many texts may go through the model together without changing one another's scores.
    fn batch_limit(&self) -> usize;

    /// What can be done with a text by itself.
    ///
    /// # Errors
    /// If the model cannot take the text.
    fn prepare(&self, text: &str) -> Result<Prepared, ModelError>;

    /// Classifies prepared texts of one length.
    ///
    /// # Errors
    /// If the model fails, which a model that has been loaded should not.
    fn classify(&self, batch: &[Prepared]) -> Result<Vec<Prediction>, ModelError>;
}

/// Loads a model of any kind and tries it.
///
/// # Errors
/// If a file is not what it should be, the model and its labels do not agree, or the runtime is not there.
pub fn load(files: &ModelFiles, runtime: Runtime) -> Result<Box<dyn Classifier>, ModelError> {
    Ok(match files.kind {
        Kind::Onnx => Box::new(OnnxClassifier::load(files, runtime)?),
        Kind::NGrams => Box::new(NGramClassifier::load(files)?),
    })
}

/// A text as its model takes it: the tokens, padded, or the sums of its features.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prepared {
    values: Vec<i64>,
    /// How many tokens are no padding, or how many features were added up.
    shown: usize,
}

impl Prepared {
    /// How many numbers there are: only texts of one length go through a model together.
    pub fn length(&self) -> usize {
        self.values.len()
    }
}

/// The label with the greatest logit, and its probability.
fn most_likely(labels: &[Arc<str>], logits: &[f32]) -> Result<Prediction, ModelError> {
    let (best, greatest) = logits
        .iter()
        .copied()
        .enumerate()
        .max_by(|(_, one), (_, other)| one.total_cmp(other))
        .ok_or_else(|| ModelError("the model tells no labels".to_owned()))?;
    // Softmax, with the greatest logit taken out so that nothing overflows.
    let sum: f32 = logits.iter().map(|logit| (logit - greatest).exp()).sum();
    let confidence = (1_000_000.0 / sum).round() as u32;
    Ok(Prediction {
        label: Arc::clone(&labels[best]),
        confidence,
    })
}

/// What a model says of one text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prediction {
    /// The model's own label; empty if the text cannot be scored.
    pub label: Arc<str>,
    /// How sure it is, in parts per million.
    pub confidence: u32,
}

impl Prediction {
    /// What is said of a text that cannot be scored.
    pub(crate) fn none() -> Self {
        Self {
            label: "".into(),
            confidence: 0,
        }
    }
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
