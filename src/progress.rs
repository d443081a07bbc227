//! What the user sees while it works: one line that follows on a terminal, a line now and then elsewhere.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dataflows::pipelines::mentions::RELATIONS;
use models::pool::PoolStatistics;

/// Counts of one relation on this process.
#[derive(Debug, Default)]
pub struct Stage {
    /// Rows that were added.
    pub inserted: AtomicU64,
    /// Rows that were taken away.
    pub retracted: AtomicU64,
    /// Microseconds that workers spent on it.
    pub busy_us: AtomicU64,
    /// Milliseconds by which it is behind the clock.
    pub lag_ms: AtomicU64,
}

/// Counts of the whole process, for people.
#[derive(Debug, Default)]
pub struct Progress {
    records: AtomicU64,
    stages: [Stage; RELATIONS.len()],
    /// Milliseconds by which the slowest relation is behind the clock.
    lag_ms: AtomicU64,
}

impl Progress {
    /// Messages were read.
    pub fn records(&self, count: usize) {
        self.records.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// The counts of a relation.
    pub fn stage(&self, relation: &str) -> Option<&Stage> {
        let place = RELATIONS.iter().position(|known| *known == relation)?;
        Some(&self.stages[place])
    }

    /// Rows of a relation were added and taken away.
    pub fn rows(&self, relation: &str, inserted: usize, retracted: usize) {
        if let Some(stage) = self.stage(relation) {
            stage.inserted.fetch_add(inserted as u64, Ordering::Relaxed);
            stage
                .retracted
                .fetch_add(retracted as u64, Ordering::Relaxed);
        }
    }

    /// How far the slowest relation is behind the clock.
    pub fn lag(&self, lag: Duration) {
        self.lag_ms.store(lag.as_millis() as u64, Ordering::Relaxed);
    }

    fn line(&self, rate: f64, scoring: Option<PoolStatistics>) -> String {
        let mut line = format!(
            "read {} ({}/s)",
            thousands(self.read()),
            thousands(rate as u64)
        );
        let shown = ["bronze", "silver", "gold", "mention_sentiment", "rejects"];
        for (relation, stage) in RELATIONS.iter().zip(&self.stages) {
            if shown.contains(relation) {
                let inserted = stage.inserted.load(Ordering::Relaxed);
                let retracted = stage.retracted.load(Ordering::Relaxed);
                let rows = inserted.saturating_sub(retracted);
                // Writing to a string cannot fail.
                let _ = write!(line, " | {relation} {}", thousands(rows));
            }
        }
        if let Some(scoring) = scoring {
            let _ = write!(line, " | scored {}", thousands(scoring.scored));
            if scoring.waiting > 0 {
                let _ = write!(line, " ({} wait)", thousands(scoring.waiting));
            }
        }
        let lag = self.lag_ms.load(Ordering::Relaxed) as f64 / 1_000.0;
        let _ = write!(line, " | lag {lag:.1} s");
        line
    }

    /// Messages that were read.
    pub fn read(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }
}

/// A number as people read it: `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// Shows progress on standard error: repainted on a terminal, a line every ten seconds elsewhere.
pub struct Display {
    terminal: bool,
    painted: bool,
    finished: bool,
    next: Instant,
    read_before: u64,
    read_at: Instant,
}

impl Default for Display {
    fn default() -> Self {
        let terminal =
            std::io::stderr().is_terminal() && std::env::var("TERM").as_deref() != Ok("dumb");
        let now = Instant::now();
        Self {
            terminal,
            painted: false,
            finished: false,
            next: now,
            read_before: 0,
            read_at: now,
        }
    }
}

impl Display {
    /// How often a terminal's line is repainted.
    pub const INTERVAL: Duration = Duration::from_millis(500);

    /// Shows where things stand, if it is time.
    pub fn show(&mut self, progress: &Progress, scoring: Option<PoolStatistics>) {
        let now = Instant::now();
        if self.finished || now < self.next {
            return;
        }
        let read = progress.read();
        let seconds = now.duration_since(self.read_at).as_secs_f64().max(0.001);
        let line = progress.line((read - self.read_before) as f64 / seconds, scoring);
        (self.read_before, self.read_at) = (read, now);
        let mut stderr = std::io::stderr().lock();
        // A terminal that has gone away is no reason to stop working.
        let _ = if self.terminal {
            self.next = now + Self::INTERVAL;
            // A line that wrapped could not be painted over.
            let width =
                terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0));
            let shown: String = line.chars().take(width.saturating_sub(1)).collect();
            write!(stderr, "\r\x1b[2K{shown}").and_then(|()| stderr.flush())
        } else {
            self.next = now + Duration::from_secs(10);
            writeln!(stderr, "{line}")
        };
        self.painted = self.terminal;
    }

    /// Shows where things stand, and leaves the line to what is printed next.
    pub fn show_and_break(&mut self, progress: &Progress, scoring: Option<PoolStatistics>) {
        self.next = Instant::now();
        self.show(progress, scoring);
        if self.painted {
            eprintln!();
            self.painted = false;
        }
    }

    /// Shows the last state. Nothing is shown after it.
    pub fn finish(&mut self, progress: &Progress, scoring: Option<PoolStatistics>) {
        self.show_and_break(progress, scoring);
        self.finished = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let shown = [0, 999, 1_000, 1_234_567].map(thousands);
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567"]);
    }
}
