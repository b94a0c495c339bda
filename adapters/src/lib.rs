//! Modules: formats, kinds, the maths on their weights, and the hot-swappable library.
//!
//! A module is read by [`peft`] into a [`lora::Lora`], whose identity is the hash of its content
//! ([`Generation`]), with its [`card`] and its router [`artefact`]s. The [`library::Library`] maps names to
//! generations and hands out snapshots. Deltas are applied by [`apply`], the one place where a module touches
//! a hidden state. [`transform`] makes new modules out of modules, and [`inspect`] tells what they are.

pub mod apply;
pub mod artefact;
pub mod card;
mod error;
mod files;
mod generation;
pub mod inspect;
pub mod library;
pub mod lora;
pub mod peft;
pub mod prototypes;
pub mod transform;

pub use artefact::Artefact;
pub use error::Error;
pub use generation::Generation;
pub use library::{Library, Module, Snapshot};
pub use peft::Base;
