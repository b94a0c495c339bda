//! The tree of a template.

use std::sync::Arc;

/// A statement and the line where it begins.
#[derive(Debug)]
pub(super) struct Stmt {
    /// The statement.
    pub(super) kind: StmtKind,
    /// The line, from 1, which errors name.
    pub(super) line: u32,
}

/// Statements.
#[derive(Debug)]
pub(super) enum StmtKind {
    /// Text as it is.
    Data(Arc<str>),
    /// `{{ expression }}`
    Print(Expr),
    /// `{% for target in iter %}...{% else %}...{% endfor %}`
    For(Arc<ForLoop>),
    /// `{% if %}...{% elif %}...{% else %}...{% endif %}`: conditions with their bodies, in order,
    /// and the body for when none holds.
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    /// `{% with name = value %}...{% endwith %}`: names of the body alone.
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    /// `{% set name = value %}`
    Set(Target, Expr),
    /// `{% set name | filters %}...{% endset %}`
    SetBlock(Target, Option<Expr>, Vec<Stmt>),
    /// `{% filter name %}...{% endfilter %}`
    FilterBlock(Expr, Vec<Stmt>),
    /// `{% macro name(parameters) %}...{% endmacro %}`
    Macro(Arc<MacroDef>),
    /// `{% call(names) macro(..) %}...{% endcall %}`
    Call(Expr, Arc<MacroDef>),
    /// A body with names of its own, such as transformers' `generation`.
    Scoped(Vec<Stmt>),
    /// A block that sees the names of the outermost level alone.
    Block(Vec<Stmt>),
    /// `{% break %}` of the extension for loop controls.
    Break,
    /// `{% continue %}` of the same extension.
    Continue,
}

/// A loop.
#[derive(Debug)]
pub(crate) struct ForLoop {
    /// Names that each item is assigned to.
    pub(super) target: Target,
    /// The value whose items are looped over.
    pub(super) iter: Expr,
    /// The condition behind `if`: items without it are not counted in `loop`.
    pub(super) filter: Option<Expr>,
    /// True where `loop(items)` may run the loop again on other items.
    pub(super) recursive: bool,
    /// The statements of one turn.
    pub(super) body: Vec<Stmt>,
    /// The statements behind `else`.
    pub(super) otherwise: Vec<Stmt>,
}

/// A macro, or the body of a `call` block (then named `caller`).
#[derive(Debug)]
pub(crate) struct MacroDef {
    /// The macro's name, under which it is set in its scope.
    pub(super) name: Arc<str>,
    /// Parameters, with the defaults of the last ones.
    pub(super) parameters: Vec<(Arc<str>, Option<Expr>)>,
    /// The statements whose output is the macro's value.
    pub(super) body: Vec<Stmt>,
    /// Special names that the body mentions.
    pub(super) uses: Uses,
}

/// Special names in the body of a macro. A macro accepts what these names hold only where its body
/// mentions them, as in Jinja.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Uses {
    /// `caller`: the body of the `call` block around the call.
    pub(super) caller: bool,
    /// `varargs`: arguments by place beyond the parameters.
    pub(super) varargs: bool,
    /// `kwargs`: arguments by name that no parameter has.
    pub(super) kwargs: bool,
}

/// Names that are assigned to.
#[derive(Debug)]
pub(super) enum Target {
    /// A name of the scope at hand.
    Name(Arc<str>),
    /// `namespace.attribute`
    Attribute(Arc<str>, Arc<str>),
    /// `a, b`: the value is unpacked, and must have as many items.
    Several(Vec<Self>),
}

/// Constants.
#[derive(Clone, Debug)]
pub(super) enum Literal {
    /// `none` or `None`.
    None,
    /// `true`, `false`, or with a capital.
    Bool(bool),
    /// Decimal, binary, octal or hexadecimal, within 128 bits; Python has no bound.
    Int(i128),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// A string literal with its escapes replaced; several in a row are one.
    Text(Arc<str>),
}

/// Expressions.
#[derive(Debug)]
pub(super) enum Expr {
    /// A literal.
    Const(Literal),
    /// A name, looked up from the inside out and then among Jinja's globals.
    Name(Arc<str>),
    /// `[a, b]`
    List(Vec<Self>),
    /// `(a, b)`, or several subscripts.
    Tuple(Vec<Self>),
    /// `{key: value}`, in order.
    Dict(Vec<(Self, Self)>),
    /// `value.name`
    Attribute(Box<Self>, Arc<str>),
    /// `value[key]`, and `value.0`.
    Item(Box<Self>, Box<Self>),
    /// Start, stop and step.
    Slice(Box<Self>, Box<[Option<Self>; 3]>),
    /// `callee(arguments)`
    Call(Box<Self>, Args),
    /// Without a value where the filter is that of a block.
    Filter(Option<Box<Self>>, Arc<str>, Args),
    /// `value is name(arguments)`
    Test(Box<Self>, Arc<str>, Args),
    /// `not value`
    Not(Box<Self>),
    /// `-value`
    Negative(Box<Self>),
    /// `+value`
    Positive(Box<Self>),
    /// Arithmetic of two values.
    Binary(BinaryOp, Box<Self>, Box<Self>),
    /// A chain such as `a < b <= c`, which holds where each neighbouring pair does.
    Compare(Box<Self>, Vec<(CompareOp, Self)>),
    /// `a and b`: the value of `a` where that is false, else that of `b`.
    And(Box<Self>, Box<Self>),
    /// `a or b`: the value of `a` where that is true, else that of `b`.
    Or(Box<Self>, Box<Self>),
    /// Condition, value, and the value otherwise.
    If(Box<Self>, Box<Self>, Option<Box<Self>>),
    /// Operands of `~`.
    Concat(Vec<Self>),
}

