//! The rendering of a template: its state, its output, and the bounds on all of it.

mod calls;
mod expressions;
mod statements;

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

pub(super) use self::calls::Given;
use super::ast::Stmt;
use super::error::{ErrorKind, JinjaError};
use super::value::{Scope, Value};

/// A value, or the error that ends the rendering.
type Evaluated = Result<Value, JinjaError>;

/// Bounds of one rendering. They hold for a template and for messages alike: either may be hostile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Steps, and bytes that they look at: about a nanosecond each.
    pub(crate) work: u64,
    /// Bytes of all values and of all output that are made. All that is ever made counts, not what
    /// is held at one time.
    pub(crate) bytes: u64,
    /// Statements, expressions and calls inside each other.
    pub(crate) depth: usize,
    /// Time on the clock. Looked at every 2^18 units of work, so a rendering may be a little over
    /// it.
    pub(crate) time: Duration,
}

impl Default for Limits {
    /// About a second of work, 64 MiB, and 5 s for a machine under load.
    fn default() -> Self {
        Self { work: 1 << 30, bytes: 64 << 20, depth: 700, time: Duration::from_secs(5) }
    }
}

/// Work of one statement or expression.
const STEP: u64 = 32;

/// Bytes of a scope that is kept to the end of the rendering.
const SCOPE_BYTES: usize = 256;

/// Bytes of a value in a list. What the value itself points to is counted where it is made.
pub(super) const VALUE_BYTES: usize = size_of::<Value>();

/// Runs a template's statements on names. Afterwards all scopes and namespaces are emptied, since
/// macros and namespaces may hold each other in circles that counted pointers never free.
///
/// # Errors
/// The first error, with the line of the innermost statement that it came from.
pub(super) fn render(
    body: &[Stmt],
    names: Vec<(String, Value)>,
    now: chrono::NaiveDateTime,
    limits: Limits,
) -> Result<String, JinjaError> {
    let scope = Scope::new(None);
    let root = scope.inner();
    let renderer = Renderer {
        root: root.clone(),
        limits,
        began: Instant::now(),
        work: Cell::new(0),
        bytes: Cell::new(0),
        depth: Cell::new(0),
        outputs: RefCell::new(vec![String::new()]),
        scopes: RefCell::default(),
        namespaces: RefCell::default(),
        now,
    };
    names.into_iter().for_each(|(name, value)| scope.set(&name.into(), value));
    let done = renderer.kept(root).and_then(|root| renderer.body(body, &root));
    renderer.scopes.borrow().iter().for_each(Scope::clear);
    scope.clear();
    for namespace in renderer.namespaces.borrow().iter() {
        if let Value::Namespace(names) = namespace {
            let names = std::mem::take(&mut *names.borrow_mut());
            drop(names);
        }
    }
    done?;
    Ok(renderer.outputs.borrow_mut().pop().unwrap_or_default())
}

/// A rendering under way. Its counts are cells, since evaluation borrows it shared.
pub(super) struct Renderer {
    /// The bounds.
    limits: Limits,
    /// The start of the rendering.
    began: Instant,
    /// Work so far.
    work: Cell<u64>,
    /// Bytes so far.
    bytes: Cell<u64>,
    /// Statements, expressions and calls inside each other at the moment.
    depth: Cell<usize>,
    /// The output, and the blocks that are captured inside it. The innermost is the last.
    outputs: RefCell<Vec<String>>,
    /// Scopes that a macro may hold, and that may hold the macro. They are emptied at the end.
    scopes: RefCell<Vec<Scope>>,
    /// Namespaces, which may hold themselves.
    pub(super) namespaces: RefCell<Vec<Value>>,
    /// The names of the template's outermost level. A `block` begins from them.
    root: Scope,
    /// The local time that `strftime_now` shows.
    pub(super) now: chrono::NaiveDateTime,
}

impl Renderer {
    // Bounds

