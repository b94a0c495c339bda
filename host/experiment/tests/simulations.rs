//! Simulations: the promises of the analyses, measured with fixed seeds.

#![expect(clippy::print_stderr, reason = "the measured figures are shown with `--nocapture`")]

mod bandits;
mod common;
mod off_policy;
mod peeking;
mod power;
mod sample_ratio;
