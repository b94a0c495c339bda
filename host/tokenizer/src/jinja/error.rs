//! Errors of templates, with Python's kinds and messages.

/// An error of a template, with the line where it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JinjaError {
    /// The kind, by which callers tell a broken template from a refusal.
    pub(crate) kind: ErrorKind,
    /// The message, which may show parts of values; at most some 2,000 bytes.
    pub(crate) message: String,
    /// From 1; 0 while it is not known.
    pub(crate) line: u32,
}

/// The kinds of errors, named as in Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// The template is no Jinja.
    Syntax,
    /// `raise_exception`: the template itself refuses its input.
    Raised,
    /// A value that is not defined was used.
    Undefined,
    /// An operation that its operands do not have.
    Type,
    /// A value that an operation cannot take.
    Value,
    /// A change of a value, which templates may not make.
    Security,
    /// A bound on work, memory or nesting was reached.
    Bound,
}

impl JinjaError {
    /// An error whose line is not known yet; [`JinjaError::at`] adds it.
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: shortened(message.into()), line: 0 }
    }

    /// A syntax error in a line.
    pub(super) fn syntax(message: impl Into<String>, line: u32) -> Self {
        Self { kind: ErrorKind::Syntax, message: shortened(message.into()), line }
    }

    /// Jinja's `UndefinedError`.
    pub(super) fn undefined(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Undefined, message)
    }

    /// Python's `TypeError`.
    pub(super) fn of_type(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Type, message)
    }

    /// Python's `ValueError`, and others that values cause, such as `ZeroDivisionError`.
    pub(super) fn of_value(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Value, message)
    }

    /// The error with the line of the statement that it came from, unless it has one.
    pub(super) fn at(mut self, line: u32) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

/// A message that may show values, cut where it gets long. The cut falls between characters.
fn shortened(mut message: String) -> String {
    const MOST: usize = 2_000;
    if message.len() > MOST {
        let end = (0..=MOST).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
        message.shrink_to_fit();
    }
    message
}

impl std::fmt::Display for JinjaError {
    /// The message, with the line behind it; without it for `raise_exception`, whose words are the
    /// template's own.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.kind, self.line) {
            (ErrorKind::Raised, _) | (_, 0) => f.write_str(&self.message),
            (_, line) => write!(f, "{} (line {line})", self.message),
        }
    }
}
