//! How far back can be read.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use dataflows::change::Epoch;

use super::WINDOW;

/// Frontiers are noted this often, and a longer silence counts as no more: a machine that slept, or a
/// dataflow that stood still, must not take from a reader the epoch that it has just been given.
const STEP: Duration = Duration::from_secs(1);

/// The frontiers of late.
pub(super) struct Window {
    looked: Instant,
    /// Time, as far as it counts.
    time: Duration,
    noted: VecDeque<(Duration, Epoch)>,
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            looked: now,
            time: Duration::ZERO,
            noted: VecDeque::new(),
        }
    }

    /// Notes a frontier; returns the first epoch that is to stay readable.
    pub(super) fn readable(&mut self, now: Instant, frontier: Epoch) -> Epoch {
        self.time += now.duration_since(self.looked).min(STEP);
        self.looked = now;
        let newest = self.noted.back();
        if newest.is_none_or(|(noted, _)| *noted + STEP <= self.time) {
            self.noted.push_back((self.time, frontier));
        }
        // Who was given an epoch since the second note was given none before it.
        let old = |(noted, _): &(Duration, Epoch)| *noted + WINDOW <= self.time;
        while self.noted.get(1).is_some_and(old) {
            self.noted.pop_front();
        }
        let first = self.noted.front().filter(|first| old(first));
        // The last epoch before a frontier is the one that is given out.
        first.map_or(0, |(_, frontier)| frontier.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_stays_readable_for_a_while_after_the_next() {
        let start = Instant::now();
        let mut window = Window::new(start);
        let mut readable = 0;
        for tenth in 0..600_u32 {
            let now = start + Duration::from_millis(100) * tenth;
            let frontier = 1_000 + u64::from(tenth) * 100;
            readable = window.readable(now, frontier);
            let given_ten_seconds_ago = (frontier - 1).saturating_sub(10_000);
            assert!(
                readable <= given_ten_seconds_ago,
                "{readable} of {frontier}"
            );
        }
        assert!(readable + 12_000 > 60_900, "memory follows: {readable}");
    }

    #[test]
    fn neither_a_sleep_nor_a_leap_takes_away_what_was_just_given() {
        let start = Instant::now();
        let mut window = Window::new(start);
        for second in 0..30 {
            window.readable(start + Duration::from_secs(second), 1_000 * (second + 1));
        }
        // Given out: 29,999. Then a minute of nothing, and an epoch of a minute.
        let woken = start + Duration::from_secs(90);
        assert!(window.readable(woken, 91_000) <= 29_999);
        let soon = woken + Duration::from_millis(100);
        assert!(window.readable(soon, 91_100) <= 29_999);
    }
}
