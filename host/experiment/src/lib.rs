//! Experiments over routers: the assignment of arms, the totals of their metrics, and the
//! conclusions that these allow.
//!
//! The crate is pure: times are passed in as unix seconds, randomness as seeds, and nothing here reads a file, a clock or
//! a socket. The flow of an experiment, in the order of the modules:
//!
//! 1. [`declaration`]: an experiment as a person writes it down before the first request, and the
//!    checks on it.
//! 2. [`assignment`]: a hash that gives each unit its arm.
//! 3. [`totals`]: the counts and sums of each arm, unit and metric.
//! 4. [`analysis`]: intervals that hold at every look, and the report with its verdict.
//! 5. [`bandit`]: arms chosen by their rewards so far; [`off_policy`]: an estimate of the rewards of
//!    another policy.
//!
//! The unit (a conversation, a user, a tenant) is what is assigned and what is analysed: requests of one unit are alike,
//! so a request is never taken for an observation of its own.

pub mod analysis;
pub mod assignment;
pub mod bandit;
pub mod declaration;
mod distributions;
pub mod off_policy;
pub mod totals;

pub use analysis::report::{Report, report};
pub use analysis::verdict::{Breach, guard_breaches};
pub use declaration::Declaration;
pub use totals::Totals;
