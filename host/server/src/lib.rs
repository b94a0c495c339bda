//! Serving: one frozen base model, many modules, routed per token and per site by plugins.
//!
//! A request goes [`api`] (as sent) → `answer` (as meant: names → composition → completion) →
//! engine → tokenizer → client.

pub(crate) mod answer;
pub mod api;
pub mod audit;
pub mod config;
pub mod experiments;
pub mod fixtures;
pub mod metrics;
pub mod modules;
pub mod routers;
pub mod serve;
pub mod service;
pub mod startup;
pub mod traces;
