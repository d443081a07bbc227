//! What a model's labels are worth, beside the right ones.
//!
//! Precision, recall and F1 as in C. J. van Rijsbergen, Information Retrieval (1979), chapter 7. What is not
//! defined, because a label was never predicted or never given, counts as 0 in the averages, so that a label
//! that is never predicted shows.

use std::collections::BTreeMap;

/// How often each label was predicted where each was given.
///
/// ```
/// use models::evaluation::Confusion;
/// let mut confusion = Confusion::default();
/// confusion.add("positive", "positive", 3);
/// confusion.add("positive", "negative", 1);
/// confusion.add("negative", "negative", 1);
/// assert_eq!(confusion.accuracy(), 0.8);
/// let scores = confusion.scores();
/// assert_eq!((scores[0].label.as_str(), scores[0].precision, scores[0].recall), ("negative", 0.5, 1.0));
/// assert_eq!(confusion.mean().recall, 0.875);
/// assert_eq!(confusion.weighted_mean().recall, 0.8);
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Confusion {
    counts: BTreeMap<String, BTreeMap<String, u64>>,
}

/// How well one label is predicted, or all on average.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// The label.
    pub label: String,
    /// Of those predicted as this, the share that are; 0 if none is.
    pub precision: f64,
    /// Of those that are this, the share predicted as such; 0 if there is none.
    pub recall: f64,
    /// The harmonic mean of both.
    pub f1: f64,
    /// How many are this.
    pub given: u64,
}

impl Confusion {
    /// Counts some rows more with these labels.
    pub fn add(&mut self, given: &str, predicted: &str, rows: u64) {
        for label in [given, predicted] {
            if !self.counts.contains_key(label) {
                self.counts.insert(label.to_owned(), BTreeMap::new());
            }
        }
        let of_given = self.counts.entry(given.to_owned()).or_default();
        *of_given.entry(predicted.to_owned()).or_default() += rows;
    }

    /// All labels that were given or predicted, in order.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.counts.keys().map(String::as_str)
    }

    /// How many rows carry both labels.
    pub fn count(&self, given: &str, predicted: &str) -> u64 {
        let count = self.counts.get(given).and_then(|row| row.get(predicted));
        count.copied().unwrap_or_default()
    }

    /// How many rows were given a label.
    pub fn given(&self, label: &str) -> u64 {
        self.labels().map(|other| self.count(label, other)).sum()
    }

    /// How many rows a label was predicted for.
    pub fn predicted(&self, label: &str) -> u64 {
        self.labels().map(|other| self.count(other, label)).sum()
    }

    /// How many rows there are.
    pub fn total(&self) -> u64 {
        self.labels().map(|label| self.given(label)).sum()
    }

    /// The share of rows whose labels agree; 0 if there are none.
    pub fn accuracy(&self) -> f64 {
        let right = self.labels().map(|label| self.count(label, label)).sum();
        share(right, self.total())
    }

    /// How well each label is predicted, in the order of [`Confusion::labels`].
    pub fn scores(&self) -> Vec<Scores> {
        let scores = self.labels().map(|label| {
            let right = self.count(label, label);
            let given = self.given(label);
            let predicted = self.predicted(label);
            Scores {
                label: label.to_owned(),
                precision: share(right, predicted),
                recall: share(right, given),
                f1: share(2 * right, predicted + given),
                given,
            }
        });
        scores.collect()
    }

    /// How well each label is predicted, then the means: over labels as `macro`, and each as often as it was given as
    /// `weighted`.
    pub fn scores_and_means(&self) -> Vec<Scores> {
        let mut scores = self.scores();
        scores.extend([self.mean(), self.weighted_mean()]);
        scores
    }

    /// The mean over labels.
    pub fn mean(&self) -> Scores {
        self.average("macro", |_| 1)
    }

    /// The mean over labels, each as often as it was given.
    pub fn weighted_mean(&self) -> Scores {
        self.average("weighted", |scores| scores.given)
    }

    fn average(&self, label: &str, weight: impl Fn(&Scores) -> u64) -> Scores {
        let scores = self.scores();
        let weights: u64 = scores.iter().map(&weight).sum();
        let mean = |value: fn(&Scores) -> f64| {
            let weighted = scores
                .iter()
                .map(|scores| value(scores) * weight(scores) as f64);
            // A sum of nothing is 0, and stays so.
            weighted.sum::<f64>() / weights.max(1) as f64
        };
        Scores {
            label: label.to_owned(),
            precision: mean(|scores| scores.precision),
            recall: mean(|scores| scores.recall),
            f1: mean(|scores| scores.f1),
            given: self.total(),
        }
    }
}

/// How far a model's confidence can be taken at its word: the expected calibration error over 15 equal bins of
/// C. Guo et al., On Calibration of Modern Neural Networks (2017), section 2.
///
/// ```
/// use models::evaluation::Calibration;
/// let mut calibration = Calibration::default();
/// for row in 0..10 {
///     calibration.add(700_000, row < 7);
/// }
/// assert!(calibration.error() < 1e-9);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    bins: [Bin; 15],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    rows: u64,
    right: u64,
    /// In parts per million.
    confidence: u64,
}

impl Calibration {
    /// Counts a row of which the model was so sure, in parts per million, and was right or not.
    pub fn add(&mut self, confidence: u32, right: bool) {
        let confidence = u64::from(confidence.min(1_000_000));
        let bins = self.bins.len() as u64;
        // A confidence on the border belongs below it.
        let place = (confidence * bins).saturating_sub(1) / 1_000_000;
        let bin = &mut self.bins[place as usize];
        bin.rows += 1;
        bin.right += u64::from(right);
        bin.confidence += confidence;
    }

    /// The mean distance of confidence from accuracy, between 0 and 1; 0 if there are no rows.
    pub fn error(&self) -> f64 {
        let rows: u64 = self.bins.iter().map(|bin| bin.rows).sum();
        let distance = |bin: &Bin| (bin.right as f64 - bin.confidence as f64 / 1e6).abs();
        self.bins.iter().map(distance).sum::<f64>() / rows.max(1) as f64
    }
}

fn share(part: u64, of: u64) -> f64 {
    match of {
        0 => 0.0,
        of => part as f64 / of as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_scores_nothing() {
        let nothing = Confusion::default();
        assert_eq!((nothing.total(), nothing.accuracy()), (0, 0.0));
        assert!(nothing.scores().is_empty());
        assert_eq!(nothing.mean().f1, 0.0);
    }

    #[test]
    fn a_braggart_is_found_out() {
        let mut calibration = Calibration::default();
        assert_eq!(calibration.error(), 0.0);
        (0..4).for_each(|row| calibration.add(1_000_000, row < 2));
        (0..4).for_each(|row| calibration.add(0, row < 2));
        assert!((calibration.error() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_label_that_is_never_predicted_pulls_the_average_down() {
        let mut confusion = Confusion::default();
        confusion.add("a", "a", 2);
        confusion.add("b", "a", 2);
        let average = confusion.mean();
        assert_eq!((average.precision, average.recall), (0.25, 0.5));
        assert_eq!(confusion.weighted_mean().precision, 0.25);
        let scores = confusion.scores();
        assert!((scores[0].f1 - 2.0 / 3.0).abs() < 1e-12 && scores[1].f1 == 0.0);
    }
}
