//! Frozen decoder-only transformers: loading, kernels, one decoder for every family, and the seam
//! through which modules and routers act ([`Hooks`]).
//!
//! Data flows top to bottom through these files: [`load`] reads a Hugging Face directory or a GGUF
//! file, `family` turns its configuration into the variation points of [`config`], [`decoder`] runs
//! a step of flat rows against the paged [`kv`] cache, and calls [`hooks`] wherever a module may
//! add to the base. This crate knows no module kinds, no routers and no requests; nothing outside
//! `family.rs` names a model family.
//!
//! Every kernel computes a row in the same order of operations whatever rows stand beside it, so a
//! row alone, in a batch, or in any chunk of its prompt gives the same bits.

mod attention;
pub mod compute;
pub mod config;
pub mod decoder;
mod error;
mod family;
pub mod gguf;
pub mod hooks;
pub mod kernels;
pub mod kv;
pub mod linear;
pub mod load;
pub mod moe;
mod rope;
pub mod site;

pub use compute::{ActivationBits, Compute};
pub use config::ModelConfig;
pub use decoder::{Decoder, Scratch, Step};
pub use error::Error;
pub use hooks::{ExpertOutput, ExpertSlots, Hooks, NoHooks, SiteOutput};
pub use kv::{BLOCK_POSITIONS, KvCache, KvSlot};
pub use linear::{Linear, Matrix};
pub use moe::{ExpertChoice, Experts};
pub use site::{InputGroup, Projection, Site};
