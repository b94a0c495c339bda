//! The integration tests: parity with the reference implementations, invariants of the engine, hostile
//! input, the HTTP surface, and rules on the source.

#![expect(clippy::unwrap_used, reason = "a test ends where a fixture is not as expected")]

mod api_fields;
mod common;
mod conformance;
mod eval;
mod experiments;
mod experts;
mod feed_forwards;
mod golden;
mod hostile;
mod hostile_plugins;
mod hostile_requests;
mod hostile_text;
mod hot_swap;
mod invariants;
mod isolation;
mod library;
mod lm_eval;
mod merging;
mod older_files;
mod openai_api;
mod openai_client;
mod overload;
mod parity;
mod peft_configs;
mod plugin;
mod plugin_command;
mod pull;
mod reported;
mod reported_modules;
mod reported_requests;
mod resaved;
mod routers;
mod skills;
mod sources;
mod sources_server;
mod steppers;
mod tidy;
mod tokenizer_goldens;
mod traces;
mod zoo;
