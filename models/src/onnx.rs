//! A text classifier in ONNX with a Hugging Face tokenizer.
//!
//! What runs its graph lies in a file each: `tract`, and `onnxruntime` for programs that were built with it.

#[cfg(feature = "onnxruntime")]
mod onnxruntime;
mod tract;

use std::sync::Arc;

use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::files::{Labels, ModelFiles};
use crate::{Classifier, ModelError, Prediction, Prepared, Runtime, most_likely};

/// Texts in a batch: more gain nothing, because the model is bound by arithmetic.
const BATCH: usize = 16;

/// Longer texts are cut to this many tokens, or fewer if the model takes no more: texts are short.
const MAX_TOKENS: usize = 128;

/// Texts are padded to a multiple of this many tokens.
///
/// The kernels add up in an order that depends on how a row lies in memory, and with it the last
/// bit of a score. With a multiple of four tokens every text of a batch lies alike (a block of
/// attention is then a multiple of 64 bytes), so a score does not depend on the batch.
const TOKEN_MULTIPLE: usize = 4;

/// A graph with its weights, ready to run, on several threads at a time.
///
/// It computes in 32-bit floats, whatever the weights are stored as.
trait Graph: Send + Sync {
    /// What it is given, in its order.
    fn inputs(&self) -> &[Input];

    /// What tells its arithmetic apart from that of others; nothing for tract's.
    fn arithmetic(&self) -> Option<&str>;

    /// Runs it on values for each input, all of this shape of texts and tokens; returns the logits, behind
    /// their shape.
    fn run(
        &self,
        shape: [usize; 2],
        values: Vec<Vec<i64>>,
    ) -> Result<(Vec<usize>, Vec<f32>), String>;
}

/// A text classifier; shared by threads, each of which runs it at its own pace.
pub struct OnnxClassifier {
    graph: Box<dyn Graph>,
    tokenizer: Tokenizer,
    /// Stands for no token; the mask hides it.
    padding: i64,
    max_tokens: usize,
    labels: Vec<Arc<str>>,
    batch_limit: usize,
    fingerprint: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Input {
    Tokens,
    /// Ones, and zeros where the tokens are padding.
    Mask,
    /// Zeros: there is one segment.
    Segments,
}

impl Input {
    fn of(name: &str) -> Result<Self, String> {
        match name {
            "input_ids" => Ok(Self::Tokens),
            "attention_mask" => Ok(Self::Mask),
            "token_type_ids" => Ok(Self::Segments),
            other => Err(format!(
                "unknown input \"{other}\"; those of a text classifier are input_ids, attention_mask and \
                 token_type_ids"
            )),
        }
    }

    /// What it is given for these texts, which have this many tokens each.
    fn values(self, batch: &[Prepared], length: usize) -> Vec<i64> {
        let mut values = Vec::with_capacity(batch.len() * length);
        for tokens in batch {
            match self {
                Self::Tokens => values.extend(&tokens.values),
                Self::Mask => {
                    values.extend((0..length).map(|place| i64::from(place < tokens.shown)));
                }
                Self::Segments => values.resize(values.len() + length, 0),
            }
        }
        values
    }
}

/// What a graph's inputs mean, by their names.
fn inputs<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<Input>, String> {
    let inputs = names.map(Input::of).collect::<Result<Vec<_>, _>>()?;
    if !inputs.contains(&Input::Tokens) {
        return Err("there is no input \"input_ids\"".to_owned());
    }
    Ok(inputs)
}

/// Which of a graph's outputs holds the logits: the only one, or the one called so.
fn logits(outputs: &[&str]) -> Result<usize, String> {
    if outputs.len() == 1 {
        return Ok(0);
    }
    let named = outputs.iter().position(|name| *name == "logits");
    named.ok_or_else(|| "there are several outputs, none of which is called \"logits\"".to_owned())
}

fn load_graph(files: &ModelFiles, runtime: Runtime) -> Result<Box<dyn Graph>, String> {
    match runtime {
        Runtime::Tract => Ok(Box::new(tract::Tract::load(&files.weights)?)),
        #[cfg(feature = "onnxruntime")]
        Runtime::OnnxRuntime => {
            let graph = onnxruntime::OnnxRuntime::load(files.weights.clone())?;
            Ok(Box::new(graph))
        }
        #[cfg(not(feature = "onnxruntime"))]
        Runtime::OnnxRuntime => Err(crate::LEFT_OUT.to_owned()),
    }
}

/// What `config.json` says, under the names of Hugging Face's transformers.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    model_type: String,
    #[serde(default)]
    problem_type: Option<String>,
    #[serde(default)]
    pad_token_id: Option<i64>,
    #[serde(default)]
    max_position_embeddings: Option<usize>,
}

