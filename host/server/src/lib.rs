//! The polyskill server: one frozen base model, many modules, routed per token and per site by plugins.
//!
//! A request goes [`api`] → [`service::Service`] (names → composition) → engine → tokenizer → client.

pub mod adapters_command;
pub mod api;
pub mod audit;
pub mod bench;
pub mod calibrate;
pub mod cli;
pub mod config;
pub mod eval;
pub mod experiment_command;
pub mod experiments;
pub mod generate;
pub mod metrics;
pub mod modules;
pub mod plugin_command;
pub mod pull;
pub mod record;
pub mod routers;
pub mod service;
pub mod sources;
pub mod traces;
