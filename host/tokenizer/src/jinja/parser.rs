//! Jinja's grammar: from tokens to the tree.

use std::sync::Arc;

use super::ast::{
    Args, BinaryOp, CompareOp, Expr, ForLoop, Literal, MacroDef, Stmt, StmtKind, Target, Uses,
};
use super::error::JinjaError;
use super::lexer::{Lexeme, Token, tokenize};

/// Nesting of expressions and statements; links of a chain like `a + b + c` nest too.
const MAX_DEPTH: usize = 200;

type Parsed<T> = Result<T, JinjaError>;

/// The statements of a template.
///
/// # Errors
/// If it is no Jinja, or uses what chat templates cannot: other templates.
pub(super) fn parse(source: &str) -> Parsed<Vec<Stmt>> {
    let tokens = tokenize(source)?;
    let mut parser =
        Parser { tokens, at: 0, depth: 0, uses: Uses::default(), loops: 0, blocks: Vec::new() };
    let body = parser.body(&[])?;
    parser.ends()?;
    Ok(body)
}

struct Parser {
    tokens: Vec<Lexeme>,
    at: usize,
    depth: usize,
    /// Special names that the macro at hand has mentioned so far.
    uses: Uses,
    /// Loops around the statement at hand.
    loops: usize,
    /// Names of blocks so far.
    blocks: Vec<Arc<str>>,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].token
    }

    fn look(&self, ahead: usize) -> &Token {
        self.tokens.get(self.at + ahead).map_or(&Token::End, |lexeme| &lexeme.token)
    }

    fn line(&self) -> u32 {
        self.tokens[self.at].line
    }

    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].token.clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    fn error<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err(JinjaError::syntax(message, self.line()))
    }

    fn unexpected<T>(&self, expected: &str) -> Parsed<T> {
        self.error(format!("unexpected {}, expected {expected}", self.peek().shown()))
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Token::Op(found) if *found == op)
    }

    fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.next();
        }
        found
    }

    fn expect_op(&mut self, op: &str) -> Parsed<()> {
        if self.skip_op(op) { Ok(()) } else { self.unexpected(&format!("`{op}`")) }
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if **found == *name)
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    fn name(&mut self) -> Parsed<Arc<str>> {
        match self.peek().clone() {
            Token::Name(name) => {
                self.next();
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    fn block_end(&mut self) -> Parsed<()> {
        match self.peek() {
            Token::BlockEnd => {
                self.next();
                Ok(())
            }
            _ => self.unexpected("end of statement block"),
        }
    }

    fn ends(&self) -> Parsed<()> {
        match self.peek() {
            Token::End => Ok(()),
            _ => self.unexpected("end of template"),
        }
    }

    /// Runs a rule one level deeper.
    fn nested<T>(&mut self, rule: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        let depth = self.depth;
        self.deeper()?;
        let result = rule(self);
        self.depth = depth;
        result
    }

    /// Goes one level deeper until the rule around it ends.
    fn deeper(&mut self) -> Parsed<()> {
        if self.depth >= MAX_DEPTH {
            return self.error(format!("the template nests more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        Ok(())
    }

    // Statements

    /// Statements up to a tag with one of these names, whose `{%` is taken; up to the template's end without names.
    fn body(&mut self, ends: &[&str]) -> Parsed<Vec<Stmt>> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.next() {
                Token::Data(text) => body.push(Stmt { kind: StmtKind::Data(text), line }),
                Token::VariableBegin => {
                    let kind = StmtKind::Print(self.tuple(true, &[])?);
                    match self.next() {
                        Token::VariableEnd => body.push(Stmt { kind, line }),
                        _ => {
                            self.at -= 1;
                            return self.unexpected("end of print statement");
                        }
                    }
                }
                Token::BlockBegin => {
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(body);
                    }
                    let kind = self.nested(Self::statement)?;
                    body.push(Stmt { kind, line });
                }
                Token::End if ends.is_empty() => return Ok(body),
                Token::End => {
                    let ends = ends.join("` or `");
                    return self.error(format!("unexpected end of template, expected `{ends}`"));
                }
                _ => return self.unexpected("a tag or text"),
            }
        }
    }

    /// The rest of a tag, its body, and its end.
    fn block_body(&mut self, end: &str) -> Parsed<Vec<Stmt>> {
        self.block_end()?;
        let body = self.body(&[end])?;
        self.next();
        self.block_end()?;
        Ok(body)
    }

    fn statement(&mut self) -> Parsed<StmtKind> {
        let name = self.name()?;
        match &*name {
            "for" => self.for_loop(),
            "if" => self.condition(),
            "set" => self.set(),
            "with" => self.with(),
            "macro" => self.macro_def(),
            "call" => self.call_block(),
            "filter" => {
                let filter = self.filters(None, true)?;
                Ok(StmtKind::FilterBlock(filter, self.block_body("endfilter")?))
            }
            // transformers marks the assistant's part with it; it changes no text.
            "generation" => Ok(StmtKind::Scoped(self.block_body("endgeneration")?)),
            "block" => self.block(),
            "autoescape" => {
                self.expression()?;
                Ok(StmtKind::Scoped(self.block_body("endautoescape")?))
            }
            "print" => {
                let value = self.tuple(true, &[])?;
                self.block_end()?;
                Ok(StmtKind::Print(value))
            }
            "break" | "continue" => {
                self.block_end()?;
                match (self.loops, &*name) {
                    (0, _) => self.error(format!("`{name}` stands in no loop")),
                    (_, "break") => Ok(StmtKind::Break),
                    _ => Ok(StmtKind::Continue),
                }
            }
            "extends" | "include" | "import" | "from" => {
                self.error(format!("`{name}` needs other templates, and a chat template has none"))
            }
            _ => self.error(format!("Encountered unknown tag '{name}'.")),
        }
    }

    fn block(&mut self) -> Parsed<StmtKind> {
        let name = self.name()?;
        if self.blocks.contains(&name) {
            return self.error(format!("block '{name}' defined twice"));
        }
        self.blocks.push(Arc::clone(&name));
        let is_scoped = self.skip_name("scoped");
        self.skip_name("required");
        self.block_end()?;
        let body = self.body(&["endblock"])?;
        self.next();
        self.skip_name(&name);
        self.block_end()?;
        Ok(if is_scoped { StmtKind::Scoped(body) } else { StmtKind::Block(body) })
    }

    fn for_loop(&mut self) -> Parsed<StmtKind> {
        self.loops += 1;
        let target = self.target(&["in"], false);
        self.loops -= 1;
        let target = target?;
        if !self.skip_name("in") {
            return self.unexpected("`in`");
        }
        let iter = self.tuple(false, &["recursive"])?;
        let filter = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.block_end()?;
        self.loops += 1;
        let body = self.body(&["endfor", "else"]);
        self.loops -= 1;
        let body = body?;
        let otherwise = match self.skip_name("else") {
            true => {
                self.block_end()?;
                self.body(&["endfor"])?
            }
            false => Vec::new(),
        };
        self.next();
        self.block_end()?;
        let def = ForLoop { target, iter, filter, recursive, body, otherwise };
        Ok(StmtKind::For(Arc::new(def)))
    }

    fn condition(&mut self) -> Parsed<StmtKind> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(false, &[])?;
            self.block_end()?;
            let body = self.body(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            if self.skip_name("elif") {
                continue;
            }
            let otherwise = match self.skip_name("else") {
                true => {
                    self.block_end()?;
                    self.body(&["endif"])?
                }
                false => Vec::new(),
            };
            self.next();
            self.block_end()?;
            return Ok(StmtKind::If(branches, otherwise));
        }
    }

    fn set(&mut self) -> Parsed<StmtKind> {
        let target = self.target(&[], true)?;
        if self.skip_op("=") {
            let value = self.tuple(true, &[])?;
            self.block_end()?;
            return Ok(StmtKind::Set(target, value));
        }
        let filter = if self.is_op("|") { Some(self.filters(None, false)?) } else { None };
        Ok(StmtKind::SetBlock(target, filter, self.block_body("endset")?))
    }

    fn with(&mut self) -> Parsed<StmtKind> {
        let mut names = Vec::new();
        while !matches!(self.peek(), Token::BlockEnd) {
            if !names.is_empty() {
                self.expect_op(",")?;
            }
            // One name: a comma begins the next one.
            let target = Target::Name(self.name()?);
            self.expect_op("=")?;
            names.push((target, self.expression()?));
        }
        Ok(StmtKind::With(names, self.block_body("endwith")?))
    }

    fn macro_def(&mut self) -> Parsed<StmtKind> {
        let name = self.name()?;
        let parameters = self.parameters()?;
        let def = self.macro_body(name, parameters, "endmacro")?;
        Ok(StmtKind::Macro(def))
    }

    fn call_block(&mut self) -> Parsed<StmtKind> {
        let parameters = if self.is_op("(") { self.parameters()? } else { Vec::new() };
        let call = self.expression()?;
        if !matches!(call, Expr::Call(..)) {
            return self.error("`call` needs a call");
        }
        let def = self.macro_body("caller".into(), parameters, "endcall")?;
        Ok(StmtKind::Call(call, def))
    }

    fn macro_body(
        &mut self,
        name: Arc<str>,
        parameters: Vec<(Arc<str>, Option<Expr>)>,
        end: &str,
    ) -> Parsed<Arc<MacroDef>> {
        let outer = std::mem::take(&mut self.uses);
        let loops = std::mem::take(&mut self.loops);
        let body = self.block_body(end);
        let uses = std::mem::replace(&mut self.uses, outer);
        self.loops = loops;
        Ok(Arc::new(MacroDef { name, parameters, body: body?, uses }))
    }

    fn parameters(&mut self) -> Parsed<Vec<(Arc<str>, Option<Expr>)>> {
        self.expect_op("(")?;
        let mut parameters: Vec<(Arc<str>, Option<Expr>)> = Vec::new();
        while !self.is_op(")") {
            if !parameters.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.name()?;
            let default = if self.skip_op("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.last().is_some_and(|(_, default)| default.is_some())
            {
                return self.error("non-default argument follows default argument");
            }
            parameters.push((name, default));
        }
        self.expect_op(")")?;
        Ok(parameters)
    }

    /// Names that are assigned to, up to one of `ends` or `=`.
    fn target(&mut self, ends: &[&str], with_namespace: bool) -> Parsed<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            let ends_here = matches!(self.peek(), Token::BlockEnd)
                || self.is_op("=")
                || self.is_op(")")
                || ends.iter().any(|end| self.is_name(end));
            if is_tuple && ends_here {
                break;
            }
            targets.push(self.one_target(with_namespace)?);
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match targets.pop() {
            Some(only) if !is_tuple => Ok(only),
            Some(last) => {
                targets.push(last);
                Ok(Target::Several(targets))
            }
            None => self.unexpected("a name"),
        }
    }

    fn one_target(&mut self, with_namespace: bool) -> Parsed<Target> {
        if self.skip_op("(") {
            let target = self.nested(|parser| parser.target(&[], with_namespace))?;
            self.expect_op(")")?;
            return Ok(target);
        }
        let name = self.name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return self.error(format!("can't assign to '{name}'"));
        }
        if self.loops > 0 && &*name == "loop" {
            return self.error("Can't assign to special loop variable in for-loop target");
        }
        if with_namespace && self.skip_op(".") {
            return Ok(Target::Attribute(name, self.name()?));
        }
        Ok(Target::Name(name))
    }

    // Expressions

    fn expression(&mut self) -> Parsed<Expr> {
        self.nested(Self::conditional)
    }

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

    fn or(&mut self) -> Parsed<Expr> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            self.deeper()?;
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed<Expr> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            self.deeper()?;
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Parsed<Expr> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.nested(Self::not)?)));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Parsed<Expr> {
        let first = self.sum()?;
        let mut operands = Vec::new();
        while let Some(op) = self.comparison_op() {
            operands.push((op, self.sum()?));
        }
        Ok(if operands.is_empty() { first } else { Expr::Compare(Box::new(first), operands) })
    }

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

    fn sum(&mut self) -> Parsed<Expr> {
        self.nested(Self::terms)
    }

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

    fn power(&mut self) -> Parsed<Expr> {
        let mut left = self.unary(true)?;
        while self.skip_op("**") {
            self.deeper()?;
            left = Expr::Binary(BinaryOp::Pow, Box::new(left), Box::new(self.unary(true)?));
        }
        Ok(left)
    }

    fn unary(&mut self, with_filters: bool) -> Parsed<Expr> {
        self.nested(|parser| parser.operand(with_filters))
    }

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

    /// One expression, or several with commas between them.
    fn tuple(&mut self, with_conditions: bool, ends: &[&str]) -> Parsed<Expr> {
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

    fn dotted_name(&mut self) -> Parsed<Arc<str>> {
        let mut name = self.name()?.to_string();
        while self.skip_op(".") {
            name.push('.');
            name.push_str(&self.name()?);
        }
        Ok(name.into())
    }

    /// `| name(..) | ..`; the first `|` is left out where a block begins with a filter.
    fn filters(&mut self, value: Option<Expr>, inline: bool) -> Parsed<Expr> {
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
