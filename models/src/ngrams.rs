//! The smallest classifier: a sum over hashed n-grams of bytes and words.
//!
//! ```text
//!  text ─▶ lower-cased words ─▶ runs of bytes, words, pairs of words ─▶ buckets ─▶ integer sums ─▶ logits
//! ```
//!
//! Each bucket holds an 8-bit weight for each label. Sums are integers, so they are the same in any order, and a score
//! is a function of its text bit for bit. `models/training/ngrams.py` trains it and takes the same features.

use std::sync::Arc;

use serde::Deserialize;

use crate::files::{Labels, ModelFiles};
use crate::{Classifier, ModelError, Prediction, Prepared, most_likely};

/// Texts that are taken together: enough to keep the cost of taking them small.
const BATCH: usize = 64;

/// Runs of so many bytes are features; a run must leave eight bytes free to shift into.
const RUNS: std::ops::RangeInclusive<u32> = 2..=6;

// Odd numbers without a pattern: the high bits of a product depend on all lower bits of what was multiplied
// (Knuth, The Art of Computer Programming, volume 3, section 6.4, multiplicative hashing).
const RUN_FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
const WORD_FACTOR: u64 = 0xC2B2_AE3D_27D4_EB4F;
const PAIR_FACTOR: u64 = 0x1656_67B1_9E37_79F9;

/// What `config.json` says besides its labels.
#[derive(Deserialize)]
struct Config {
    /// There are two to the power of this many buckets.
    bucket_bits: u32,
    /// What a label's weights are multiplied by.
    scales: Vec<f32>,
    /// What is added for a label.
    biases: Vec<f32>,
}

/// A classifier by n-grams.
pub struct NGramClassifier {
    config: Config,
    /// The weights of a bucket, one a label, follow one another.
    weights: Vec<i8>,
    labels: Vec<Arc<str>>,
    fingerprint: String,
}

impl NGramClassifier {
    /// Loads a classifier.
    ///
    /// # Errors
    /// If a file is not what it should be, or they do not agree.
    pub fn load(files: &ModelFiles) -> Result<Self, ModelError> {
        let unfit = |message: String| ModelError(format!("{}: {message}", files.origin));
        let labels = Labels::read(&files.config).map_err(unfit)?;
        let labels = labels.renamed(&files.labels).map_err(unfit)?;
        let config: Config = serde_json::from_slice(&files.config)
            .map_err(|error| unfit(format!("config.json: {error}")))?;
        if config.scales.len() != labels.len() || config.biases.len() != labels.len() {
            let message =
                "config.json: \"scales\" and \"biases\" must have a number for each label";
            return Err(unfit(message.to_owned()));
        }
        let buckets = (4..=30)
            .contains(&config.bucket_bits)
            .then(|| 1_usize << config.bucket_bits);
        let buckets = buckets
            .ok_or_else(|| unfit("config.json: \"bucket_bits\" must be from 4 to 30".to_owned()))?;
        if files.weights.len() != buckets * labels.len() {
            return Err(unfit(format!(
                "{} has {} bytes; {buckets} buckets of {} labels have {}",
                ModelFiles::NGRAMS,
                files.weights.len(),
                labels.len(),
                buckets * labels.len()
            )));
        }
        Ok(Self {
            config,
            weights: files
                .weights
                .iter()
                .map(|byte| byte.cast_signed())
                .collect(),
            labels,
            fingerprint: files.fingerprint(None),
        })
    }

    /// Adds the weights of a feature.
    fn add(&self, hash: u64, sums: &mut [i64]) {
        let bucket = (hash >> (64 - self.config.bucket_bits)) as usize;
        let weights = &self.weights[bucket * sums.len()..][..sums.len()];
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum += i64::from(*weight);
        }
    }
}

impl Classifier for NGramClassifier {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn labels(&self) -> &[Arc<str>] {
        &self.labels
    }

    fn extent(&self) -> String {
        "all of a text".to_owned()
    }

    fn batch_limit(&self) -> usize {
        BATCH
    }

    /// The sums of a text's features, and how many they are.
    fn prepare(&self, text: &str) -> Result<Prepared, ModelError> {
        let mut sums = vec![0; self.labels.len()];
        let mut count = 0;
        features(text, |hash| {
            self.add(hash, &mut sums);
            count += 1;
        });
        Ok(Prepared {
            values: sums,
            shown: count,
        })
    }

    fn classify(&self, batch: &[Prepared]) -> Result<Vec<Prediction>, ModelError> {
        let predict = |sums: &Prepared| {
            let share = 1.0 / (sums.shown.max(1) as f32).sqrt();
            let of_label = sums.values.iter().zip(&self.config.scales);
            let logits = of_label
                .zip(&self.config.biases)
                .map(|((sum, scale), bias)| *sum as f32 * scale * share + bias);
            most_likely(&self.labels, &logits.collect::<Vec<_>>())
        };
        batch.iter().map(predict).collect()
    }
}

