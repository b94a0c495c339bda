//! Running a template: statements, expressions, scopes, and the bounds on all of it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ast::{Args, Expr, ForLoop, Literal, MacroDef, Stmt, StmtKind, Target};
use super::error::{ErrorKind, JinjaError};
use super::operators;
use super::value::{Dict, Loop, Macro, Scope, Seq, Value};

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

/// Lists and dictionaries inside each other. Walks over a value recurse so deep.
const MAX_NESTING: u32 = 128;

/// Bytes that a walk over one value may look at. A value that holds another twice is walked twice there, so a few lines
/// could make one that no walk ends.
const MAX_WEIGHT: usize = 16 << 20;

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

/// The end of a body.
enum Flow {
    /// All statements were run.
    Ended,
    /// `break` left the loop.
    Broke,
    /// `continue` left the turn.
    Continued,
}

/// Arguments of a call, evaluated.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// By place, those of `*list` behind the others.
    pub(super) positional: Vec<Value>,
    /// By name, those of `**dict` behind the others.
    pub(super) named: Vec<(Arc<str>, Value)>,
}

impl Given {
    /// An argument by place or name. A place goes before a name.
    pub(super) fn get(&self, at: usize, name: &str) -> Option<&Value> {
        let named = || self.named.iter().find(|(key, _)| **key == *name).map(|(_, value)| value);
        self.positional.get(at).or_else(named)
    }

    /// Refuses arguments that nothing takes. `names` are the parameters in order. The error is
    /// Python's `TypeError`.
    pub(super) fn allow(&self, function: &str, names: &[&str]) -> Result<(), JinjaError> {
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

    // Statements

    /// Runs statements until one leaves the loop around them. Errors get the statement's line.
    /// Anything but [`Flow::Ended`] is for the loop around.
    fn body(&self, body: &[Stmt], scope: &Scope) -> Result<Flow, JinjaError> {
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
    fn for_loop(
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
                    return Err(super::builtins::private(attribute));
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

    // Expressions

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
    pub(super) fn items(&self, value: &Value) -> Result<Rc<Seq>, JinjaError> {
        match value {
            Value::Str(text) => self.bytes(text.len().saturating_mul(VALUE_BYTES + 24))?,
            Value::Dict(dict) => self.work((dict.len() * VALUE_BYTES) as u64)?,
            _ => {}
        }
        value.items()
    }

    /// Values of expressions, in order.
    fn all(&self, exprs: &[Expr], scope: &Scope) -> Result<Vec<Value>, JinjaError> {
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
        let global = || super::builtins::GLOBALS.iter().find(|global| **global == &**name);
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
    fn comparison(
        &self,
        first: &Expr,
        operands: &[(super::ast::CompareOp, Expr)],
        scope: &Scope,
    ) -> Evaluated {
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
    fn block_filter(&self, filter: &Expr, value: Value, scope: &Scope) -> Evaluated {
        let Expr::Filter(inner, name, args) = filter else { return Ok(value) };
        let value = match inner {
            Some(inner) => self.block_filter(inner, value, scope)?,
            None => value,
        };
        self.filter(name, &value, &self.given(args, scope)?)
    }

    // Calls

    /// Evaluates the arguments of a call: by place, by name, then `*list` and `**dict`.
    fn given(&self, args: &Args, scope: &Scope) -> Result<Given, JinjaError> {
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
    fn call(&self, callee: &Expr, given: Given, scope: &Scope) -> Evaluated {
        let callee = self.eval(callee, scope)?;
        self.call_value(&callee, given)
    }

    /// Calls a macro, function, method, recursive loop or joiner; other values are not callable.
    pub(super) fn call_value(&self, callee: &Value, given: Given) -> Evaluated {
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

/// Bytes that a walk over a value looks at.
pub(super) fn weight(value: &Value) -> usize {
    value.extent().weight
}

/// The error of a bound.
fn bound(message: impl Into<String>) -> JinjaError {
    JinjaError::new(ErrorKind::Bound, message)
}
