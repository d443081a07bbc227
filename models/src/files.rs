//! The files a model is made of: from a directory in Hugging Face's layout, or built in.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use xxhash_rust::xxh3::Xxh3Default;

use crate::ModelError;

/// The contents of a model's files.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// What kind of model it is.
    pub kind: Kind,
    /// Where they came from, for messages.
    pub origin: String,
    /// `model.onnx`: the weights and the graph; or `ngrams.int8`.
    pub weights: Cow<'static, [u8]>,
    /// `tokenizer.json`: how texts become tokens; empty for n-grams.
    pub tokenizer: Cow<'static, [u8]>,
    /// `config.json`: what the labels are called.
    pub config: Cow<'static, [u8]>,
    /// What some labels are to be called instead.
    pub labels: BTreeMap<String, String>,
}

/// What kind of model it is, as `config.json` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A graph in ONNX with a tokenizer.
    Onnx,
    /// Sums over hashed n-grams.
    NGrams,
}

impl Kind {
    fn of(config: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Named {
            model_type: String,
        }
        // What else is wrong with it is told when the model is loaded.
        let named: Option<Named> = serde_json::from_slice(config).ok();
        match named {
            Some(named) if named.model_type == "hashed_ngrams" => Self::NGrams,
            _ => Self::Onnx,
        }
    }
}

impl ModelFiles {
    /// What the file is called that tells the kind and the labels.
    pub const CONFIG: &'static str = "config.json";

    /// What the weights of sums over n-grams are called.
    pub const NGRAMS: &'static str = "ngrams.int8";

    /// What the files are called of which a model must have one.
    pub const WEIGHTS: [&'static str; 2] = ["model.onnx", Self::NGRAMS];

    /// The sentiment model that is part of the program.
    pub fn built_in() -> Self {
        Self {
            kind: Kind::Onnx,
            origin: "built-in sentiment model".to_owned(),
            weights: Cow::Borrowed(include_bytes!("../sentiment/model.onnx")),
            tokenizer: Cow::Borrowed(include_bytes!("../sentiment/tokenizer.json")),
            config: Cow::Borrowed(include_bytes!("../sentiment/config.json")),
            labels: BTreeMap::new(),
        }
    }

    /// The n-gram model that is part of the program.
    pub fn built_in_fast() -> Self {
        Self {
            kind: Kind::NGrams,
            origin: "built-in n-gram model".to_owned(),
            weights: Cow::Borrowed(include_bytes!("../sentiment-ngrams/ngrams.int8")),
            tokenizer: Cow::Borrowed(b""),
            config: Cow::Borrowed(include_bytes!("../sentiment-ngrams/config.json")),
            labels: BTreeMap::new(),
        }
    }

    /// A model whose files are read by their names.
    ///
    /// # Errors
    /// Those of reading.
    pub fn from<E>(
        origin: String,
        mut read: impl FnMut(&str) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let config = read(Self::CONFIG)?;
        let kind = Kind::of(&config);
        let (weights, tokenizer) = match kind {
            Kind::Onnx => (read("model.onnx")?, read("tokenizer.json")?),
            Kind::NGrams => (read(Self::NGRAMS)?, Vec::new()),
        };
        Ok(Self {
            kind,
            origin,
            weights: weights.into(),
            tokenizer: tokenizer.into(),
            config: config.into(),
            labels: BTreeMap::new(),
        })
    }

    /// The model in a directory.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn read(directory: &Path) -> Result<Self, ModelError> {
        Self::from(directory.display().to_string(), |name| {
            let path = directory.join(name);
            let refused =
                |error| ModelError(format!("cannot read \"{}\": {error}", path.display()));
            std::fs::read(&path).map_err(refused)
        })
    }

    /// The model in a directory, or the one that is built in.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn of(directory: Option<&Path>) -> Result<Self, ModelError> {
        directory.map_or_else(|| Ok(Self::built_in()), Self::read)
    }

    /// A digest of all files and of what runs them, in hexadecimal: two models that differ anywhere have
    /// different ones.
    ///
    /// Runtimes add up in different orders, so the last bits of their scores differ. Of tract, which comes with
    /// the program, nothing is told.
    pub fn fingerprint(&self, runtime: Option<&str>) -> String {
        let mut hasher = Xxh3Default::new();
        for file in [&self.weights, &self.tokenizer, &self.config] {
            // The length keeps the end of one file apart from the start of the next.
            hasher.update(&(file.len() as u64).to_le_bytes());
            hasher.update(file);
        }
        let labels = self.labels.iter().flat_map(|(own, called)| [own, called]);
        for name in labels.map(String::as_str).chain(runtime) {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
        }
        format!("{:032x}", hasher.digest128())
    }
}

/// The labels of a model, as `config.json` names them.
#[derive(Deserialize)]
pub(crate) struct Labels {
    id2label: BTreeMap<usize, String>,
}

impl Labels {
    pub(crate) fn read(config: &[u8]) -> Result<Self, String> {
        let labels: Self = serde_json::from_slice(config)
            .map_err(|error| format!("config.json must hold \"id2label\": {error}"))?;
        if !labels.id2label.keys().copied().eq(0..labels.id2label.len()) {
            return Err("config.json: \"id2label\" must name 0, 1, 2 and so on".to_owned());
        }
        Ok(labels)
    }

    /// The labels in the model's order, those renamed that are to be.
    pub(crate) fn renamed(
        &self,
        renamed: &BTreeMap<String, String>,
    ) -> Result<Vec<Arc<str>>, String> {
        let own: Vec<_> = self.id2label.values().collect();
        if let Some(unknown) = renamed.keys().find(|label| !own.contains(label)) {
            return Err(format!("has no label \"{unknown}\"; it has {own:?}"));
        }
        let label = |own: &String| Arc::from(renamed.get(own).unwrap_or(own).as_str());
        Ok(self.id2label.values().map(label).collect())
    }
}