/// Gives the hash of each feature of a text, with repetitions.
fn features(text: &str, mut give: impl FnMut(u64)) {
    let (padded, length) = normalized(text);
    for start in 0..length {
        let mut eight = [0; 8];
        eight.copy_from_slice(&padded[start..start + 8]);
        let eight = u64::from_le_bytes(eight);
        for run in RUNS.take_while(|run| start + *run as usize <= length) {
            let bytes = eight & ((1 << (8 * run)) - 1);
            give(bytes.wrapping_mul(RUN_FACTOR + 2 * u64::from(run)));
        }
    }
    let words = padded[..length].split(|byte| !is_of_word(*byte));
    let mut before = None;
    for word in words.filter(|word| !word.is_empty()) {
        let word = word.iter().fold(0_u64, |hash, byte| {
            hash.wrapping_mul(WORD_FACTOR)
                .wrapping_add(u64::from(*byte) + 1)
        });
        // The last product mixes: pairs with a word in common differ in low bits only.
        give(word.wrapping_mul(RUN_FACTOR));
        if let Some(before) = before.replace(word) {
            let pair = u64::wrapping_mul(before, PAIR_FACTOR).wrapping_add(word);
            give(pair.wrapping_mul(RUN_FACTOR));
        }
    }
}

fn is_of_word(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'\'' | 0x80..)
}

/// The words of a text behind one space each, a space at the end, and how long that is; eight zeros follow.
fn normalized(text: &str) -> (Vec<u8>, usize) {
    let mut bytes = Vec::with_capacity(text.len() + 10);
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    for word in text
        .as_bytes()
        .split(is_blank)
        .filter(|word| !word.is_empty())
    {
        bytes.push(b' ');
        let start = bytes.len();
        bytes.extend(word.iter().map(u8::to_ascii_lowercase));
        let word = &bytes[start..];
        let links: [&[u8]; 3] = [b"http://", b"https://", b"www."];
        let plain: Option<&[u8]> = match word.first() {
            Some(b'@') => Some(b"@user"),
            _ if links.iter().any(|link| word.starts_with(link)) => Some(b"http"),
            _ => None,
        };
        if let Some(plain) = plain {
            bytes.truncate(start);
            bytes.extend_from_slice(plain);
        }
    }
    if bytes.is_empty() {
        bytes.push(b' ');
    }
    bytes.push(b' ');
    let length = bytes.len();
    bytes.resize(length + 8, 0);
    (bytes, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built_in() -> NGramClassifier {
        NGramClassifier::load(&ModelFiles::built_in_fast()).unwrap()
    }

    #[test]
    fn links_names_and_blanks_are_made_alike() {
        let of = |text| {
            let (bytes, length) = normalized(text);
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        };
        assert_eq!(of("@Ada  SAYS\thttps://t.co/X?y "), " @user says http ");
        assert_eq!(of("www.example.org É\u{a0}é"), " http É\u{a0}é ");
        assert_eq!((of(""), of(" \n")), ("  ".to_owned(), "  ".to_owned()));
    }

    #[test]
    fn any_text_is_scored() {
        let model = built_in();
        for text in [
            "",
            " ",
            "a",
            "日本",
            "\u{0}\u{0}",
            &"good 😀 ".repeat(100_000),
        ] {
            let prepared = model.prepare(text).unwrap();
            assert_eq!(model.classify(&[prepared]).unwrap().len(), 1);
        }
    }

    #[test]
    fn files_that_do_not_agree_are_named() {
        let error = |change: fn(&mut ModelFiles)| {
            let mut files = ModelFiles::built_in_fast();
            change(&mut files);
            NGramClassifier::load(&files).err().unwrap().to_string()
        };
        let cut = error(|files| files.weights.to_mut().truncate(7));
        assert!(
            cut.contains("ngrams.int8 has 7 bytes; 262144 buckets"),
            "{cut}"
        );
        let labels = error(|files| {
            files.config =
                br#"{"id2label":{"0":"one"},"bucket_bits":18,"scales":[],"biases":[1.0]}"#
                    .as_slice()
                    .into();
        });
        assert!(labels.contains("a number for each label"), "{labels}");
        let bits = error(|files| {
            files.config =
                br#"{"id2label":{"0":"one"},"bucket_bits":64,"scales":[1],"biases":[1]}"#
                    .as_slice()
                    .into();
        });
        assert!(bits.contains("from 4 to 30"), "{bits}");
    }
}