impl Config {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let config: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("config.json: {error}"))?;
        if config.problem_type.as_deref() == Some("multi_label_classification") {
            return Err(
                "config.json: the model gives a text several labels; one with one label a text is needed"
                    .to_owned(),
            );
        }
        Ok(config)
    }

    /// How many tokens a text may have.
    fn max_tokens(&self) -> usize {
        let Some(positions) = self.max_position_embeddings else {
            return MAX_TOKENS;
        };
        // RoBERTa's kind counts positions from behind the padding's.
        let before = match self.model_type.contains("roberta") || self.model_type == "camembert" {
            true => self.pad_token_id.unwrap_or(1) + 1,
            false => 0,
        };
        let positions = positions.saturating_sub(usize::try_from(before).unwrap_or_default());
        (positions.min(MAX_TOKENS) / TOKEN_MULTIPLE * TOKEN_MULTIPLE).max(TOKEN_MULTIPLE)
    }
}

/// What a tokenizer pads with, if it says so.
fn own_padding(tokenizer: &Tokenizer) -> Option<i64> {
    let named = || {
        ["[PAD]", "<pad>"]
            .iter()
            .find_map(|name| tokenizer.token_to_id(name))
    };
    let id = tokenizer.get_padding().map(|padding| padding.pad_id);
    id.or_else(named).map(i64::from)
}

impl OnnxClassifier {
    /// Loads a model and tries it on some texts.
    ///
    /// # Errors
    /// If a file is not what it should be, the model and its labels do not agree, or the runtime is not there.
    pub fn load(files: &ModelFiles, runtime: Runtime) -> Result<Self, ModelError> {
        let origin = &files.origin;
        let unfit = |message: String| ModelError(format!("{origin}: {message}"));
        let labels = Labels::read(&files.config).map_err(unfit)?;
        let labels = labels.renamed(&files.labels).map_err(unfit)?;
        let config = Config::read(&files.config).map_err(unfit)?;
        let mut tokenizer = Tokenizer::from_bytes(&files.tokenizer)
            .map_err(ModelError::new(format!("{origin}: tokenizer.json")))?;
        let padding = config.pad_token_id.or_else(|| own_padding(&tokenizer));
        // Published tokenizers pad to a fixed length, which costs time and changes scores.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(ModelError::new(format!("{origin}: tokenizer.json")))?;
        let graph = load_graph(files, runtime).map_err(unfit)?;
        let fingerprint = files.fingerprint(graph.arithmetic());
        let mut classifier = Self {
            graph,
            tokenizer,
            padding: padding.unwrap_or_default(),
            max_tokens: config.max_tokens(),
            labels,
            batch_limit: 1,
            fingerprint,
        };
        classifier.batch_limit = classifier.try_out().map_err(|error| unfit(error.0))?;
        Ok(classifier)
    }

    fn masked(&self) -> bool {
        self.graph.inputs().contains(&Input::Mask)
    }

    /// Classifies some texts, alone and in company; returns how many may go together.
    ///
    /// Without a mask nothing can be padded, so texts would not all lie alike. And a model that takes a scale
    /// from all that it is given, as dynamic quantisation does, scores a text by its company; so does one that a
    /// runtime adds up otherwise when there is a single text.
    fn try_out(&self) -> Result<usize, ModelError> {
        let trial = self.prepare("a day like no other, and then some more of it")?;
        self.classify(std::slice::from_ref(&trial))?;
        if !self.masked() {
            return Ok(1);
        }
        for length in [TOKEN_MULTIPLE * 3, TOKEN_MULTIPLE * 9] {
            let length = length.min(self.max_tokens);
            let batch: Vec<_> = (0..BATCH)
                .map(|row| {
                    let shown = length - row % TOKEN_MULTIPLE;
                    let words = trial.values[..trial.shown].iter().cycle().skip(row);
                    let mut ids: Vec<_> = words.copied().take(shown).collect();
                    ids.resize(length, self.padding);
                    Prepared { values: ids, shown }
                })
                .collect();
            let together = self.run(&batch)?;
            // Texts with every amount of padding; and several, because sums may agree by chance.
            for row in (0..BATCH).step_by(TOKEN_MULTIPLE + 1) {
                let alone = self.run(&batch[row..=row])?;
                if together.chunks(alone.len()).nth(row) != Some(&alone) {
                    return Ok(1);
                }
            }
        }
        Ok(BATCH)
    }

