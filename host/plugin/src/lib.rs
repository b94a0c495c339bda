//! Loads router plugins and keeps them in their sandbox.
//!
//! A plugin is a WebAssembly component of the WIT world `polyskill:router@0.1`, a core module or a
//! dynamic library of the flat ABI (`polyskill.h`), or a gate file without any code.
//! [`Loader::load`] reads, trusts and compiles a bundle; [`Plugin::start`] tests it on its own
//! fixtures and makes a [`LoadedRouter`](polyskill_sdk::runtime::LoadedRouter) that the engine can
//! use like any other. A sandboxed guest has fuel, a deadline and a memory cap, sees no clock,
//! randomness or I/O, and whatever it returns is checked before use.

mod bounds;
mod bundle;
mod clock;
mod component;
mod error;
mod flat;
mod gate_file;
mod inspect;
mod instance;
mod limits;
mod loader;
mod sandbox;
pub mod self_test;
pub mod signature;
mod state;
mod trust;

pub use bundle::{
    ABI, Capability, MANIFEST_FILE, Manifest, ModuleKinds, SIGNATURE_FILE, bundle_digest,
    check_name, pack,
};
pub use error::Error;
pub use inspect::{Inspection, inspect};
pub use limits::Limits;
pub use loader::{Kind, Loader, Plugin, component_of};
pub use polyskill_sdk::runtime::Fault;
pub use signature::new_key;
pub use trust::{Trust, TrustedKey, sign};
