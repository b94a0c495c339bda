//! A module for each command.

pub mod adapters;
pub mod bench;
pub mod calibrate;
pub(crate) mod check_config;
pub mod eval;
pub mod experiment;
pub mod generate;
pub(crate) mod lines;
pub mod plugin;
pub(crate) mod pull;
pub mod record;
pub mod replay;
pub(crate) mod serve;
