//! Continuous batching over token ids.
//!
//! [`composer`] turns what a request asks for (modules, a router, a mixture) into a [`Composition`] that
//! is pinned until the request ends. [`Engine`] owns model, KV cache and scheduler on one thread; a step
//! takes rows of many requests through the decoder, with `routing` on the model's hooks. This crate
//! knows no text, no HTTP, no async and no WebAssembly.

mod beyond_linears;
mod blocks;
pub mod composer;
mod composition;
mod document;
mod engine;
mod experts;
mod feed_forwards;
pub mod gates;
mod health;
mod library_view;
mod request;
mod router_slot;
mod routing;
mod row_sample;
mod sampling;
mod scheduler;
mod shadow;
mod stats;
mod trace;

pub use composer::{
    CHAIN, ComposeError, Composer, MAX_WEIGHT, PlannedRequest, RouterError, RouterRequest,
    Selection,
};
pub use composition::{Composition, LeasedModule, RouterIdentity};
pub use document::read_document;
pub use engine::{Engine, EngineConfig, Handle, SubmitError};
pub use health::{FaultPolicy, OnFault, Standing};
pub use request::{
    Event, EventSink, FinishReason, Finished, Logprob, PromptLogprob, Reaction, Request, RequestId,
    SamplingParams, TokenEvent,
};
pub use router_slot::{Offered, ROWS_PER_STEP_TIME, RouterInfo, RouterSettings};
pub use row_sample::{RoutedRow, RoutedRows};
pub use shadow::{Agreement, Shadow};
pub use stats::{Stats, StatsSnapshot};
pub use trace::{LayerExperts, SitePicks, TraceLevel};
