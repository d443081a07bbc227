//! The files a model is made of: from a directory in Hugging Face's layout, or built in.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3Default;

use crate::ModelError;

/// The contents of a model's files.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// Where they came from, for messages.
    pub origin: String,
    /// `model.onnx`: the weights and the graph.
    pub graph: Cow<'static, [u8]>,
    /// `tokenizer.json`: how texts become tokens.
    pub tokenizer: Cow<'static, [u8]>,
    /// `config.json`: what the labels are called.
    pub config: Cow<'static, [u8]>,
    /// What some labels are to be called instead.
    pub labels: BTreeMap<String, String>,
}

impl ModelFiles {
    /// What the files are called: graph, tokenizer, configuration.
    pub const NAMES: [&'static str; 3] = ["model.onnx", "tokenizer.json", "config.json"];

    /// The sentiment model that is part of the program.
    pub fn built_in() -> Self {
        Self {
            origin: "built-in sentiment model".to_owned(),
            graph: Cow::Borrowed(include_bytes!("../sentiment/model.onnx")),
            tokenizer: Cow::Borrowed(include_bytes!("../sentiment/tokenizer.json")),
            config: Cow::Borrowed(include_bytes!("../sentiment/config.json")),
            labels: BTreeMap::new(),
        }
    }

    /// The model in a directory.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn read(directory: &Path) -> Result<Self, ModelError> {
        let read = |name: &str| {
            let path = directory.join(name);
            let refused =
                |error| ModelError(format!("cannot read \"{}\": {error}", path.display()));
            std::fs::read(&path).map(Cow::Owned).map_err(refused)
        };
        let [graph, tokenizer, config] = Self::NAMES;
        Ok(Self {
            origin: directory.display().to_string(),
            graph: read(graph)?,
            tokenizer: read(tokenizer)?,
            config: read(config)?,
            labels: BTreeMap::new(),
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
        for file in [&self.graph, &self.tokenizer, &self.config] {
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
