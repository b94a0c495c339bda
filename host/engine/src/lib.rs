//! Continuous batching over token ids.
//!
//! [`compose`] turns what a request asks for (modules, a router, a mixture) into a [`Composition`]
//! that is pinned until the request ends, on the caller's thread; `routers` are the plugins that it
//! asks. [`Engine`] owns model, KV cache and scheduler on one thread: `step` is the order of its
//! turns, with `hooks` on the model's. This crate knows no text, no HTTP, no async and no
//! WebAssembly.

pub mod compose;
pub mod hooks;
mod identity;
mod request;
mod routers;
mod stats;
mod step;

pub use compose::composition::{Composition, NamedModule, RouterIdentity};
pub use compose::{
    CHAIN, ComposeError, Composer, MAX_WEIGHT, PlannedRequest, RouterError, RouterRequest,
    Selection,
};
pub use hooks::shadow::{Agreement, Shadow};
pub use request::{
    Event, FinishReason, Finished, Logprob, PromptLogprob, Reaction, Request, RequestId,
    SamplingParams, TokenEvent,
};
pub use routers::health::{FaultPolicy, MAX_FAULTS, OnFault, Standing};
pub use routers::row_log::{RoutedRow, RoutedRows};
pub use routers::version::{Offered, ROWS_PER_STEP_TIME, RouterInfo, RouterSettings};
pub use stats::{Stats, StatsSnapshot};
pub use step::trace::{LayerExperts, SitePicks, TraceLevel};
pub use step::{Completed, Engine, EngineConfig, Events, Handle, SubmitError};
