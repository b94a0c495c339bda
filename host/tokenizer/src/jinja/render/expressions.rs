//! Expressions and their values, each checked against the bounds on one value.

use std::rc::Rc;
use std::sync::Arc;

use super::super::ast::{CompareOp, Expr, Literal};
use super::super::error::JinjaError;
use super::super::operators;
use super::super::value::{Dict, Scope, Seq, Value};
use super::{Evaluated, Renderer, VALUE_BYTES, bound, weight};

/// Lists and dictionaries inside each other. Walks over a value recurse so deep.
const MAX_NESTING: u32 = 128;

/// Bytes that a walk over one value may look at. A value that holds another twice is walked twice there, so a few lines
/// could make one that no walk ends.
const MAX_WEIGHT: usize = 16 << 20;

impl Renderer {
    /// The value of an expression, checked against [`MAX_NESTING`] and [`MAX_WEIGHT`]. A text is
    /// not, since its bytes are counted when it is made. Each expression is a step of work and a
    /// level of depth.
    pub(super) fn eval(&self, expr: &Expr, scope: &Scope) -> Evaluated {
        let value = self.deeper(|| self.expression(expr, scope))?;
        let extent = value.extent();
        if extent.depth > MAX_NESTING {
            return Err(bound(format!("a value nests more than {MAX_NESTING} deep")));
        }
        if extent.weight > MAX_WEIGHT && !matches!(value, Value::Str(_)) {
            return Err(bound(format!("a value holds more than {} MiB", MAX_WEIGHT >> 20)));
        }
        Ok(value)
    }

    /// The items of a value; those of a text are made here, and their bytes counted.
    pub(in super::super) fn items(&self, value: &Value) -> Result<Rc<Seq>, JinjaError> {
        match value {
            Value::Str(text) => self.bytes(text.len().saturating_mul(VALUE_BYTES + 24))?,
            Value::Dict(dict) => self.work((dict.len() * VALUE_BYTES) as u64)?,
            _ => {}
        }
        value.items()
    }

    /// Values of expressions, in order.
    pub(super) fn all(&self, exprs: &[Expr], scope: &Scope) -> Result<Vec<Value>, JinjaError> {
        self.bytes(exprs.len() * VALUE_BYTES)?;
        exprs.iter().map(|expr| self.eval(expr, scope)).collect()
    }

    /// The value of an expression, unchecked. `and` and `or` answer one of their operands, as in
    /// Python.
    fn expression(&self, expr: &Expr, scope: &Scope) -> Evaluated {
        match expr {
            Expr::Const(literal) => Ok(constant(literal)),
            Expr::Name(name) => Ok(self.name(name, scope)),
            Expr::List(items) => Ok(Value::list(self.all(items, scope)?)),
            Expr::Tuple(items) => Ok(Value::tuple(self.all(items, scope)?)),
            Expr::Dict(entries) => self.dict(entries, scope),
            Expr::Attribute(value, name) => operators::attribute(&self.eval(value, scope)?, name),
            Expr::Item(value, key) => {
                let (value, key) = (self.eval(value, scope)?, self.eval(key, scope)?);
                let text = value.as_str().map_or(0, str::len);
                self.work((text + weight(&key)) as u64)?;
                operators::item(&value, &key)
            }
            Expr::Slice(value, bounds) => self.slice(value, bounds, scope),
            Expr::Call(callee, args) => {
                let given = self.given(args, scope)?;
                self.call(callee, given, scope)
            }
            Expr::Filter(value, name, args) => {
                let value = match value {
                    Some(value) => self.eval(value, scope)?,
                    None => return Err(JinjaError::syntax("a filter without a value", 0)),
                };
                self.filter(name, &value, &self.given(args, scope)?)
            }
            Expr::Test(value, name, args) => {
                let value = self.eval(value, scope)?;
                Ok(Value::Bool(self.test(name, &value, &self.given(args, scope)?)?))
            }
            Expr::Not(value) => Ok(Value::Bool(!self.eval(value, scope)?.is_true())),
            Expr::Negative(value) => operators::negative(&self.eval(value, scope)?),
            Expr::Positive(value) => operators::positive(&self.eval(value, scope)?),
            Expr::Binary(op, left, right) => {
                operators::binary(self, *op, &self.eval(left, scope)?, &self.eval(right, scope)?)
            }
            Expr::Compare(first, operands) => self.comparison(first, operands, scope),
            Expr::And(left, right) => match self.eval(left, scope)? {
                left if left.is_true() => self.eval(right, scope),
                left => Ok(left),
            },
            Expr::Or(left, right) => match self.eval(left, scope)? {
                left if left.is_true() => Ok(left),
                _ => self.eval(right, scope),
            },
            Expr::If(condition, value, otherwise) => {
                self.conditional(condition, value, otherwise.as_deref(), scope)
            }
            Expr::Concat(operands) => {
                let mut text = String::new();
                for operand in operands {
                    text.push_str(&self.shown(&self.eval(operand, scope)?)?);
                }
                self.text(text)
            }
        }
    }

