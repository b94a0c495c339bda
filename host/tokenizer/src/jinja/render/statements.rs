//! Statements: their order, loops, and the names that they set.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::super::ast::{Expr, ForLoop, MacroDef, Stmt, StmtKind, Target};
use super::super::error::{ErrorKind, JinjaError};
use super::super::value::{Loop, Macro, Scope, Seq, Value};
use super::{Renderer, VALUE_BYTES};

/// The end of a body.
pub(super) enum Flow {
    /// All statements were run.
    Ended,
    /// `break` left the loop.
    Broke,
    /// `continue` left the turn.
    Continued,
}

impl Renderer {
    /// Runs statements until one leaves the loop around them. Errors get the statement's line.
    /// Anything but [`Flow::Ended`] is for the loop around.
    pub(super) fn body(&self, body: &[Stmt], scope: &Scope) -> Result<Flow, JinjaError> {
        for stmt in body {
            let flow = self.deeper(|| self.statement(&stmt.kind, scope));
            match flow.map_err(|error| error.at(stmt.line))? {
                Flow::Ended => {}
                flow => return Ok(flow),
            }
        }
        Ok(Flow::Ended)
    }

    /// Runs one statement. Names that `set` gives in a loop or macro are gone behind it; `if` has
    /// no scope of its own.
    fn statement(&self, stmt: &StmtKind, scope: &Scope) -> Result<Flow, JinjaError> {
        match stmt {
            StmtKind::Data(text) => self.write(text)?,
            StmtKind::Print(expr) => self.print(expr, scope)?,
            StmtKind::For(def) => {
                let items = self.items(&self.eval(&def.iter, scope)?)?;
                self.for_loop(def, &items, scope, 0)?;
            }
            StmtKind::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.eval(condition, scope)?.is_true() {
                        return self.body(body, scope);
                    }
                }
                return self.body(otherwise, scope);
            }
            StmtKind::With(names, body) => {
                let inner = scope.inner();
                for (target, expr) in names {
                    self.assign(target, self.eval(expr, scope)?, &inner)?;
                }
                return self.body(body, &inner);
            }
            StmtKind::Set(target, expr) => self.assign(target, self.eval(expr, scope)?, scope)?,
            StmtKind::SetBlock(target, filter, body) => {
                let mut value = self.captured(body, &scope.inner())?;
                if let Some(filter) = filter {
                    value = self.block_filter(filter, value, scope)?;
                }
                self.assign(target, value, scope)?;
            }
            StmtKind::FilterBlock(filter, body) => {
                let value = self.captured(body, &scope.inner())?;
                let value = self.block_filter(filter, value, scope)?;
                self.write(&self.shown(&value)?)?;
            }
            StmtKind::Macro(def) => {
                let scope_of = self.kept(scope.clone())?;
                let value = Macro { def: Arc::clone(def), scope: scope_of };
                scope.set(&def.name, Value::Macro(Rc::new(value)));
            }
            StmtKind::Call(call, def) => self.call_block(call, def, scope)?,
            StmtKind::Scoped(body) => return self.body(body, &scope.inner()),
            StmtKind::Block(body) => return self.body(body, &self.root.inner()),
            StmtKind::Break => return Ok(Flow::Broke),
            StmtKind::Continue => return Ok(Flow::Continued),
        }
        Ok(Flow::Ended)
    }

    /// Writes `str` of an expression.
    fn print(&self, expr: &Expr, scope: &Scope) -> Result<(), JinjaError> {
        match self.eval(expr, scope)? {
            Value::Str(text) => self.write(&text),
            value => self.write(&self.shown(&value)?),
        }
    }

    /// Calls a macro with the block's body as `caller`, and writes its value. `caller` is passed by
    /// name, so a macro that never mentions it refuses the call.
    fn call_block(
        &self,
        call: &Expr,
        def: &Arc<MacroDef>,
        scope: &Scope,
    ) -> Result<(), JinjaError> {
        let Expr::Call(callee, args) = call else { return Ok(()) };
        let caller = Macro { def: Arc::clone(def), scope: self.kept(scope.clone())? };
        let mut given = self.given(args, scope)?;
        given.named.push(("caller".into(), Value::Macro(Rc::new(caller))));
        let value = self.call(callee, given, scope)?;
        self.write(&self.shown(&value)?)
    }

    /// Runs a loop at a depth of recursive calls, 0 outermost. The filter is applied to all items
    /// first, so that `loop` counts those that are left. Each turn has a scope of its own, and so
    /// do the filter and `else`.
    pub(super) fn for_loop(
        &self,
        def: &Arc<ForLoop>,
        items: &Rc<Seq>,
        scope: &Scope,
        depth: usize,
    ) -> Result<(), JinjaError> {
        let items = match &def.filter {
            None => Rc::clone(items),
            Some(filter) => {
                let mut kept = Vec::new();
                for item in items.iter() {
                    let inner = scope.inner();
                    self.assign(&def.target, item.clone(), &inner)?;
                    if self.eval(filter, &inner)?.is_true() {
                        self.bytes(VALUE_BYTES)?;
                        kept.push(item.clone());
                    }
                }
                Rc::new(Seq::new(kept))
            }
        };
        self.work((items.len() * VALUE_BYTES) as u64)?;
        let again = match def.recursive {
            true => Some((Arc::clone(def), self.kept(scope.clone())?)),
            false => None,
        };
        let state = Rc::new(Loop {
            items: Rc::clone(&items),
            at: Cell::new(0),
            depth,
            seen: RefCell::default(),
            is_over: Cell::new(false),
            again,
        });
        let mut completed = false;
        for (at, item) in items.iter().enumerate() {
            state.at.set(at);
            let inner = scope.inner();
            inner.set(&"loop".into(), Value::Loop(Rc::clone(&state)));
            self.assign(&def.target, item.clone(), &inner)?;
            match self.body(&def.body, &inner)? {
                Flow::Broke => break,
                Flow::Continued => {}
                Flow::Ended => completed = true,
            }
        }
        state.is_over.set(true);
        *state.seen.borrow_mut() = None;
        // Jinja runs the rest where no turn came to its end, be it for want of items or by `break`.
        if !completed {
            self.body(&def.otherwise, &scope.inner())?;
        }
        Ok(())
    }

    /// Assigns to a name, to an attribute of a namespace, or to several of them by unpacking. A
    /// name is set in the scope at hand; a namespace is found in any scope around it.
    ///
    /// # Errors
    /// An attribute of what is no namespace, or another number of items than of names.
    fn assign(&self, target: &Target, value: Value, scope: &Scope) -> Result<(), JinjaError> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Attribute(name, attribute) => match scope.get(name) {
                Some(Value::Namespace(_)) if attribute.starts_with('_') => {
                    return Err(super::super::builtins::private(attribute));
                }
                Some(Value::Namespace(names)) => {
                    names.borrow_mut().insert(attribute.to_string(), value);
                }
                _ => {
                    return Err(JinjaError::new(
                        ErrorKind::Type,
                        "cannot assign attribute on non-namespace object",
                    ));
                }
            },
            Target::Several(targets) => {
                let items = self.items(&value)?;
                if items.len() != targets.len() {
                    let (found, expected) = (items.len(), targets.len());
                    let message = match found < expected {
                        true => format!(
                            "not enough values to unpack (expected {expected}, got {found})"
                        ),
                        false => format!("too many values to unpack (expected {expected})"),
                    };
                    return Err(JinjaError::of_value(message));
                }
                for (target, item) in targets.iter().zip(items.iter()) {
                    self.assign(target, item.clone(), scope)?;
                }
            }
        }
        Ok(())
    }
}
