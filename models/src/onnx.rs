//! A text classifier in ONNX with a Hugging Face tokenizer, run by tract.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use serde::Deserialize;
use tokenizers::Tokenizer;
use tract_onnx::prelude::*;

use crate::files::ModelFiles;
use crate::{ModelError, Prediction};

/// Texts in a batch: more gain nothing, because the model is bound by arithmetic.
const BATCH: usize = 16;

/// Longer texts are cut to this many tokens; the model was trained on short texts.
const MAX_TOKENS: usize = 128;

/// Texts are padded to a multiple of this many tokens.
///
/// The kernels add up in an order that depends on how a row lies in memory, and with it the last
/// bit of a score. With a multiple of four tokens every text of a batch lies alike (a block of
/// attention is then a multiple of 64 bytes), so a score does not depend on the batch.
const TOKEN_MULTIPLE: usize = 4;

/// The tokens of a text, padded.
pub type Tokens = Vec<i64>;

type Graph = Arc<RunnableModel<TypedFact, Box<dyn TypedOp>>>;

/// A text classifier; shared by threads, each of which runs it at its own pace.
pub struct TextClassifier {
    graph: Graph,
    /// What the graph's inputs mean, in its order.
    inputs: Vec<Input>,
    tokenizer: Tokenizer,
    /// Stands for no token; the mask hides it.
    padding: i64,
    labels: Vec<Arc<str>>,
    fingerprint: String,
}

#[derive(Clone, Copy)]
enum Input {
    Tokens,
    /// Ones, and zeros where the tokens are padding.
    Mask,
    /// Zeros: there is one segment.
    Segments,
}

#[derive(Deserialize)]
struct Config {
    id2label: BTreeMap<usize, String>,
}

impl TextClassifier {
    /// Loads a model and tries it on one text.
    ///
    /// # Errors
    /// If a file is not what it should be, or the model and its labels do not agree.
    pub fn load(files: &ModelFiles) -> Result<Self, ModelError> {
        let origin = &files.origin;
        let config: Config = serde_json::from_slice(&files.config).map_err(|error| {
            ModelError(format!(
                "{origin}: config.json must hold \"id2label\": {error}"
            ))
        })?;
        let mut tokenizer = Tokenizer::from_bytes(&files.tokenizer)
            .map_err(ModelError::new(format!("{origin}: tokenizer.json")))?;
        // Published tokenizers pad to a fixed length, which costs time and changes scores.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(ModelError::new(format!("{origin}: tokenizer.json")))?;
        let (graph, inputs) = load_graph(&files.graph)
            .map_err(|error| ModelError(format!("{origin}: model.onnx: {error:#}")))?;
        let labels = config.id2label.into_values().map(Arc::from).collect();
        let fingerprint = files.fingerprint();
        let padding = tokenizer.token_to_id("[PAD]").map_or(0, i64::from);
        let classifier = Self {
            graph,
            inputs,
            tokenizer,
            padding,
            labels,
            fingerprint,
        };
        let trial = classifier.tokenize("a trial")?;
        classifier
            .classify(&[trial])
            .map_err(|error| ModelError(format!("{origin}: {error}")))?;
        Ok(classifier)
    }

    /// The digest of the model's files.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// How many texts may go through the model together without changing one another's scores.
    pub fn batch_limit(&self) -> usize {
        // Without a mask nothing can be padded, so texts would not all lie alike.
        if self.masked() { BATCH } else { 1 }
    }

    fn masked(&self) -> bool {
        self.inputs.iter().any(|input| matches!(input, Input::Mask))
    }

    /// The tokens of a text, at most 128 of them.
    ///
    /// # Errors
    /// If the tokenizer cannot take the text.
    pub fn tokenize(&self, text: &str) -> Result<Tokens, ModelError> {
        let encoding = self
            .tokenizer
            .encode_fast(clip(text), true)
            .map_err(ModelError::new("cannot tokenize a text"))?;
        let mut tokens: Tokens = encoding.get_ids().iter().copied().map(i64::from).collect();
        if tokens.len() > MAX_TOKENS {
            // The last token closes the text and must stay.
            let close = tokens[tokens.len() - 1];
            tokens.truncate(MAX_TOKENS - 1);
            tokens.push(close);
        }
        if self.masked() {
            tokens.resize(tokens.len().next_multiple_of(TOKEN_MULTIPLE), self.padding);
        }
        Ok(tokens)
    }

