//! Jinja as transformers runs chat templates: its sandbox with immutable values, `trim_blocks`, `lstrip_blocks`, loop
//! controls, and what transformers adds (`generation`, `raise_exception`, `strftime_now`, its `tojson`).
//!
//! Values behave as Python's do, since a model was trained on what Python printed. Rendering is bounded in work,
//! bytes and depth, so that no template and no messages can stop a server.

mod ast;
mod builtins;
mod error;
mod filters;
mod formatting;
mod lexer;
mod methods;
mod operators;
mod parser;
mod python;
mod render;
mod sorting;
mod tests_of_values;
mod value;

pub(crate) use error::{ErrorKind, JinjaError};
pub(crate) use render::Limits;
pub(crate) use value::Value;

/// A template, ready to render. It holds no values, so that one template renders any number of
/// chats.
#[derive(Debug)]
pub(crate) struct Template {
    /// The statements of the outermost level.
    body: Vec<ast::Stmt>,
}

impl Template {
    /// Reads a template. Its nesting is bounded, and its length is bounded by the caller.
    ///
    /// # Errors
    /// If it is no Jinja.
    pub(crate) fn parse(source: &str) -> Result<Self, JinjaError> {
        Ok(Self { body: parser::parse(source)? })
    }

    /// The text that it makes of `names`; `now` is the local time that `strftime_now` shows. Of
    /// equal names the last counts. A template has no way to read a file, the clock or another
    /// template.
    ///
    /// # Errors
    /// If the template refuses the values, misuses them, or reaches a bound.
    pub(crate) fn render(
        &self,
        names: Vec<(String, Value)>,
        now: chrono::NaiveDateTime,
        limits: Limits,
    ) -> Result<String, JinjaError> {
        render::render(&self.body, names, now, limits)
    }

    /// True where some loop goes over a value or attribute of this name.
    pub(crate) fn loops_over(&self, name: &str) -> bool {
        ast::loops_over(&self.body, name)
    }
}

#[cfg(test)]
mod tests;