    /// `value if condition else otherwise`; undefined where nothing else is given.
    fn conditional(
        &self,
        condition: &Expr,
        value: &Expr,
        otherwise: Option<&Expr>,
        scope: &Scope,
    ) -> Evaluated {
        match (self.eval(condition, scope)?.is_true(), otherwise) {
            (true, _) => self.eval(value, scope),
            (false, Some(otherwise)) => self.eval(otherwise, scope),
            (false, None) => Ok(Value::Undefined(
                "the inline if-expression evaluated to false and no else section was defined."
                    .into(),
            )),
        }
    }

    /// The value of a name: of the scopes from the inside out, then of Jinja's functions; else
    /// undefined, which is no error by itself.
    fn name(&self, name: &Arc<str>, scope: &Scope) -> Value {
        let global = || super::super::builtins::GLOBALS.iter().find(|global| **global == &**name);
        scope
            .get(name)
            .or_else(|| global().map(|global| Value::Function(global)))
            .unwrap_or_else(|| Value::undefined(name))
    }

    /// A dictionary; of equal keys the last value counts, in the first one's place.
    fn dict(&self, entries: &[(Expr, Expr)], scope: &Scope) -> Evaluated {
        self.bytes(entries.len() * 4 * VALUE_BYTES)?;
        let mut dict = Dict::default();
        for (key, value) in entries {
            let key = self.eval(key, scope)?;
            self.bytes(weight(&key))?;
            dict.insert(key, self.eval(value, scope)?)?;
        }
        Ok(Value::Dict(Rc::new(dict)))
    }

    /// A slice, whose bounds are whole numbers or `None`. A value without slices is an error, and
    /// an undefined value where Jinja works the slice out as it reads the template.
    fn slice(&self, target: &Expr, bounds: &[Option<Expr>; 3], scope: &Scope) -> Evaluated {
        let value = self.eval(target, scope)?;
        let mut found = [None, None, None];
        for (found, bound) in found.iter_mut().zip(bounds) {
            if let Some(bound) = bound {
                let bound = self.eval(bound, scope)?;
                *found = match bound {
                    Value::None => None,
                    bound => Some(bound.as_int().ok_or_else(|| {
                        JinjaError::of_type("slice indices must be integers or None")
                    })?),
                };
            }
        }
        self.bytes(weight(&value))?;
        let sliced = operators::slice(&value, found)?;
        let is_constant = || target.is_constant() && bounds.iter().flatten().all(Expr::is_constant);
        match sliced {
            Some(sliced) => Ok(sliced),
            // Jinja looks for the slice of a constant as for any item, before it renders.
            None if is_constant() => {
                Ok(Value::Undefined(format!("'{}' has no slices", value.type_name()).into()))
            }
            None => {
                let kind = value.type_name();
                Err(JinjaError::of_type(format!("'{kind}' object is not subscriptable")))
            }
        }
    }

    /// A chain of comparisons, each operand evaluated once, up to the first that does not hold.
    fn comparison(&self, first: &Expr, operands: &[(CompareOp, Expr)], scope: &Scope) -> Evaluated {
        let mut left = self.eval(first, scope)?;
        for (op, right) in operands {
            let right = self.eval(right, scope)?;
            self.work((weight(&left) + weight(&right)) as u64)?;
            if !operators::compare(*op, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    /// The filters of a block on its text, the innermost first. `filter` is a chain whose innermost
    /// link has no value.
    pub(super) fn block_filter(&self, filter: &Expr, value: Value, scope: &Scope) -> Evaluated {
        let Expr::Filter(inner, name, args) = filter else { return Ok(value) };
        let value = match inner {
            Some(inner) => self.block_filter(inner, value, scope)?,
            None => value,
        };
        self.filter(name, &value, &self.given(args, scope)?)
    }
}

/// A literal as a value.
fn constant(literal: &Literal) -> Value {
    match literal {
        Literal::None => Value::None,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(value) => Value::Int(*value),
        Literal::Float(value) => Value::Float(*value),
        Literal::Text(text) => Value::Str(Arc::clone(text)),
    }
}
