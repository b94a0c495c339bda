//! Operators, subscripts and attributes, as Python has them.

use std::cell::Cell;
use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

use super::ast::{BinaryOp, CompareOp};
use super::error::JinjaError;
use super::formatting;
use super::methods;
use super::python;
use super::render::{Renderer, VALUE_BYTES};
use super::value::{Loop, Value};

/// A value, or the error that ends the rendering.
type Evaluated = Result<Value, JinjaError>;

/// Largest exponent of a power. The result would not fit into 128 bits, unless the base is −1, 0 or
/// 1.
const MAX_POWER: i128 = 4_096;

/// One comparison. `==` never fails; an order between values that Python does not order is an
/// error. `value in dict` looks for a key, `in` of a text for a part.
///
/// # Errors
/// Python's `TypeError` where the two do not go together.
pub(super) fn compare(op: CompareOp, left: &Value, right: &Value) -> Result<bool, JinjaError> {
    Ok(match op {
        CompareOp::Eq => left.equals(right),
        CompareOp::Ne => !left.equals(right),
        CompareOp::Lt => left.compare(right, "<")?.is_some_and(Ordering::is_lt),
        CompareOp::Le => left.compare(right, "<=")?.is_some_and(Ordering::is_le),
        CompareOp::Gt => left.compare(right, ">")?.is_some_and(Ordering::is_gt),
        CompareOp::Ge => left.compare(right, ">=")?.is_some_and(Ordering::is_ge),
        CompareOp::In => right.contains(left)?,
        CompareOp::NotIn => !right.contains(left)?,
    })
}

/// `-value`. Booleans count as 0 and 1. What is undefined is an error, as is what is no number.
pub(super) fn negative(value: &Value) -> Evaluated {
    value.must_be_defined()?;
    match (value, value.as_int()) {
        (_, Some(whole)) => {
            let negative = whole.checked_neg().map(Value::Int);
            negative.ok_or_else(|| too_large(&format!("-({whole})")))
        }
        (Value::Float(value), _) => Ok(Value::Float(-value)),
        _ => bad_operand("unary -", value),
    }
}

/// The error of a result beyond 128 bits. `result` is its expression.
pub(super) fn too_large(result: &str) -> JinjaError {
    JinjaError::of_value(format!("{result} is beyond the whole numbers of a template"))
}

/// `+value`. Of a boolean it is a whole number, as in Python.
pub(super) fn positive(value: &Value) -> Evaluated {
    value.must_be_defined()?;
    match (value, value.as_int()) {
        (_, Some(whole)) => Ok(Value::Int(whole)),
        (Value::Float(_), _) => Ok(value.clone()),
        _ => bad_operand("unary +", value),
    }
}

/// Python's error for a unary operator.
fn bad_operand(op: &str, value: &Value) -> Evaluated {
    let kind = value.type_name();
    Err(JinjaError::of_type(format!("bad operand type for {op}: '{kind}'")))
}

/// Arithmetic, concatenation, repetition and `%` formatting. Whole numbers stay whole but for `/`
/// and negative powers; a float on either side makes a float. What it makes is counted. What is
/// undefined is an error on either side, as with Jinja's `Undefined`.
///
/// # Errors
/// Python's `TypeError`, division by zero, whole numbers beyond 128 bits, or a bound.
pub(super) fn binary(run: &Renderer, op: BinaryOp, left: &Value, right: &Value) -> Evaluated {
    left.must_be_defined()?;
    right.must_be_defined()?;
    match (op, left, right) {
        (BinaryOp::Add, Value::Str(a), Value::Str(b)) => {
            run.bytes(a.len() + b.len())?;
            Ok(Value::from([&**a, &**b].concat()))
        }
        (BinaryOp::Add, Value::List(a), Value::List(b)) => {
            run.bytes((a.len() + b.len()) * VALUE_BYTES)?;
            Ok(Value::list([a.as_slice(), b.as_slice()].concat()))
        }
        (BinaryOp::Add, Value::Tuple(a), Value::Tuple(b)) => {
            run.bytes((a.len() + b.len()) * VALUE_BYTES)?;
            Ok(Value::tuple([a.as_slice(), b.as_slice()].concat()))
        }
        (BinaryOp::Mul, Value::Str(_) | Value::List(_) | Value::Tuple(_), count)
            if count.as_int().is_some() =>
        {
            repeat(run, left, count)
        }
        (BinaryOp::Mul, count, Value::Str(_) | Value::List(_) | Value::Tuple(_))
            if count.as_int().is_some() =>
        {
            repeat(run, right, count)
        }
        (BinaryOp::Rem, Value::Str(template), values) => {
            Ok(Value::from(formatting::percent(run, template, values)?))
        }
        _ => match (left.as_int(), right.as_int()) {
            (Some(a), Some(b)) => whole(op, a, b),
            _ => match (left.as_f64(), right.as_f64()) {
                (Some(a), Some(b)) => real(op, a, b),
                _ => unsupported(op, left, right),
            },
        },
    }
}

