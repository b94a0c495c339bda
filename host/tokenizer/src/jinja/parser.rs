//! Jinja's grammar: from tokens to the tree.

mod expressions;

use std::sync::Arc;

use super::ast::{Expr, ForLoop, MacroDef, Stmt, StmtKind, Target, Uses};
use super::error::JinjaError;
use super::lexer::{Lexeme, Token, tokenize};

/// Nesting of expressions and statements; links of a chain like `a + b + c` nest too. It bounds the
/// recursion of the parser and the depth of the tree.
const MAX_DEPTH: usize = 200;

/// A rule's result, or the syntax error.
type Parsed<T> = Result<T, JinjaError>;

/// The statements of a template, by the rules of Jinja's `parser.py`.
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

/// The state of the parser.
struct Parser {
    /// All tokens; the last is [`Token::End`].
    tokens: Vec<Lexeme>,
    /// Index of the token at hand.
    at: usize,
    /// Rules inside each other at the moment, at most [`MAX_DEPTH`].
    depth: usize,
    /// Special names that the macro at hand has mentioned so far.
    uses: Uses,
    /// Loops around the statement at hand. `break` and `continue` need one. A macro's body begins
    /// with none.
    loops: usize,
    /// Names of blocks so far. A name may be used once.
    blocks: Vec<Arc<str>>,
}

impl Parser {
    /// The token at hand.
    fn peek(&self) -> &Token {
        &self.tokens[self.at].token
    }

    /// The token so far ahead; [`Token::End`] beyond the last.
    fn look(&self, ahead: usize) -> &Token {
        self.tokens.get(self.at + ahead).map_or(&Token::End, |lexeme| &lexeme.token)
    }

    /// The line of the token at hand.
    fn line(&self) -> u32 {
        self.tokens[self.at].line
    }

    /// Takes a token. The last one is never passed.
    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].token.clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    /// A syntax error in the line at hand.
    fn error<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err(JinjaError::syntax(message, self.line()))
    }

    /// A syntax error that shows the token at hand.
    fn unexpected<T>(&self, expected: &str) -> Parsed<T> {
        self.error(format!("unexpected {}, expected {expected}", self.peek().shown()))
    }

    /// True where an operator is at hand.
    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Token::Op(found) if *found == op)
    }

    /// Takes an operator, if it is at hand.
    fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.next();
        }
        found
    }

    /// Takes an operator, or fails.
    fn expect_op(&mut self, op: &str) -> Parsed<()> {
        if self.skip_op(op) { Ok(()) } else { self.unexpected(&format!("`{op}`")) }
    }

    /// True where a name or keyword is at hand.
    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if **found == *name)
    }

    /// Takes a name or keyword, if it is at hand.
    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    /// Takes any name.
    fn name(&mut self) -> Parsed<Arc<str>> {
        match self.peek().clone() {
            Token::Name(name) => {
                self.next();
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    /// Takes `%}`.
    fn block_end(&mut self) -> Parsed<()> {
        match self.peek() {
            Token::BlockEnd => {
                self.next();
                Ok(())
            }
            _ => self.unexpected("end of statement block"),
        }
    }

    /// Fails unless the template ends here.
    fn ends(&self) -> Parsed<()> {
        match self.peek() {
            Token::End => Ok(()),
            _ => self.unexpected("end of template"),
        }
    }

    /// Runs a rule one level deeper. Restores the depth afterwards, with all that [`Self::deeper`]
    /// added inside.
    fn nested<T>(&mut self, rule: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        let depth = self.depth;
        self.deeper()?;
        let result = rule(self);
        self.depth = depth;
        result
    }

    /// Goes one level deeper until the rule around it ends. Called for each link of a chain, since
    /// each is a level of the tree.
    fn deeper(&mut self) -> Parsed<()> {
        if self.depth >= MAX_DEPTH {
            return self.error(format!("the template nests more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        Ok(())
    }

    // Statements

    /// Statements up to a tag with one of these names, whose `{%` is taken; up to the template's
    /// end without names. The name itself is left at hand.
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

    /// The rest of a tag, its body, and its end. `end` closes the body. The name behind `{%` and
    /// its `%}` are taken too.
    fn block_body(&mut self, end: &str) -> Parsed<Vec<Stmt>> {
        self.block_end()?;
        let body = self.body(&[end])?;
        self.next();
        self.block_end()?;
        Ok(body)
    }

    /// The tag at hand, with all that belongs to it. Tags that need other templates are refused.
    /// `generation`, `autoescape` and `block` run their bodies; text is never escaped by itself.
    ///
    /// # Errors
    /// An unknown tag, or `break` and `continue` outside of a loop.
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

    /// `{% block name scoped required %}`. Without templates that extend this one, its body is all
    /// that it ever is; a block that is not `scoped` does not see the names of loops and blocks
    /// around it. The name may stand again behind `endblock`.
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

    /// `{% for %}`, behind the word. `loop` cannot be a target inside of a loop, its own included.
    /// `if` filters the items, and `recursive` allows `loop(items)`. The part behind `else` is
    /// outside of the loop for `break` and `continue`.
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

    /// `{% if %}`, behind the word.
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

    /// `{% set %}`, behind the word: of a value, or of a body that filters may change. With `=` the
    /// value may be a tuple without brackets.
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

    /// `{% with %}`, behind the word: any number of names. Their values are evaluated outside of
    /// the block, so that they do not see each other's names.
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

    /// `{% macro %}`, behind the word.
    fn macro_def(&mut self) -> Parsed<StmtKind> {
        let name = self.name()?;
        let parameters = self.parameters()?;
        let def = self.macro_body(name, parameters, "endmacro")?;
        Ok(StmtKind::Macro(def))
    }

    /// `{% call %}`, behind the word: its body becomes a macro named `caller`. The block's
    /// parameters are those of `caller`.
    fn call_block(&mut self) -> Parsed<StmtKind> {
        let parameters = if self.is_op("(") { self.parameters()? } else { Vec::new() };
        let call = self.expression()?;
        if !matches!(call, Expr::Call(..)) {
            return self.error("`call` needs a call");
        }
        let def = self.macro_body("caller".into(), parameters, "endcall")?;
        Ok(StmtKind::Call(call, def))
    }

    /// The body of a macro, with the special names that it mentions. Names that an outer macro has
    /// mentioned are kept apart.
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

    /// Parameters in brackets; behind one with a default, all have one.
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

    /// Names that are assigned to, up to one of `ends` or `=`. `with_namespace` allows
    /// `namespace.attribute`.
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

    /// A name, an attribute of a namespace, or several targets in brackets. Constants cannot be
    /// assigned to.
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
}
