//! Routers as the engine holds them: versions, health, their view of the library, and the sample of
//! their rows.

pub(crate) mod health;
pub(crate) mod library_view;
pub(crate) mod row_log;
pub(crate) mod version;