impl Expr {
    /// True without names and calls, so that Jinja works the value out as it reads the template.
    pub(super) fn is_constant(&self) -> bool {
        match self {
            Self::Const(_) => true,
            Self::Name(_) | Self::Call(..) => false,
            Self::List(items) | Self::Tuple(items) | Self::Concat(items) => {
                items.iter().all(Self::is_constant)
            }
            Self::Dict(entries) => {
                entries.iter().all(|(key, value)| key.is_constant() && value.is_constant())
            }
            Self::Attribute(value, _)
            | Self::Not(value)
            | Self::Negative(value)
            | Self::Positive(value) => value.is_constant(),
            Self::Item(a, b) | Self::Binary(_, a, b) | Self::And(a, b) | Self::Or(a, b) => {
                a.is_constant() && b.is_constant()
            }
            Self::Slice(value, bounds) => {
                value.is_constant() && bounds.iter().flatten().all(Self::is_constant)
            }
            Self::Filter(value, _, args) => {
                value.as_ref().is_some_and(|value| value.is_constant()) && args.are_constant()
            }
            Self::Test(value, _, args) => value.is_constant() && args.are_constant(),
            Self::Compare(first, operands) => {
                first.is_constant() && operands.iter().all(|(_, operand)| operand.is_constant())
            }
            Self::If(condition, value, otherwise) => {
                condition.is_constant()
                    && value.is_constant()
                    && otherwise.as_ref().is_none_or(|value| value.is_constant())
            }
        }
    }
}

/// Arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BinaryOp {
    Add,
    Sub,
    Mul,
    /// `/`, always a float.
    Div,
    /// `//`, rounded down, not toward zero.
    FloorDiv,
    /// `%`, with the divisor's sign; of a text, printf's formatting.
    Rem,
    /// `**`, which binds from the left here, as in Jinja.
    Pow,
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// `in`: a part of a text, an item, or a key.
    In,
    /// `not in`.
    NotIn,
}

/// Arguments of a call, filter or test.
#[derive(Debug, Default)]
pub(super) struct Args {
    /// By place, in order.
    pub(super) positional: Vec<Expr>,
    /// By name, in order.
    pub(super) named: Vec<(Arc<str>, Expr)>,
    /// `*list`
    pub(super) more: Option<Box<Expr>>,
    /// `**dict`
    pub(super) more_named: Option<Box<Expr>>,
}

impl Args {
    /// True where all of them are. See [`Expr::is_constant`].
    fn are_constant(&self) -> bool {
        let more = [&self.more, &self.more_named].into_iter().flatten();
        self.positional.iter().all(Expr::is_constant)
            && self.named.iter().all(|(_, value)| value.is_constant())
            && more.into_iter().all(|value| value.is_constant())
    }
}

/// True where some loop of these statements goes over a value or attribute of this name. Bodies at
/// any depth are looked through, those of macros too.
pub(super) fn loops_over(body: &[Stmt], name: &str) -> bool {
    body.iter().any(|stmt| match &stmt.kind {
        StmtKind::For(def) => {
            reads(&def.iter, name)
                || loops_over(&def.body, name)
                || loops_over(&def.otherwise, name)
        }
        StmtKind::If(branches, otherwise) => {
            branches.iter().any(|(_, body)| loops_over(body, name)) || loops_over(otherwise, name)
        }
        StmtKind::With(_, body)
        | StmtKind::SetBlock(_, _, body)
        | StmtKind::FilterBlock(_, body)
        | StmtKind::Block(body)
        | StmtKind::Scoped(body) => loops_over(body, name),
        StmtKind::Macro(def) | StmtKind::Call(_, def) => loops_over(&def.body, name),
        _ => false,
    })
}

/// True where a loop over this expression meets the items of a value or attribute of this name.
/// Filters and slices keep the items; other expressions are taken not to.
fn reads(expr: &Expr, name: &str) -> bool {
    match expr {
        Expr::Name(found) | Expr::Attribute(_, found) => **found == *name,
        Expr::Item(_, key) => {
            matches!(&**key, Expr::Const(Literal::Text(text)) if **text == *name)
        }
        Expr::Filter(Some(value), ..) | Expr::Slice(value, _) => reads(value, name),
        _ => false,
    }
}
