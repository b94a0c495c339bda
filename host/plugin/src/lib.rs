//! Loads router plugins and keeps them in their sandbox.
//!
//! A plugin is a WebAssembly component of the world `polyskill:router/router@0.1` (or a core module that
//! carries its component type, which is wrapped here). [`Loader::load`] compiles it; [`Plugin::start`]
//! makes a [`LoadedRouter`](polyskill_sdk::runtime::LoadedRouter) that the engine can use like any other.
//! The guest has fuel, a deadline and a memory cap, sees no clock, randomness or I/O, and whatever it
//! returns is checked before use.

mod bundle;
mod error;
mod host;
mod limits;
mod router;

pub use bundle::Manifest;
pub use error::Error;
pub use limits::Limits;
pub use router::{Loader, Plugin};
