//! Bounds on WebAssembly before it is compiled: a compiler's time and stack grow faster than the
//! code with nesting, and it cannot be stopped.

use wasmparser::{Operator, Parser, Payload};

/// Modules and components in one another, at most. The SDK's have three.
const MAX_DEPTH: usize = 16;
/// Modules and components in a component, at most.
const MAX_NESTED: usize = 256;
/// Functions in all, at most. CPython has about twenty thousand.
const MAX_FUNCTIONS: usize = 100_000;
/// Bytes of one function, at most. The largest of CPython has a quarter of a MiB.
const MAX_FUNCTION_BYTES: usize = 2 << 20;
/// Blocks in one another, at most: a large switch has one for each of its cases.
const MAX_BLOCKS: usize = 4_096;
/// Loops in one another, at most: the compiler's time doubles and doubles with them.
const MAX_LOOPS: usize = 48;
/// Parameters, results and locals of one function, at most.
const MAX_LOCALS: u64 = 50_000;

/// Refuses code that is nested too deeply, or has too much of anything. Whether it is valid is not
/// looked at: the compiler does that.
///
/// # Errors
/// One sentence with what was found and what is expected.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    let (mut depth, mut nested, mut functions) = (0_usize, 0_usize, 0_usize);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(|error| error.to_string())? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                (depth, nested) = (depth + 1, nested + 1);
                at_most("modules in one another", depth, MAX_DEPTH)?;
                at_most("modules and components", nested, MAX_NESTED)?;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CodeSectionEntry(body) => {
                functions += 1;
                at_most("functions", functions, MAX_FUNCTIONS)?;
                at_most("bytes in a function", body.range().len(), MAX_FUNCTION_BYTES)?;
                check_body(&body)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks the locals and the nesting of one function.
fn check_body(body: &wasmparser::FunctionBody<'_>) -> Result<(), String> {
    let text = |error: wasmparser::BinaryReaderError| error.to_string();
    let mut locals = 0_u64;
    for group in body.get_locals_reader().map_err(text)? {
        locals += u64::from(group.map_err(text)?.0);
        if locals > MAX_LOCALS {
            return Err(format!("a function has {locals} locals, expected at most {MAX_LOCALS}"));
        }
    }
    // One entry per open block: true for a loop.
    let (mut open, mut loops): (Vec<bool>, usize) = (Vec::new(), 0);
    for operator in body.get_operators_reader().map_err(text)? {
        match operator.map_err(text)? {
            Operator::Block { .. }
            | Operator::If { .. }
            | Operator::TryTable { .. }
            | Operator::Try { .. } => open.push(false),
            Operator::Loop { .. } => {
                open.push(true);
                loops += 1;
                at_most("loops in one another", loops, MAX_LOOPS)?;
            }
            Operator::End => loops -= usize::from(open.pop().unwrap_or(false)),
            _ => {}
        }
        at_most("blocks in one another", open.len(), MAX_BLOCKS)?;
    }
    Ok(())
}

/// Refuses a count beyond its bound.
fn at_most(what: &str, found: usize, most: usize) -> Result<(), String> {
    match found <= most {
        true => Ok(()),
        false => Err(format!("it has {found} {what}, expected at most {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section with its length, as LEB128.
    fn section(id: u8, content: &[u8]) -> Vec<u8> {
        let (mut bytes, mut length) = (vec![id], content.len());
        loop {
            let low = (length & 0x7f) as u8;
            length >>= 7;
            bytes.push(if length == 0 { low } else { low | 0x80 });
            if length == 0 {
                break;
            }
        }
        bytes.extend_from_slice(content);
        bytes
    }

    /// A core module with one function of these operators and `end`s.
    fn module(operators: &[u8]) -> Vec<u8> {
        let mut body = vec![0];
        body.extend_from_slice(operators);
        let mut code = vec![1];
        code.extend_from_slice(&section(0, &body)[1..]);
        let mut bytes = b"\0asm\x01\0\0\0".to_vec();
        bytes.extend(section(1, &[1, 0x60, 0, 0]));
        bytes.extend(section(3, &[1, 0]));
        bytes.extend(section(10, &code));
        bytes
    }

    /// Blocks in one another, each begun by `opcode` without a type.
    fn nested(opcode: u8, count: usize) -> Vec<u8> {
        let mut operators = [opcode, 0x40].repeat(count);
        operators.extend(vec![0x0b; count + 1]);
        module(&operators)
    }

    #[test]
    fn nesting_is_bounded() {
        assert_eq!(check(&nested(0x02, 1_000)), Ok(()));
        assert!(check(&nested(0x02, 5_000)).unwrap_err().contains("blocks in one another"));
        assert_eq!(check(&nested(0x03, 40)), Ok(()));
        assert!(check(&nested(0x03, 60)).unwrap_err().contains("loops in one another"));
        let mut component = b"\0asm\x0d\0\x01\0".to_vec();
        for _ in 0..20 {
            let inner = section(4, &component);
            component = b"\0asm\x0d\0\x01\0".to_vec();
            component.extend(inner);
        }
        let refused = check(&component).unwrap_err();
        assert!(refused.contains("17 modules in one another, expected at most 16"), "{refused}");
        assert!(check(b"\0asm\x01\0\0\0\xff").is_err());
    }
}
