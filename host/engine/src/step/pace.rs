//! The pace of prompts: how much of them a step may compute, while others wait for their next
//! token, or may come.
//!
//! The time is that of the prompts alone, on top of what the rows of the others take, which steps
//! without prompts show: however many streams there are, prompts go on, and a stream's next token
//! is held up by no more than that.
//!
//! A step's time follows from its rows and their positions, as attention reads all positions before
//! a row. The pace is a bound in units of a row at position 0, and follows the measured times: a
//! step that took longer than it should makes the next one smaller in proportion, one that was full
//! and quick makes it a little larger. The size of a step changes no result, as a row's bits do not
//! depend on it.

use std::time::Duration;

use polyskill_model::ModelConfig;

/// The least that a step computes of prompts, in units: prompts always go on.
const LEAST: f64 = 8.0;
/// Steps with one prompt and nothing else may take so many times the target: nobody waits yet, and
/// who comes waits for one of them at most.
const ALONE: u32 = 6;
/// Prompts for each of which a step may take the target.
const MOST_AT_ONCE: usize = 4;
/// The growth of the bound after a full and quick step.
const GROWTH: f64 = 1.2;

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
        // Scores and their sum are two products per position and feature. Attention reads its keys
        // and values for them, and gets a ninth of the arithmetic out of a core that projections
        // do: measured on SmolLM2-135M and Qwen2.5-0.5B.
        Self { scale: (products / (18.0 * width)).max(64.0) }
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

/// The bounds on prompts: one beside others, one alone.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The bound of steps in which others wait for a token.
    beside: Bound,
    /// The bound of steps with one prompt and nothing else.
    alone: Bound,
    /// Times of steps without prompts, by the logarithm of the number of streams; zero is unknown.
    streams: [Duration; MAX_LOG],
}

/// Logarithms of numbers of streams that are told apart.
const MAX_LOG: usize = 16;

impl Pace {
    /// A pace that starts at its most: the first step that takes too long sets it right. A target
    /// of zero sets no bound.
    pub(crate) fn new(target: Duration, most_beside: usize, most_alone: usize) -> Self {
        let bound = |target, most: usize| {
            let most = (most as f64).max(LEAST);
            Bound { target, limit: most, most }
        };
        let (beside, alone) = (bound(target, most_beside), bound(target * ALONE, most_alone));
        Self { beside, alone, streams: [Duration::ZERO; MAX_LOG] }
    }

    /// The cost of prompts that the next step may have; `None` where there is no bound.
    pub(crate) fn limit(&self, load: Load) -> Option<f64> {
        let bound = if load.is_alone() { &self.alone } else { &self.beside };
        (!bound.target.is_zero()).then_some((bound.limit * load.factor()).min(bound.most))
    }

    /// Takes over the time of a step with prompts of this cost.
    pub(crate) fn observe(&mut self, load: Load, prompt_cost: f64, time: Duration) {
        let log = (load.streams.max(1).ilog2() as usize).min(MAX_LOG - 1);
        if load.prompts == 0 {
            let known = &mut self.streams[log];
            *known = if known.is_zero() { time } else { (*known * 7 + time) / 8 };
            return;
        }
        let streams = if load.streams == 0 { Duration::ZERO } else { self.streams[log] };
        let bound = if load.is_alone() { &mut self.alone } else { &mut self.beside };
        let time = time.saturating_sub(streams).div_f64(load.factor());
        bound.observe(prompt_cost / load.factor(), time);
    }
}

/// The sequences of a step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Sequences that decode.
    pub(crate) streams: usize,
    /// Sequences whose prompts are read.
    pub(crate) prompts: usize,
}

impl Load {
    /// The times that several prompts may take of what one may: they wait for each other, too.
    fn factor(self) -> f64 {
        self.prompts.clamp(1, MOST_AT_ONCE) as f64
    }

    /// True where one prompt is all that runs, so that nobody waits for its steps.
    fn is_alone(self) -> bool {
        self.streams == 0 && self.prompts == 1
    }
}

/// A bound that follows the measured times.
#[derive(Debug)]
struct Bound {
    /// The time that a step should take; zero sets no bound.
    target: Duration,
    /// The bound, in units.
    limit: f64,
    /// The largest bound.
    most: f64,
}

impl Bound {
    /// Takes over the time of a step with prompts of this cost.
    fn observe(&mut self, prompt_cost: f64, time: Duration) {
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

    const BESIDE: Load = Load { streams: 3, prompts: 1 };
    const ALONE_LOAD: Load = Load { streams: 0, prompts: 1 };

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
        let mut pace = Pace::new(Duration::from_millis(20), 256, 512);
        // A machine that takes 4 ms and 0.5 ms per unit: 32 units are right.
        let time = |cost: f64| Duration::from_secs_f64(0.004 + 0.0005 * cost);
        let mut slowest = Duration::ZERO;
        for step in 0..200 {
            let cost = pace.limit(BESIDE).unwrap();
            if step > 50 {
                slowest = slowest.max(time(cost));
            }
            pace.observe(BESIDE, cost, time(cost));
        }
        assert!(slowest < Duration::from_millis(25), "{slowest:?}");
        assert!(pace.limit(BESIDE).unwrap() > 24.0);
        for _ in 0..50 {
            pace.observe(BESIDE, pace.limit(BESIDE).unwrap(), Duration::from_secs(1));
        }
        assert_eq!(pace.limit(BESIDE), Some(LEAST));
        for _ in 0..200 {
            let cost = pace.limit(ALONE_LOAD).unwrap();
            pace.observe(ALONE_LOAD, cost, time(cost));
        }
        let alone = time(pace.limit(ALONE_LOAD).unwrap());
        assert!((95..=150).contains(&alone.as_millis()), "{alone:?}");
        // What streams take by themselves is not held against prompts.
        let streams = Duration::from_millis(40);
        pace.observe(Load { streams: 2, prompts: 0 }, 0.0, streams);
        for _ in 0..200 {
            let cost = pace.limit(BESIDE).unwrap();
            pace.observe(BESIDE, cost, streams + time(cost));
        }
        assert!(pace.limit(BESIDE).unwrap() > 24.0);
        assert_eq!(Pace::new(Duration::ZERO, 64, 64).limit(ALONE_LOAD), None);
    }
}