    /// Classifies texts of equally many tokens.
    ///
    /// # Errors
    /// If the model fails, which a model that has been loaded should not.
    pub fn classify(&self, batch: &[Tokens]) -> Result<Vec<Prediction>, ModelError> {
        let logits = self
            .logits(batch)
            .map_err(|error| ModelError(format!("inference: {error:#}")))?;
        logits
            .chunks(logits.len() / batch.len().max(1))
            .map(|logits| self.prediction(logits))
            .collect()
    }

    fn logits(&self, batch: &[Tokens]) -> TractResult<Vec<f32>> {
        let shape = [batch.len(), batch.first().map_or(0, Vec::len)];
        let inputs = self.inputs.iter().map(|input| {
            let values: Vec<i64> = match input {
                Input::Tokens => batch.concat(),
                Input::Mask => {
                    let shown = |token: &i64| i64::from(*token != self.padding);
                    batch.iter().flatten().map(shown).collect()
                }
                Input::Segments => vec![0; shape[0] * shape[1]],
            };
            Ok(Tensor::from_shape(&shape, &values)?.into())
        });
        let outputs = self.graph.run(inputs.collect::<TractResult<_>>()?)?;
        Ok(outputs[0]
            .to_plain_array_view::<f32>()?
            .iter()
            .copied()
            .collect())
    }

    fn prediction(&self, logits: &[f32]) -> Result<Prediction, ModelError> {
        if logits.len() != self.labels.len() {
            return Err(ModelError(format!(
                "the model tells {} labels, config.json names {}",
                logits.len(),
                self.labels.len()
            )));
        }
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
            label: Arc::clone(&self.labels[best]),
            confidence,
        })
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

fn load_graph(bytes: &[u8]) -> TractResult<(Graph, Vec<Input>)> {
    let mut graph = tract_onnx::onnx().model_for_read(&mut Cursor::new(bytes))?;
    let batch = graph.symbols.sym("batch");
    let length = graph.symbols.sym("length");
    let mut inputs = Vec::new();
    for (index, outlet) in graph.input_outlets()?.to_vec().into_iter().enumerate() {
        inputs.push(match graph.node(outlet.node).name.as_str() {
            "input_ids" => Input::Tokens,
            "attention_mask" => Input::Mask,
            "token_type_ids" => Input::Segments,
            other => return Err(TractError::msg(format!("unknown input \"{other}\""))),
        });
        let shape = tvec![TDim::from(batch.clone()), TDim::from(length.clone())];
        graph.set_input_fact(index, i64::fact(shape).into())?;
    }
    let graph = graph
        .into_typed()?
        .into_decluttered()?
        .into_optimized()?
        .into_runnable()?;
    Ok((graph, inputs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built_in() -> TextClassifier {
        TextClassifier::load(&ModelFiles::built_in()).unwrap()
    }

    fn classify_one(model: &TextClassifier, text: &str) -> Prediction {
        model
            .classify(&[model.tokenize(text).unwrap()])
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
        let model = built_in();
        for words in (1..40).step_by(4) {
            let text = |n: usize| {
                (0..words)
                    .map(|w| format!("w{} ", (n * 31 + w * 17) % 97))
                    .collect()
            };
            let texts: Vec<String> = (0..32).map(text).collect();
            let tokens = texts.iter().map(|text| model.tokenize(text).unwrap());
            let mut lengths: BTreeMap<usize, Vec<Tokens>> = BTreeMap::new();
            tokens.for_each(|tokens| lengths.entry(tokens.len()).or_default().push(tokens));
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
    fn empty_and_endless_texts_are_scored() {
        let model = built_in();
        classify_one(&model, "");
        let endless = "good 😀 ".repeat(20_000);
        assert_eq!(model.tokenize(&endless).unwrap().len(), MAX_TOKENS);
        classify_one(&model, &endless);
    }

    #[test]
    fn broken_files_are_named() {
        let error = |change: fn(&mut ModelFiles)| {
            let mut files = ModelFiles::built_in();
            change(&mut files);
            TextClassifier::load(&files).err().unwrap().to_string()
        };
        let message = error(|files| files.config = b"{}".as_slice().into());
        assert!(
            message.contains("config.json must hold \"id2label\""),
            "{message}"
        );
        let message = error(|files| files.graph = b"no graph".as_slice().into());
        assert!(message.contains("model.onnx"), "{message}");
        let message = error(|files| files.tokenizer = b"{".as_slice().into());
        assert!(message.contains("tokenizer.json"), "{message}");
        let message =
            error(|files| files.config = br#"{"id2label":{"0":"only"}}"#.as_slice().into());
        assert!(
            message.contains("3 labels, config.json names 1"),
            "{message}"
        );
    }
}
