//! Scopes: the names in force, from the inside out.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::Value;

/// Names in force, from the inside out. A clone is the same scope.
#[derive(Clone, Debug)]
pub(crate) struct Scope(Rc<Level>);

/// One scope with the one around it.
#[derive(Debug)]
struct Level {
    /// Names that were set here.
    names: RefCell<HashMap<Arc<str>, Value>>,
    /// The scope around it; none around the outermost.
    outer: Option<Scope>,
    /// True once [`Scope::clear`] was here.
    is_cleared: Cell<bool>,
}

impl Scope {
    /// An empty scope.
    pub(in super::super) fn new(outer: Option<Self>) -> Self {
        Self(Rc::new(Level { names: RefCell::default(), outer, is_cleared: Cell::new(false) }))
    }

    /// An empty scope inside of this one.
    pub(in super::super) fn inner(&self) -> Self {
        Self::new(Some(self.clone()))
    }

    /// Sets a name here, whether or not a scope around has it: Jinja's `set` does not reach out of
    /// a loop.
    pub(in super::super) fn set(&self, name: &Arc<str>, value: Value) {
        self.0.names.borrow_mut().insert(Arc::clone(name), value);
    }

    /// The value of a name here or in the scopes around.
    pub(in super::super) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            if let Some(value) = scope.0.names.borrow().get(name) {
                return Some(value.clone());
            }
            scope = scope.0.outer.as_ref()?;
        }
    }

    /// Forgets its names and those of the scopes around it, any of which may hold the scope itself
    /// through a macro or a loop.
    pub(in super::super) fn clear(&self) {
        let mut scope = self;
        while !scope.0.is_cleared.replace(true) {
            let names = std::mem::take(&mut *scope.0.names.borrow_mut());
            drop(names);
            let Some(outer) = &scope.0.outer else { return };
            scope = outer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clearing_a_scope_clears_those_around_it() {
        let outer = Scope::new(None);
        let (inner, other) = (outer.inner().inner(), outer.inner());
        for scope in [&outer, &inner, &other] {
            scope.set(&"a".into(), Value::None);
        }
        inner.clear();
        assert!(inner.get("a").is_none() && outer.get("a").is_none());
        assert!(other.get("a").is_some());
    }
}