/// `value * count`; nothing where the count is below 1. The bytes are counted before the memory is
/// taken.
fn repeat(run: &Renderer, value: &Value, count: &Value) -> Evaluated {
    let count = count.as_int().unwrap_or(0).clamp(0, 1 << 40) as usize;
    Ok(match value {
        Value::Str(text) => {
            run.bytes(text.len().saturating_mul(count))?;
            Value::from(text.repeat(count))
        }
        Value::List(items) | Value::Tuple(items) => {
            run.bytes(items.len().saturating_mul(count).saturating_mul(VALUE_BYTES))?;
            let items = std::iter::repeat_n(items.iter().cloned(), count).flatten().collect();
            if matches!(value, Value::List(_)) { Value::list(items) } else { Value::tuple(items) }
        }
        other => other.clone(),
    })
}

/// The operator as Python's messages write it.
fn symbol(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::FloorDiv => "//",
        BinaryOp::Rem => "%",
        BinaryOp::Pow => "** or pow()",
    }
}

/// Python's error for operands that do not go together.
fn unsupported(op: BinaryOp, left: &Value, right: &Value) -> Evaluated {
    let (a, b) = (left.type_name(), right.type_name());
    if op == BinaryOp::Add && matches!(left, Value::Str(_) | Value::List(_) | Value::Tuple(_)) {
        return Err(JinjaError::of_type(format!("can only concatenate {a} (not \"{b}\") to {a}")));
    }
    let op = symbol(op);
    Err(JinjaError::of_type(format!("unsupported operand type(s) for {op}: '{a}' and '{b}'")))
}

/// Arithmetic of whole numbers: `//` rounds down and `%` has the divisor's sign. Results beyond 128
/// bits are an error, where Python goes on. `/` makes a float of both operands first, so that it is
/// exact up to 2^53 alone.
fn whole(op: BinaryOp, a: i128, b: i128) -> Evaluated {
    let result = match op {
        BinaryOp::Add => a.checked_add(b),
        BinaryOp::Sub => a.checked_sub(b),
        BinaryOp::Mul => a.checked_mul(b),
        BinaryOp::Div if b == 0 => return Err(JinjaError::of_value("division by zero")),
        BinaryOp::Div => return Ok(Value::Float(a as f64 / b as f64)),
        BinaryOp::FloorDiv | BinaryOp::Rem if b == 0 => {
            return Err(JinjaError::of_value("integer division or modulo by zero"));
        }
        BinaryOp::FloorDiv => {
            a.checked_div(b).map(|q| if a % b != 0 && (a < 0) != (b < 0) { q - 1 } else { q })
        }
        BinaryOp::Rem => {
            // The rest of a division is never too large, though the quotient may be.
            let rest = a.wrapping_rem(b);
            Some(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }
        BinaryOp::Pow if b < 0 => return Ok(Value::Float((a as f64).powf(b as f64))),
        BinaryOp::Pow => (b <= MAX_POWER).then(|| a.checked_pow(b as u32)).flatten(),
    };
    result.map(Value::Int).ok_or_else(|| {
        let op = symbol(op);
        too_large(&format!("{a} {op} {b}"))
    })
}

/// Arithmetic of floats. `%` has the divisor's sign, and `//` goes with it: both begin from the
/// exact rest, as in Python. A power without a real result is NaN, where Python makes it complex.
fn real(op: BinaryOp, a: f64, b: f64) -> Evaluated {
    if b == 0.0 && matches!(op, BinaryOp::Div | BinaryOp::FloorDiv | BinaryOp::Rem) {
        return Err(JinjaError::of_value("float division by zero"));
    }
    let rest = a % b;
    let is_other_side = rest != 0.0 && (rest < 0.0) != (b < 0.0);
    Ok(Value::Float(match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::FloorDiv => {
            let quotient = (a - rest) / b - f64::from(is_other_side);
            let floor = quotient.floor();
            match quotient == 0.0 {
                true => 0.0_f64.copysign(a / b),
                false if quotient - floor > 0.5 => floor + 1.0,
                false => floor,
            }
        }
        BinaryOp::Rem if is_other_side => rest + b,
        BinaryOp::Rem if rest == 0.0 => rest.copysign(b),
        BinaryOp::Rem => rest,
        BinaryOp::Pow => a.powf(b),
    }))
}

