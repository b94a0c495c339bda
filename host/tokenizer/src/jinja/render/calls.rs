//! Calls of macros, functions, methods and recursive loops, with their arguments.

use std::rc::Rc;
use std::sync::Arc;

use super::super::ast::{Args, Expr};
use super::super::error::JinjaError;
use super::super::value::{Dict, Macro, Scope, Value};
use super::{Evaluated, Renderer, VALUE_BYTES};

/// Arguments of a call, evaluated.
#[derive(Debug, Default)]
pub(in super::super) struct Given {
    /// By place, those of `*list` behind the others.
    pub(in super::super) positional: Vec<Value>,
    /// By name, those of `**dict` behind the others.
    pub(in super::super) named: Vec<(Arc<str>, Value)>,
}

impl Given {
    /// An argument by place or name. A place goes before a name.
    pub(in super::super) fn get(&self, at: usize, name: &str) -> Option<&Value> {
        let named = || self.named.iter().find(|(key, _)| **key == *name).map(|(_, value)| value);
        self.positional.get(at).or_else(named)
    }

    /// Refuses arguments that nothing takes. `names` are the parameters in order. The error is
    /// Python's `TypeError`.
    pub(in super::super) fn allow(&self, function: &str, names: &[&str]) -> Result<(), JinjaError> {
        if self.positional.len() > names.len() {
            let (most, found) = (names.len(), self.positional.len());
            return Err(JinjaError::of_type(format!(
                "{function}() takes at most {most} arguments, {found} were given"
            )));
        }
        match self.named.iter().find(|(name, _)| !names.contains(&&**name)) {
            Some((name, _)) => Err(JinjaError::of_type(format!(
                "{function}() got an unexpected keyword argument '{name}'"
            ))),
            None => Ok(()),
        }
    }
}

impl Renderer {
    /// Evaluates the arguments of a call: by place, by name, then `*list` and `**dict`.
    pub(super) fn given(&self, args: &Args, scope: &Scope) -> Result<Given, JinjaError> {
        let mut given = Given { positional: self.all(&args.positional, scope)?, named: Vec::new() };
        for (name, expr) in &args.named {
            given.named.push((Arc::clone(name), self.eval(expr, scope)?));
        }
        if let Some(more) = &args.more {
            given.positional.extend(self.items(&self.eval(more, scope)?)?.iter().cloned());
        }
        if let Some(more) = &args.more_named {
            let Value::Dict(dict) = self.eval(more, scope)? else {
                return Err(JinjaError::of_type("argument after ** must be a mapping"));
            };
            for (key, value) in dict.entries() {
                given.named.push((self.shown(key)?.into(), value.clone()));
            }
        }
        self.bytes((given.positional.len() + given.named.len()) * VALUE_BYTES)?;
        Ok(given)
    }

    /// Calls an expression's value. The arguments were evaluated before the callee.
    pub(super) fn call(&self, callee: &Expr, given: Given, scope: &Scope) -> Evaluated {
        let callee = self.eval(callee, scope)?;
        self.call_value(&callee, given)
    }

    /// Calls a macro, function, method, recursive loop or joiner; other values are not callable.
    fn call_value(&self, callee: &Value, given: Given) -> Evaluated {
        match callee {
            Value::Macro(called) => self.deeper(|| self.call_macro(called, given)),
            Value::Function(name) => self.function(name, &given),
            Value::Method(value, name) => self.method(value, name, &given),
            Value::Loop(state) => {
                let Some((def, scope)) = &state.again else {
                    return Err(JinjaError::of_type(
                        "The loop must have the 'recursive' marker to be called recursively.",
                    ));
                };
                let items = given
                    .get(0, "iterable")
                    .map_or_else(|| Ok(Rc::default()), |items| self.items(items))?;
                self.outputs.borrow_mut().push(String::new());
                let done = self.deeper(|| self.for_loop(def, &items, scope, state.depth + 1));
                let text = self.outputs.borrow_mut().pop().unwrap_or_default();
                done?;
                Ok(Value::from(text))
            }
            Value::Joiner(separator, asked) => Ok(match asked.replace(true) {
                true => Value::Str(Arc::clone(separator)),
                false => Value::from(""),
            }),
            Value::Undefined(message) => Err(JinjaError::undefined(&**message)),
            other => {
                let kind = other.type_name();
                Err(JinjaError::of_type(format!("'{kind}' object is not callable")))
            }
        }
    }

    /// Runs a macro in a scope inside of the one that it was defined in. A parameter without an
    /// argument has its default, evaluated now, or is undefined. The value is the text that its
    /// body writes. `varargs` and `kwargs` are set in any case; further arguments without them are
    /// an error.
    ///
    /// # Errors
    /// Arguments that the macro does not take, or those of its body.
    fn call_macro(&self, called: &Macro, given: Given) -> Evaluated {
        let def = &called.def;
        let scope = called.scope.inner();
        let Given { positional, mut named } = given;
        let mut positional = positional.into_iter();
        if let Some(at) = named.iter().position(|(name, _)| &**name == "caller") {
            let (name, caller) = named.remove(at);
            if !def.uses.caller {
                let macro_name = &def.name;
                return Err(JinjaError::of_type(format!(
                    "macro '{macro_name}' was invoked with two values for the special caller argument"
                )));
            }
            scope.set(&name, caller);
        } else if def.uses.caller {
            scope.set(&"caller".into(), Value::undefined("caller"));
        }
        for (name, default) in &def.parameters {
            let by_name = named.iter().position(|(key, _)| key == name);
            let value = match (positional.next(), by_name) {
                (Some(value), _) => value,
                (None, Some(at)) => named.remove(at).1,
                (None, None) => match default {
                    Some(default) => self.eval(default, &scope)?,
                    None => Value::Undefined(format!("parameter '{name}' was not provided").into()),
                },
            };
            scope.set(name, value);
        }
        let left: Vec<Value> = positional.collect();
        let most = def.parameters.len();
        if !left.is_empty() && !def.uses.varargs {
            let name = &def.name;
            return Err(JinjaError::of_type(format!(
                "macro '{name}' takes not more than {most} argument(s)"
            )));
        }
        if let Some((key, _)) = named.first().filter(|_| !def.uses.kwargs) {
            let name = &def.name;
            return Err(JinjaError::of_type(format!(
                "macro '{name}' takes no keyword argument '{key}'"
            )));
        }
        let mut rest = Dict::default();
        for (key, value) in named {
            rest.insert(Value::Str(key), value)?;
        }
        scope.set(&"varargs".into(), Value::tuple(left));
        scope.set(&"kwargs".into(), Value::Dict(Rc::new(rest)));
        self.captured(&def.body, &scope)
    }
}
