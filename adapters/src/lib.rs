//! Modules: formats, kinds, the maths on their weights, and the hot-swappable library.
//!
//! A module is read by [`load`], from PEFT's directories ([`peft`]), our own ([`native`]) or GGUF
//! files, into [`weights::Weights`], whose identity is the hash of its content ([`Generation`]),
//! with its [`card`] and its router [`artefact`]s. The [`library::Library`] maps names to
//! generations and hands out snapshots; [`residency`] decides whose weights are in memory. Deltas
//! are applied by [`apply`], the one place where a module touches what a linear wrote. New modules
//! are made in the crate `polyskill-workshop`.

pub mod apply;
pub mod artefact;
mod base;
pub mod budget;
pub mod card;
pub mod edits;
mod error;
pub mod files;
mod generation;
mod gguf;
mod kind;
pub mod library;
pub mod load;
pub mod lora;
pub mod mlx;
mod module;
pub mod native;
pub mod parts;
pub mod peft;
pub mod prototypes;
pub mod residency;
pub mod tensor_file;
pub mod weights;

pub use artefact::Artefact;
pub use base::Base;
pub use budget::Budget;
pub use error::Error;
pub use generation::Generation;
pub use kind::Kind;
pub use library::{Library, Snapshot};
pub use load::{generation_of, is_module, load_module, open_module};
pub use module::Module;
pub use residency::Lease;
pub use weights::Weights;
