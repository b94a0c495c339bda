//! The pace of prompts beside streams: how much of a prompt a step may compute while others wait for
//! their next token.
//!
//! A step's time follows from its rows and their positions, as attention reads all positions before a
//! row. The pace is a bound in units of a row at position 0, and follows the measured times: a step that
//! took longer than it should makes the next one smaller in proportion, one that was full and quick makes
//! it a little larger. The size of a step changes no result, as a row's bits do not depend on it.

use std::time::Duration;

use polyskill_model::ModelConfig;

/// The least that a step computes of prompts, in units: prompts always go on.
const LEAST: f64 = 8.0;
/// The growth of the bound after a full and quick step.
const GROWTH: f64 = 1.1;

/// The cost of rows, in units of a row at position 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowCost {
    /// Positions before a row that cost as much as the row itself.
    pub(crate) scale: f64,
}

impl RowCost {
    /// The costs of a base: its projections per row against attention per position.
    pub(crate) fn of(config: &ModelConfig) -> Self {
        let width = (config.num_heads * config.head_dim) as f64;
        let kv_width = (config.num_kv_heads * config.head_dim) as f64;
        let hidden = config.hidden_size as f64;
        let products =
            hidden * (2.0 * width + 2.0 * kv_width + 3.0 * config.intermediate_size as f64);
        // Scores and their sum, each a product per position and feature; attention gets about half of
        // the arithmetic out of a core that the projections do.
        Self { scale: (products / (4.0 * width)).max(64.0) }
    }

    /// The cost of `rows` rows from a position on.
    pub(crate) fn of_rows(self, from: usize, rows: usize) -> f64 {
        let (from, rows) = (from as f64, rows as f64);
        rows + (rows * from + rows * rows / 2.0) / self.scale
    }

    /// The rows from a position on that cost at most so much.
    pub(crate) fn rows_within(self, from: usize, cost: f64) -> usize {
        // rows²/2s + rows (1 + from/s) = cost
        let linear = 1.0 + from as f64 / self.scale;
        let root = (linear * linear + 2.0 * cost / self.scale).sqrt();
        ((root - linear) * self.scale) as usize
    }
}

/// The bound on prompts beside streams.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The time that a step should take; zero sets no bound.
    target: Duration,
    /// The bound, in units.
    limit: f64,
    /// The largest bound.
    most: f64,
}

impl Pace {
    /// A pace that starts at its least.
    pub(crate) fn new(target: Duration, most_rows: usize) -> Self {
        Self { target, limit: LEAST, most: (most_rows as f64).max(LEAST) }
    }

    /// The cost of prompts that the next step may have; `None` where there is no bound.
    pub(crate) fn limit(&self) -> Option<f64> {
        (!self.target.is_zero()).then_some(self.limit)
    }

    /// Takes over the time of a step with streams and with prompts of this cost.
    pub(crate) fn observe(&mut self, prompt_cost: f64, time: Duration) {
        if self.target.is_zero() || prompt_cost <= 0.0 {
            return;
        }
        let ratio = self.target.as_secs_f64() / time.as_secs_f64().max(1e-6);
        if ratio < 1.0 {
            self.limit = (prompt_cost.min(self.limit) * ratio).max(LEAST);
        } else if prompt_cost >= 0.8 * self.limit {
            self.limit = (self.limit * GROWTH).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_their_cost_agree() {
        let cost = RowCost { scale: 500.0 };
        for from in [0, 100, 4_000] {
            for rows in [1, 16, 64, 256] {
                let within = cost.rows_within(from, cost.of_rows(from, rows) + 1e-6);
                assert_eq!(within, rows, "from {from}");
            }
        }
        assert!(cost.rows_within(4_000, 64.0) < 10);
    }

    #[test]
    fn the_pace_finds_its_time_and_prompts_never_stop() {
        let mut pace = Pace::new(Duration::from_millis(20), 256);
        // A machine that takes 4 ms and 0.5 ms per unit: 32 units are right.
        let time = |cost: f64| Duration::from_secs_f64(0.004 + 0.0005 * cost);
        let mut slowest = Duration::ZERO;
        for step in 0..200 {
            let cost = pace.limit().unwrap();
            if step > 50 {
                slowest = slowest.max(time(cost));
            }
            pace.observe(cost, time(cost));
        }
        assert!(slowest < Duration::from_millis(23), "{slowest:?}");
        assert!(pace.limit().unwrap() > 24.0);
        for _ in 0..50 {
            pace.observe(pace.limit().unwrap(), Duration::from_secs(1));
        }
        assert_eq!(pace.limit(), Some(LEAST));
        assert_eq!(Pace::new(Duration::ZERO, 64).limit(), None);
    }
}