    /// Counts work. Looks at the clock now and then.
    ///
    /// # Errors
    /// [`ErrorKind::Bound`] beyond the bound of work or time.
    pub(super) fn work(&self, amount: u64) -> Result<(), JinjaError> {
        /// Work between two looks at the clock.
        const LOOK: u64 = 1 << 18;
        let before = self.work.get();
        let work = before.saturating_add(amount);
        self.work.set(work);
        if work > self.limits.work {
            return Err(bound("the template takes too many steps"));
        }
        if before / LOOK != work / LOOK && self.began.elapsed() > self.limits.time {
            let most = self.limits.time.as_secs();
            return Err(bound(format!("the template takes longer than {most} s")));
        }
        Ok(())
    }

    /// Counts bytes that are about to be made, which is work too. Call it before the memory is
    /// taken.
    ///
    /// # Errors
    /// [`ErrorKind::Bound`] beyond the bound.
    pub(super) fn bytes(&self, amount: usize) -> Result<(), JinjaError> {
        self.work(amount as u64)?;
        let bytes = self.bytes.get().saturating_add(amount as u64);
        self.bytes.set(bytes);
        match bytes > self.limits.bytes {
            true => {
                let most = self.limits.bytes >> 20;
                Err(bound(format!("the template makes more than {most} MiB of text")))
            }
            false => Ok(()),
        }
    }

    /// A text whose bytes are counted.
    pub(super) fn text(&self, text: String) -> Evaluated {
        self.bytes(text.len())?;
        Ok(Value::from(text))
    }

    /// A list whose bytes are counted.
    pub(super) fn list(&self, items: Vec<Value>) -> Evaluated {
        self.bytes(items.len() * VALUE_BYTES)?;
        Ok(Value::list(items))
    }

    /// `str` of a value, with its bytes counted.
    pub(super) fn shown(&self, value: &Value) -> Result<String, JinjaError> {
        self.bytes(weight(value))?;
        Ok(value.to_string())
    }

    /// Runs something one level deeper; an error beyond the bound, before the stack is in danger.
    fn deeper<T>(&self, run: impl FnOnce() -> Result<T, JinjaError>) -> Result<T, JinjaError> {
        self.work(STEP)?;
        let depth = self.depth.get();
        if depth >= self.limits.depth {
            let most = self.limits.depth;
            return Err(bound(format!("the template calls itself more than {most} levels deep")));
        }
        self.depth.set(depth + 1);
        let result = run();
        self.depth.set(depth);
        result
    }

    /// Counts what a filter, test or method may do with its arguments: compare them, or write them.
    /// A text is looked at once; other values are taken to be looked at four times.
    pub(super) fn arguments(&self, given: &Given) -> Result<(), JinjaError> {
        let named = given.named.iter().map(|(_, value)| value);
        for value in given.positional.iter().chain(named) {
            match value {
                Value::Str(text) => self.work(text.len() as u64)?,
                value => self.work(weight(value).saturating_mul(4) as u64)?,
            }
        }
        Ok(())
    }

    /// Notes a scope that a macro or a loop may carry out of its body. It is emptied at the end of
    /// the rendering, with the scopes around it; others go with their bodies.
    fn kept(&self, scope: Scope) -> Result<Scope, JinjaError> {
        self.bytes(SCOPE_BYTES)?;
        self.scopes.borrow_mut().push(scope.clone());
        Ok(scope)
    }

    // Output

    /// Appends to the innermost output.
    fn write(&self, text: &str) -> Result<(), JinjaError> {
        self.bytes(text.len())?;
        if let Some(output) = self.outputs.borrow_mut().last_mut() {
            output.push_str(text);
        }
        Ok(())
    }

    /// The output of a body as a value, with the output around it untouched. Also where the body
    /// fails, the output around it is the innermost again.
    fn captured(&self, body: &[Stmt], scope: &Scope) -> Evaluated {
        self.outputs.borrow_mut().push(String::new());
        let done = self.body(body, scope);
        let text = self.outputs.borrow_mut().pop().unwrap_or_default();
        done?;
        Ok(Value::from(text))
    }
}

/// Bytes that a walk over a value looks at.
pub(super) fn weight(value: &Value) -> usize {
    value.extent().weight
}

/// The error of a bound.
fn bound(message: impl Into<String>) -> JinjaError {
    JinjaError::new(ErrorKind::Bound, message)
}