    /// A number a label and text.
    fn run(&self, batch: &[Prepared]) -> Result<Vec<f32>, ModelError> {
        let length = batch.first().map_or(0, Prepared::length);
        let inputs = self.graph.inputs().iter();
        let values = inputs.map(|input| input.values(batch, length)).collect();
        let logits = self.graph.run([batch.len(), length], values);
        let (shape, logits) = logits.map_err(|error| ModelError(format!("inference: {error}")))?;
        if shape != [batch.len(), self.labels.len()] {
            return Err(ModelError(format!(
                "the model answers {} texts with numbers of shape {shape:?}; config.json names {} labels",
                batch.len(),
                self.labels.len()
            )));
        }
        if logits.iter().any(|logit| logit.is_nan()) {
            let message = "the model answers with what is no number";
            return Err(ModelError(message.to_owned()));
        }
        Ok(logits)
    }
}

impl Classifier for OnnxClassifier {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn labels(&self) -> &[Arc<str>] {
        &self.labels
    }

    fn extent(&self) -> String {
        format!("{} tokens of a text at most", self.max_tokens)
    }

    fn batch_limit(&self) -> usize {
        self.batch_limit
    }

    /// The tokens of a text, at most as many as are looked at.
    fn prepare(&self, text: &str) -> Result<Prepared, ModelError> {
        let encoding = self
            .tokenizer
            .encode_fast(clip(text), true)
            .map_err(ModelError::new("cannot tokenize a text"))?;
        let mut ids: Vec<_> = encoding.get_ids().iter().copied().map(i64::from).collect();
        if ids.len() > self.max_tokens {
            // The last token closes the text and must stay.
            let close = ids[ids.len() - 1];
            ids.truncate(self.max_tokens - 1);
            ids.push(close);
        }
        let shown = ids.len();
        if self.masked() {
            ids.resize(shown.next_multiple_of(TOKEN_MULTIPLE), self.padding);
        }
        Ok(Prepared { values: ids, shown })
    }

    fn classify(&self, batch: &[Prepared]) -> Result<Vec<Prediction>, ModelError> {
        let logits = self.run(batch)?;
        logits
            .chunks(self.labels.len())
            .map(|logits| most_likely(&self.labels, logits))
            .collect()
    }
}