/// `value.name`: a method or attribute, else the item of that name. As Jinja's `getattr`. One that
/// is not there is undefined, not an error. The items of a mapping come after its methods, so that
/// `dict.items` is the method.
pub(super) fn attribute(value: &Value, name: &Arc<str>) -> Evaluated {
    value.must_be_defined()?;
    if let Some(found) = python_attribute(value, name) {
        return Ok(found);
    }
    if let Value::Dict(dict) = value
        && let Some(found) = dict.get_str(name)
    {
        return Ok(found.clone());
    }
    Ok(no_attribute(value, name))
}

/// `value[key]`: the item, else the method or attribute of that name. As Jinja's `getitem`:
/// negative indices count from the end, those of a text are characters. The items of a mapping come
/// first, so that `dict['items']` is the item. A key that is not there is undefined, not an error.
/// Looking up a character of a text walks over the text.
pub(super) fn item(value: &Value, key: &Value) -> Evaluated {
    value.must_be_defined()?;
    let found = match (value, key) {
        (Value::Dict(dict), key) => dict.get(key).cloned(),
        (Value::Str(text), key) if key.as_int().is_some() => {
            let count = text.chars().count();
            let at = place(key, count);
            at.and_then(|at| text.chars().nth(at)).map(|c| Value::from(c.to_string()))
        }
        (Value::List(items) | Value::Tuple(items), key) if key.as_int().is_some() => {
            place(key, items.len()).and_then(|at| items.get(at).cloned())
        }
        _ => None,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    if let Value::Str(name) = key {
        return Ok(python_attribute(value, name).unwrap_or_else(|| no_attribute(value, name)));
    }
    let kind = value.type_name();
    let message = format!("{kind} object has no element {}", python::repr(key));
    Ok(Value::Undefined(message.into()))
}

/// An index counted from the front; nothing where it lies outside.
fn place(key: &Value, len: usize) -> Option<usize> {
    let at = key.as_int()?;
    let at = if at < 0 { at + len as i128 } else { at };
    usize::try_from(at).ok().filter(|&at| at < len)
}

/// The undefined value of an attribute that is not there.
fn no_attribute(value: &Value, name: &str) -> Value {
    let kind = value.type_name();
    Value::Undefined(format!("'{kind} object' has no attribute '{name}'").into())
}

/// An attribute that the value's type has in Python. Names with `_` in front are hidden, as in
/// Jinja's sandbox; methods that change a value are undefined with the sandbox's message. `None`
/// where there is none of this name. A tuple of two has the names of a group of `groupby`.
fn python_attribute(value: &Value, name: &Arc<str>) -> Option<Value> {
    if name.starts_with('_') {
        return None;
    }
    match value {
        Value::Namespace(names) => names.borrow().get(&**name).cloned(),
        Value::Loop(state) => loop_attribute(value, state, name),
        Value::Cycler(cycler) => match &**name {
            "current" => cycler.items.get(cycler.at.get() % cycler.items.len()).cloned(),
            "next" | "reset" => Some(Value::Method(Rc::new(value.clone()), Arc::clone(name))),
            _ => None,
        },
        Value::Macro(called) => match &**name {
            "name" => Some(Value::Str(Arc::clone(&called.def.name))),
            "arguments" => {
                let names =
                    called.def.parameters.iter().map(|(name, _)| Value::Str(Arc::clone(name)));
                Some(Value::tuple(names.collect()))
            }
            "catch_kwargs" => Some(Value::Bool(called.def.uses.kwargs)),
            "catch_varargs" => Some(Value::Bool(called.def.uses.varargs)),
            "caller" => Some(Value::Bool(called.def.uses.caller)),
            _ => None,
        },
        Value::Int(_) | Value::Bool(_) if matches!(&**name, "real" | "numerator") => {
            value.as_int().map(Value::Int)
        }
        Value::Int(_) | Value::Bool(_) if &**name == "imag" => Some(Value::Int(0)),
        Value::Int(_) | Value::Bool(_) if &**name == "denominator" => Some(Value::Int(1)),
        Value::Float(number) if &**name == "real" => Some(Value::Float(*number)),
        Value::Float(_) if &**name == "imag" => Some(Value::Float(0.0)),
        // A group of `groupby` is a pair with names.
        Value::Tuple(pair) if pair.len() == 2 && matches!(&**name, "grouper" | "list") => {
            pair.get(usize::from(&**name == "list")).cloned()
        }
        Value::Function("dict") if &**name == "fromkeys" => {
            Some(Value::Method(Rc::new(value.clone()), Arc::clone(name)))
        }
        value if methods::changes(value, name) => {
            let kind = value.type_name();
            let message = format!("access to attribute '{name}' of '{kind}' object is unsafe.");
            Some(Value::Undefined(message.into()))
        }
        value => methods::exists(value, name)
            .then(|| Value::Method(Rc::new(value.clone()), Arc::clone(name))),
    }
}

/// An attribute of `loop`, as in Jinja's `LoopContext`. `index` counts from 1 and `index0` from 0;
/// `depth` is 1 in the outermost loop. The whole list is known, so `length`, `last` and `nextitem`
/// cost nothing.
fn loop_attribute(value: &Value, state: &Rc<Loop>, name: &Arc<str>) -> Option<Value> {
    let (at, len) = (state.at.get(), state.items.len());
    let number = |value: usize| Some(Value::Int(value as i128));
    let neighbour = |at: Option<usize>, which: &str| {
        let item = at.and_then(|at| state.items.get(at).cloned());
        Some(item.unwrap_or_else(|| Value::Undefined(format!("there is no {which} item").into())))
    };
    match &**name {
        "index" => number(at + 1),
        "index0" => number(at),
        "revindex" => number(len - at),
        "revindex0" => number(len - at - 1),
        "first" => Some(Value::Bool(at == 0)),
        "last" => Some(Value::Bool(at + 1 == len)),
        "length" => number(len),
        "depth" => number(state.depth + 1),
        "depth0" => number(state.depth),
        "previtem" => neighbour(at.checked_sub(1), "previous"),
        "nextitem" => neighbour(Some(at + 1), "next"),
        "cycle" | "changed" => Some(Value::Method(Rc::new(value.clone()), Arc::clone(name))),
        _ => None,
    }
}

/// `value[start:stop:step]`. The result is of the value's type. `bounds` are start, stop and step.
/// `None` for what has no slices.
///
/// # Errors
/// Python's `ValueError` for a step of 0.
pub(super) fn slice(value: &Value, bounds: [Option<i128>; 3]) -> Result<Option<Value>, JinjaError> {
    value.must_be_defined()?;
    let [start, stop, step] = bounds;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(JinjaError::of_value("slice step cannot be zero"));
    }
    Ok(Some(match value {
        Value::Str(text) if step == 1 => {
            let count = text.chars().count();
            let kept = places_in(count, start, stop);
            let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(at, _)| at);
            let from = byte(kept.start);
            Value::from(&text[from..byte(kept.end).max(from)])
        }
        Value::Str(text) => {
            let chars: Vec<char> = text.chars().collect();
            let kept: String =
                places(chars.len(), start, stop, step).into_iter().map(|at| chars[at]).collect();
            Value::from(kept)
        }
        Value::List(items) | Value::Tuple(items) => {
            let kept = places(items.len(), start, stop, step);
            let kept = kept.into_iter().map(|at| items[at].clone()).collect();
            match value {
                Value::List(_) => Value::list(kept),
                _ => Value::tuple(kept),
            }
        }
        _ => return Ok(None),
    }))
}

