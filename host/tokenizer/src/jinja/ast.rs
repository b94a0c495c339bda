//! The tree of a template.

use std::sync::Arc;

/// A statement and the line where it begins.
#[derive(Debug)]
pub(super) struct Stmt {
    pub(super) kind: StmtKind,
    pub(super) line: u32,
}

/// Statements.
#[derive(Debug)]
pub(super) enum StmtKind {
    /// Text as it is.
    Data(Arc<str>),
    /// `{{ expression }}`
    Print(Expr),
    For(Arc<ForLoop>),
    /// Conditions with their bodies, and what else is done.
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    Set(Target, Expr),
    /// `{% set name | filters %}...{% endset %}`
    SetBlock(Target, Option<Expr>, Vec<Stmt>),
    /// `{% filter name %}...{% endfilter %}`
    FilterBlock(Expr, Vec<Stmt>),
    Macro(Arc<MacroDef>),
    /// `{% call(names) macro(..) %}...{% endcall %}`
    Call(Expr, Arc<MacroDef>),
    /// A body with names of its own, such as transformers' `generation`.
    Scoped(Vec<Stmt>),
    /// A block that sees the names of the outermost level alone.
    Block(Vec<Stmt>),
    Break,
    Continue,
}

/// A loop.
#[derive(Debug)]
pub(crate) struct ForLoop {
    pub(super) target: Target,
    pub(super) iter: Expr,
    pub(super) filter: Option<Expr>,
    pub(super) recursive: bool,
    pub(super) body: Vec<Stmt>,
    pub(super) otherwise: Vec<Stmt>,
}

/// A macro, or the body of a `call` block (then named `caller`).
#[derive(Debug)]
pub(crate) struct MacroDef {
    pub(super) name: Arc<str>,
    /// Parameters, with the defaults of the last ones.
    pub(super) parameters: Vec<(Arc<str>, Option<Expr>)>,
    pub(super) body: Vec<Stmt>,
    /// Special names that the body mentions.
    pub(super) uses: Uses,
}

/// Special names in the body of a macro.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Uses {
    pub(super) caller: bool,
    pub(super) varargs: bool,
    pub(super) kwargs: bool,
}

/// Names that are assigned to.
#[derive(Debug)]
pub(super) enum Target {
    Name(Arc<str>),
    /// `namespace.attribute`
    Attribute(Arc<str>, Arc<str>),
    Several(Vec<Self>),
}

/// Constants.
#[derive(Clone, Debug)]
pub(super) enum Literal {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Arc<str>),
}

/// Expressions.
#[derive(Debug)]
pub(super) enum Expr {
    Const(Literal),
    Name(Arc<str>),
    List(Vec<Self>),
    Tuple(Vec<Self>),
    Dict(Vec<(Self, Self)>),
    Attribute(Box<Self>, Arc<str>),
    Item(Box<Self>, Box<Self>),
    /// Start, stop and step.
    Slice(Box<Self>, Box<[Option<Self>; 3]>),
    Call(Box<Self>, Args),
    /// Without a value where the filter is that of a block.
    Filter(Option<Box<Self>>, Arc<str>, Args),
    Test(Box<Self>, Arc<str>, Args),
    Not(Box<Self>),
    Negative(Box<Self>),
    Positive(Box<Self>),
    Binary(BinaryOp, Box<Self>, Box<Self>),
    Compare(Box<Self>, Vec<(CompareOp, Self)>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    /// Condition, value, and the value otherwise.
    If(Box<Self>, Box<Self>, Option<Box<Self>>),
    /// Operands of `~`.
    Concat(Vec<Self>),
}

/// Arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Rem,
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
    In,
    NotIn,
}

/// Arguments of a call, filter or test.
#[derive(Debug, Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(Arc<str>, Expr)>,
    /// `*list`
    pub(super) more: Option<Box<Expr>>,
    /// `**dict`
    pub(super) more_named: Option<Box<Expr>>,
}

/// True where some loop of these statements goes over a value or attribute of this name.
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
