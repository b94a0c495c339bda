//! Expressions, from the loosest binding to the tightest.

use std::sync::Arc;

use super::super::ast::{Args, BinaryOp, CompareOp, Expr, Literal};
use super::super::lexer::Token;
use super::{Parsed, Parser};

impl Parser {
    /// Any expression, one level deeper. The loosest rule: a condition.
    pub(super) fn expression(&mut self) -> Parsed<Expr> {
        self.nested(Self::conditional)
    }

    /// `value if condition else otherwise`. `else` may be left out; the value is undefined then
    /// where the condition does not hold.
    fn conditional(&mut self) -> Parsed<Expr> {
        let mut value = self.or()?;
        while self.skip_name("if") {
            self.deeper()?;
            let condition = self.or()?;
            let otherwise = match self.skip_name("else") {
                true => Some(Box::new(self.expression()?)),
                false => None,
            };
            value = Expr::If(Box::new(condition), Box::new(value), otherwise);
        }
        Ok(value)
    }

    /// Operands of `or`, from the left.
    fn or(&mut self) -> Parsed<Expr> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            self.deeper()?;
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    /// Operands of `and`, from the left.
    fn and(&mut self) -> Parsed<Expr> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            self.deeper()?;
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    /// `not`, which binds looser than comparisons.
    fn not(&mut self) -> Parsed<Expr> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.nested(Self::not)?)));
        }
        self.comparison()
    }

    /// A chain of comparisons, as in Python. Operators are `==`, `!=`, `<`, `<=`, `>`, `>=`, `in`
    /// and `not in`.
    fn comparison(&mut self) -> Parsed<Expr> {
        let first = self.sum()?;
        let mut operands = Vec::new();
        while let Some(op) = self.comparison_op() {
            operands.push((op, self.sum()?));
        }
        Ok(if operands.is_empty() { first } else { Expr::Compare(Box::new(first), operands) })
    }

    /// The comparison at hand, taken; `not in` has two tokens.
    fn comparison_op(&mut self) -> Option<CompareOp> {
        let (op, tokens) = match self.peek() {
            Token::Op("==") => (CompareOp::Eq, 1),
            Token::Op("!=") => (CompareOp::Ne, 1),
            Token::Op("<") => (CompareOp::Lt, 1),
            Token::Op("<=") => (CompareOp::Le, 1),
            Token::Op(">") => (CompareOp::Gt, 1),
            Token::Op(">=") => (CompareOp::Ge, 1),
            Token::Name(name) if &**name == "in" => (CompareOp::In, 1),
            Token::Name(name)
                if &**name == "not"
                    && matches!(self.look(1), Token::Name(next) if &**next == "in") =>
            {
                (CompareOp::NotIn, 2)
            }
            _ => return None,
        };
        self.at += tokens;
        Some(op)
    }

    /// Sums, one level deeper.
    fn sum(&mut self) -> Parsed<Expr> {
        self.nested(Self::terms)
    }

    /// Operands of `+` and `-`, from the left.
    fn terms(&mut self) -> Parsed<Expr> {
        let mut left = self.concatenation()?;
        loop {
            let op = match self.peek() {
                Token::Op("+") => BinaryOp::Add,
                Token::Op("-") => BinaryOp::Sub,
                _ => return Ok(left),
            };
            self.next();
            self.deeper()?;
            left = Expr::Binary(op, Box::new(left), Box::new(self.concatenation()?));
        }
    }

    /// Operands of `~`, which binds tighter than `+`, as in Jinja. All operands of one chain are
    /// one node.
    fn concatenation(&mut self) -> Parsed<Expr> {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.skip_op("~") {
            operands.push(self.product()?);
        }
        Ok(Expr::Concat(operands))
    }

    /// Operands of `*`, `/`, `//` and `%`, from the left.
    fn product(&mut self) -> Parsed<Expr> {
        let mut left = self.power()?;
        loop {
            let op = match self.peek() {
                Token::Op("*") => BinaryOp::Mul,
                Token::Op("/") => BinaryOp::Div,
                Token::Op("//") => BinaryOp::FloorDiv,
                Token::Op("%") => BinaryOp::Rem,
                _ => return Ok(left),
            };
            self.next();
            self.deeper()?;
            left = Expr::Binary(op, Box::new(left), Box::new(self.power()?));
        }
    }

    /// Operands of `**`. Jinja takes them from the left, where Python takes them from the right.
    fn power(&mut self) -> Parsed<Expr> {
        let mut left = self.unary(true)?;
        while self.skip_op("**") {
            self.deeper()?;
            left = Expr::Binary(BinaryOp::Pow, Box::new(left), Box::new(self.unary(true)?));
        }
        Ok(left)
    }

    /// An operand, one level deeper.
    fn unary(&mut self, with_filters: bool) -> Parsed<Expr> {
        self.nested(|parser| parser.operand(with_filters))
    }

    /// A sign with its operand, or a primary, and what follows it. Filters and tests bind looser
    /// than a sign, as `with_filters` is false behind one. Calls, attributes and subscripts bind
    /// tighter than a sign.
    fn operand(&mut self, with_filters: bool) -> Parsed<Expr> {
        let value = if self.skip_op("-") {
            Expr::Negative(Box::new(self.nested(|parser| parser.unary(false))?))
        } else if self.skip_op("+") {
            Expr::Positive(Box::new(self.nested(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if with_filters { self.filters_and_tests(value) } else { Ok(value) }
    }

    /// A literal, a name, or an expression in brackets. Strings in a row are one. An empty pair of
    /// round brackets is the empty tuple.
    fn primary(&mut self) -> Parsed<Expr> {
        let token = self.peek().clone();
        match token {
            Token::Name(name) => {
                self.next();
                Ok(self.named(name))
            }
            Token::Text(text) => {
                self.next();
                let mut text = text.to_string();
                while let Token::Text(more) = self.peek().clone() {
                    text.push_str(&more);
                    self.next();
                }
                Ok(Expr::Const(Literal::Text(text.into())))
            }
            Token::Int(value) => {
                self.next();
                Ok(Expr::Const(Literal::Int(value)))
            }
            Token::Float(value) => {
                self.next();
                Ok(Expr::Const(Literal::Float(value)))
            }
            Token::Op("(") => {
                self.next();
                if self.skip_op(")") {
                    return Ok(Expr::Tuple(Vec::new()));
                }
                let value = self.nested(|parser| parser.tuple(true, &[]))?;
                self.expect_op(")")?;
                Ok(value)
            }
            Token::Op("[") => {
                self.next();
                Ok(Expr::List(self.list("]")?))
            }
            Token::Op("{") => {
                self.next();
                self.dict()
            }
            _ => self.unexpected("an expression"),
        }
    }

    /// A name as an expression: a constant, or a look-up. Notes the special names of a macro.
    /// `True`, `False` and `None` are constants with and without the capital.
    fn named(&mut self, name: Arc<str>) -> Expr {
        match &*name {
            "true" | "True" => return Expr::Const(Literal::Bool(true)),
            "false" | "False" => return Expr::Const(Literal::Bool(false)),
            "none" | "None" => return Expr::Const(Literal::None),
            "caller" => self.uses.caller = true,
            "varargs" => self.uses.varargs = true,
            "kwargs" => self.uses.kwargs = true,
            _ => {}
        }
        Expr::Name(name)
    }

    /// Expressions up to a closing bracket, with commas between them; one may stand at the end.
    fn list(&mut self, end: &str) -> Parsed<Vec<Expr>> {
        let mut items = Vec::new();
        while !self.is_op(end) {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op(end) {
                    break;
                }
            }
            items.push(self.expression()?);
        }
        self.expect_op(end)?;
        Ok(items)
    }

    /// A dictionary behind its `{`.
    fn dict(&mut self) -> Parsed<Expr> {
        let mut items = Vec::new();
        while !self.is_op("}") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.expect_op(":")?;
            items.push((key, self.expression()?));
        }
        self.expect_op("}")?;
        Ok(Expr::Dict(items))
    }

    /// One expression, or several with commas between them. A comma at the end makes a tuple of
    /// one. `with_conditions` allows `a if b else c` without brackets; one of `ends` ends it, as
    /// does the end of the tag or a bracket.
    pub(super) fn tuple(&mut self, with_conditions: bool, ends: &[&str]) -> Parsed<Expr> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            let ends_here = matches!(self.peek(), Token::VariableEnd | Token::BlockEnd)
                || self.is_op(")")
                || ends.iter().any(|end| self.is_name(end));
            if is_tuple && ends_here {
                break;
            }
            items.push(if with_conditions { self.expression()? } else { self.nested(Self::or)? });
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match items.pop() {
            Some(only) if !is_tuple => Ok(only),
            last => {
                items.extend(last);
                Ok(Expr::Tuple(items))
            }
        }
    }

    /// Attributes, subscripts and calls behind a value, from the left.
    fn postfix(&mut self, mut value: Expr) -> Parsed<Expr> {
        loop {
            self.deeper()?;
            value = match self.peek() {
                Token::Op(".") => self.attribute(value)?,
                Token::Op("[") => self.subscript(value)?,
                Token::Op("(") => Expr::Call(Box::new(value), self.args()?),
                _ => return Ok(value),
            };
        }
    }

    /// Filters, tests and calls behind a value, from the left. A call binds to the filter's result
    /// here.
    fn filters_and_tests(&mut self, mut value: Expr) -> Parsed<Expr> {
        loop {
            self.deeper()?;
            value = match self.peek() {
                Token::Op("|") => self.filters(Some(value), false)?,
                Token::Name(name) if &**name == "is" => self.test(value)?,
                Token::Op("(") => Expr::Call(Box::new(value), self.args()?),
                _ => return Ok(value),
            };
        }
    }

    /// `.name` or `.0`.
    fn attribute(&mut self, value: Expr) -> Parsed<Expr> {
        self.next();
        match self.peek().clone() {
            Token::Name(name) => {
                self.next();
                Ok(Expr::Attribute(Box::new(value), name))
            }
            Token::Int(at) => {
                self.next();
                Ok(Expr::Item(Box::new(value), Box::new(Expr::Const(Literal::Int(at)))))
            }
            _ => self.unexpected("name or number"),
        }
    }

    /// `[key]`, `[a, b]` as a tuple, or a slice. Parts of a slice may be missing; an empty
    /// subscript is an error.
    fn subscript(&mut self, value: Expr) -> Parsed<Expr> {
        self.next();
        if self.is_op("]") {
            return self.unexpected("a subscript");
        }
        let start = if self.is_op(":") { None } else { Some(self.expression()?) };
        if !self.is_op(":") {
            let mut keys = vec![];
            keys.extend(start);
            while self.skip_op(",") {
                keys.push(self.expression()?);
            }
            self.expect_op("]")?;
            let key = match keys.pop() {
                Some(only) if keys.is_empty() => only,
                last => {
                    keys.extend(last);
                    Expr::Tuple(keys)
                }
            };
            return Ok(Expr::Item(Box::new(value), Box::new(key)));
        }
        self.next();
        let stop = if self.is_op(":") || self.is_op("]") { None } else { Some(self.expression()?) };
        let step = match self.skip_op(":") && !self.is_op("]") {
            true => Some(self.expression()?),
            false => None,
        };
        self.expect_op("]")?;
        Ok(Expr::Slice(Box::new(value), Box::new([start, stop, step])))
    }

    /// A name of a filter or test, which may have points.
    fn dotted_name(&mut self) -> Parsed<Arc<str>> {
        let mut name = self.name()?.to_string();
        while self.skip_op(".") {
            name.push('.');
            name.push_str(&self.name()?);
        }
        Ok(name.into())
    }

    /// `| name(..) | ..`; the first `|` is left out where a block begins with a filter. Without a
    /// value, the innermost filter takes the block's text.
    pub(super) fn filters(&mut self, value: Option<Expr>, inline: bool) -> Parsed<Expr> {
        let mut value = value.map(Box::new);
        let mut inline = inline;
        loop {
            if !inline && !self.skip_op("|") {
                break;
            }
            inline = false;
            self.deeper()?;
            let name = self.dotted_name()?;
            let args = if self.is_op("(") { self.args()? } else { Args::default() };
            value = Some(Box::new(Expr::Filter(value, name, args)));
        }
        match value {
            Some(value) => Ok(*value),
            None => self.unexpected("a filter"),
        }
    }

    /// `is name`, `is not name`, with arguments in brackets or one without. The one argument is a
    /// primary with what follows it, so that `is divisibleby 3 and x` ends at `and`. A test behind
    /// a test is an error.
    fn test(&mut self, value: Expr) -> Parsed<Expr> {
        self.next();
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let takes_one = match self.peek() {
            Token::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Token::Text(_) | Token::Int(_) | Token::Float(_) | Token::Op("[" | "{") => true,
            _ => false,
        };
        let args = if self.is_op("(") {
            self.args()?
        } else if takes_one {
            if self.is_name("is") {
                return self.error("You cannot chain multiple tests with is");
            }
            let value = self.primary()?;
            Args { positional: vec![self.postfix(value)?], ..Args::default() }
        } else {
            Args::default()
        };
        let test = Expr::Test(Box::new(value), name, args);
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }

    /// Arguments in brackets. Nothing by place may follow a name; of several `*` or `**` the last
    /// counts.
    fn args(&mut self) -> Parsed<Args> {
        self.expect_op("(")?;
        let mut args = Args::default();
        let mut is_first = true;
        while !self.is_op(")") {
            if !is_first {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            is_first = false;
            if self.skip_op("**") {
                args.more_named = Some(Box::new(self.expression()?));
            } else if self.skip_op("*") {
                args.more = Some(Box::new(self.expression()?));
            } else if let (Token::Name(name), Token::Op("=")) = (self.peek().clone(), self.look(1))
            {
                self.at += 2;
                args.named.push((name, self.expression()?));
            } else if args.named.is_empty() && args.more_named.is_none() {
                args.positional.push(self.expression()?);
            } else {
                return self.error("invalid syntax for function call expression");
            }
        }
        self.expect_op(")")?;
        Ok(args)
    }
}