/// Places of a slice without a step. Bounds beyond the ends are moved to them; the range may be
/// empty with a start above its end.
fn places_in(len: usize, start: Option<i128>, stop: Option<i128>) -> std::ops::Range<usize> {
    let bound = |bound: i128| {
        let bound = if bound < 0 { bound + len as i128 } else { bound };
        bound.clamp(0, len as i128) as usize
    };
    start.map_or(0, bound)..stop.map_or(len, bound)
}

/// Places of a slice with a step, in its order, as `slice.indices` of Python gives them. With a
/// negative step, the default start is the last place, and the default stop lies before the first.
fn places(len: usize, start: Option<i128>, stop: Option<i128>, step: i128) -> Vec<usize> {
    let count = len as i128;
    let (low, high) = if step > 0 { (0, count) } else { (-1, count - 1) };
    let bound = |bound: i128| {
        let bound = if bound < 0 { bound + count } else { bound };
        bound.clamp(low, high)
    };
    let start = start.map_or(if step > 0 { low } else { high }, bound);
    let stop = stop.map_or(if step > 0 { high } else { low }, bound);
    let mut places = Vec::new();
    let mut at = start;
    while if step > 0 { at < stop } else { at > stop } {
        places.push(at as usize);
        at = at.saturating_add(step);
    }
    places
}

/// A cycler's next value. Moves on by one, and from the last to the first.
pub(super) fn cycled(items: &[Value], at: &Cell<usize>) -> Value {
    let value = items.get(at.get() % items.len().max(1)).cloned();
    at.set((at.get() + 1) % items.len().max(1));
    value.unwrap_or(Value::None)
}
