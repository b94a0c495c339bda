//! From totals to conclusions.
//!
//! [`mean`] and [`ratio`] turn an arm's units into an [`Estimate`]; [`cuped`] narrows two of them; a [`Difference`] of two is
//! read at any time by a [`sequence`] or once, at a planned end, by [`fixed`]. [`sample_ratio`] asks whether the arms were
//! dealt as declared, [`multiple`] corrects for several comparisons, [`plan`] says how many units are needed, and
//! [`report`] puts all of it together with a [`verdict`].

mod estimate;

pub mod cuped;
pub mod fixed;
pub mod history;
pub mod mean;
pub mod multiple;
pub mod plan;
pub mod ratio;
pub mod report;
pub mod sample_ratio;
pub mod sequence;
pub mod verdict;

pub use estimate::{Difference, Estimate, Side};