/// The start of a text that is certain to hold more tokens than are used.
///
/// A megabyte of text must not cost a megabyte of tokenizing. A token of the vocabulary has fewer
/// than 64 bytes, so what is cut off lies beyond [`MAX_TOKENS`]; only a run of blanks could tell.
fn clip(text: &str) -> &str {
    const ENOUGH: usize = MAX_TOKENS * 64;
    &text[..text.floor_char_boundary(ENOUGH)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    fn built_in() -> OnnxClassifier {
        load(&ModelFiles::built_in()).unwrap()
    }

    fn load(files: &ModelFiles) -> Result<OnnxClassifier, ModelError> {
        OnnxClassifier::load(files, Runtime::Tract)
    }

    fn classify_one(model: &dyn Classifier, text: &str) -> Prediction {
        model
            .classify(&[model.prepare(text).unwrap()])
            .unwrap()
            .remove(0)
    }

    #[test]
    fn plain_sentiment_is_recognised() {
        let model = built_in();
        assert_eq!(
            &*classify_one(&model, "I love this, what a wonderful day!").label,
            "positive"
        );
        assert_eq!(
            &*classify_one(&model, "this is terrible, I hate it").label,
            "negative"
        );
    }

    #[test]
    fn a_score_does_not_depend_on_its_company() {
        keeps_scores_apart(&built_in());
    }

    fn keeps_scores_apart(model: &OnnxClassifier) {
        for words in (1..40).step_by(4) {
            let text = |n: usize| {
                (0..words)
                    .map(|w| format!("w{} ", (n * 31 + w * 17) % 97))
                    .collect()
            };
            let texts: Vec<String> = (0..32).map(text).collect();
            let tokens = texts.iter().map(|text| model.prepare(text).unwrap());
            let mut lengths: BTreeMap<usize, Vec<Prepared>> = BTreeMap::new();
            tokens.for_each(|tokens| lengths.entry(tokens.length()).or_default().push(tokens));
            for batch in lengths
                .values()
                .flat_map(|tokens| tokens.chunks(model.batch_limit()))
            {
                let alone = batch.iter().map(|tokens| {
                    model
                        .classify(std::slice::from_ref(tokens))
                        .unwrap()
                        .remove(0)
                });
                assert_eq!(
                    alone.collect::<Vec<_>>(),
                    model.classify(batch).unwrap(),
                    "{words} words"
                );
            }
        }
    }

    #[test]
    fn only_padding_is_hidden_whatever_pads() {
        // As of RoBERTa's kind, where 0 is a token like any other.
        let model = built_in();
        let first = model.prepare("so it is").unwrap().values[0];
        let mut files = ModelFiles::built_in();
        let mut config: serde_json::Value = serde_json::from_slice(&files.config).unwrap();
        config["pad_token_id"] = first.into();
        files.config = config.to_string().into_bytes().into();
        let other = load(&files).unwrap();
        for text in [
            "so it is",
            "this is terrible",
            "I love this, what a wonderful day!",
        ] {
            assert_eq!(
                classify_one(&model, text),
                classify_one(&other, text),
                "{text}"
            );
        }
    }

    /// Needs the library that ORT_DYLIB_PATH names.
    #[cfg(feature = "onnxruntime")]
    #[test]
    fn onnx_runtime_agrees_with_tract() {
        let tract = built_in();
        let other = OnnxClassifier::load(&ModelFiles::built_in(), Runtime::OnnxRuntime).unwrap();
        assert_ne!(tract.fingerprint(), other.fingerprint());
        for text in ["", "this is terrible", "I love this, what a wonderful day!"] {
            let (one, same) = (classify_one(&tract, text), classify_one(&other, text));
            assert_eq!(one.label, same.label, "{text}");
            assert!(one.confidence.abs_diff(same.confidence) < 100, "{text}");
        }
        keeps_scores_apart(&other);
    }

    #[test]
    fn scores_are_those_of_the_framework_that_trained_the_model() {
        #[derive(Deserialize)]
        struct Reference {
            text: String,
            probabilities: Vec<f64>,
        }
        for name in ["sentiment", "sentiment-fast", "sentiment-ngrams"] {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
            let files = ModelFiles::read(&directory).unwrap();
            let model = crate::load(&files, Runtime::Tract).unwrap();
            let references = std::fs::read(directory.join("reference.json")).unwrap();
            let references: Vec<Reference> = serde_json::from_slice(&references).unwrap();
            assert!(references.len() >= 20);
            for Reference {
                text,
                probabilities,
            } in references
            {
                let most = probabilities.iter().copied().fold(0.0, f64::max);
                let label = probabilities.iter().position(|one| *one == most).unwrap();
                let prediction = classify_one(&*model, &text);
                assert_eq!(*prediction.label, *model.labels()[label], "{name}: {text}");
                let confidence = f64::from(prediction.confidence) / 1e6;
                assert!(
                    (confidence - most).abs() < 1e-4,
                    "{name}: {text}: {confidence}, not {most}"
                );
            }
        }
    }

    #[test]
    fn empty_and_endless_texts_are_scored() {
        let model = built_in();
        classify_one(&model, "");
        let endless = "good 😀 ".repeat(20_000);
        assert_eq!(model.prepare(&endless).unwrap().length(), MAX_TOKENS);
        classify_one(&model, &endless);
    }

    #[test]
    fn broken_files_are_named() {
        let error = |change: fn(&mut ModelFiles)| {
            let mut files = ModelFiles::built_in();
            change(&mut files);
            load(&files).err().unwrap().to_string()
        };
        let message = error(|files| files.config = b"{}".as_slice().into());
        assert!(
            message.contains("config.json must hold \"id2label\""),
            "{message}"
        );
        let message = error(|files| files.weights = b"no graph".as_slice().into());
        assert!(message.contains("model.onnx"), "{message}");
        let message = error(|files| files.tokenizer = b"{".as_slice().into());
        assert!(message.contains("tokenizer.json"), "{message}");
        let message =
            error(|files| files.config = br#"{"id2label":{"0":"only"}}"#.as_slice().into());
        assert!(
            message.contains("shape [1, 3]; config.json names 1 labels"),
            "{message}"
        );
    }
}
