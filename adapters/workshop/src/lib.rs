//! Making and examining modules: everything that no request runs.
//!
//! [`transform`] makes new modules out of modules, [`calibration`] expert policies out of what a
//! base does, [`document`] keys and values out of a text, and [`inspect`] tells what modules are.

pub mod calibration;
pub mod document;
pub mod inspect;
pub mod transform;
