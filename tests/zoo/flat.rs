//! Whole modules of the flat ABI from what a member says, and every host function called with lies.

use super::{Keeper, Member};

/// Leaves the rows of one site to `route`, with their hidden states.
fn program() -> String {
    let site = super::SITE;
    format!(
        "[[program]]\nsites = [{site}]\nops = [\"load-input\", {{ route = {{ hidden = true }} }}]"
    )
}

/// What is left out is taken from the prelude: a memory, an init, a plan that asks `route` if there is one.
pub(super) fn module(body: &str) -> String {
    let program = program();
    let prelude = include_str!("prelude.wat").replace("PROGRAM_BYTES", &program.len().to_string());
    let has = |part: &str| body.contains(part);
    let mut rest = String::new();
    if !has("(memory ") {
        rest += "(memory (export \"memory\") 2)\n";
    }
    if !has("(func $init") && !has("_init\"") {
        rest += "(func $init (param i32) (result i32) (call $describe_zoo) (i32.const 0))\n";
    }
    if !has("(func $plan") && !has("_plan\"") {
        let answer = if has("(func $route") { "$ask_rows" } else { "$half_b" };
        rest += &format!("(func $plan (param i32 i32) (result i32) (call {answer}))\n");
    }
    for name in ["init", "plan", "library_changed", "route"] {
        let text = format!("{body}{rest}");
        if text.contains(&format!("(func ${name} ")) {
            rest += &format!("(export \"polyskill_v1_{name}\" (func ${name}))\n");
        }
    }
    let text = program.replace('"', "\\\"").replace('\n', "\\n");
    format!("(module\n{prelude}\n{body}\n{rest}(data (i32.const 2048) \"{text}\"))")
}

/// A call with a hole for an address and one for a length; what is said where both are lies.
struct HostCall {
    name: &'static str,
    /// `P` and `N` stand for the lies; `(i32.const 1024)` is a text of three letters.
    call: &'static str,
    /// Lengths beyond memory that are cut or refused before the memory is looked at.
    long: &'static str,
}

const OUTSIDE: &str = "outside its memory";
const BOUNDED: &str = "at most 1048576";

const CALLS: [HostCall; 24] = [
    HostCall { name: "log", call: "(call $log H H P N)", long: OUTSIDE },
    HostCall { name: "model", call: "(drop (call $model H P))", long: "" },
    HostCall { name: "site", call: "(drop (call $site H H P))", long: "" },
    HostCall { name: "module_site", call: "(drop (call $module_site H H H P))", long: "" },
    HostCall {
        name: "module_text",
        call: "(drop (call $module_text H H H H H P (i32.const 100)))",
        long: "",
    },
    HostCall {
        name: "module_text",
        call: "(drop (call $module_text H H (i32.const 4) P N H H))",
        long: BOUNDED,
    },
    HostCall { name: "tensor", call: "(drop (call $tensor H H H H P (i32.const -1)))", long: "" },
    HostCall {
        name: "tensor",
        call: "(drop (call $tensor H H H (i32.const 1) P (i32.const 100000)))",
        long: "",
    },
    HostCall { name: "artefact", call: "(drop (call $artefact H H H P N H H))", long: BOUNDED },
    HostCall {
        name: "singular_vector",
        call: "(drop (call $singular_vector H H H H (i64.const 0) P (i32.const -1)))",
        long: "",
    },
    HostCall { name: "defined", call: "(drop (call $defined H P N H))", long: BOUNDED },
    HostCall {
        name: "define",
        call: "(drop (call $define H P N H H H (i32.const 64)))",
        long: BOUNDED,
    },
    HostCall {
        name: "define",
        call: "(drop (call $define H T T3 H H P (i32.const 64)))",
        long: "",
    },
    HostCall { name: "define", call: "(drop (call $define H T T3 H H P N))", long: BOUNDED },
    HostCall {
        name: "parameter_number",
        call: "(drop (call $parameter_number H P N H))",
        long: BOUNDED,
    },
    HostCall {
        name: "parameter_number",
        call: "(drop (call $parameter_number H (i32.const 4100) (i32.const 6) P))",
        long: "",
    },
    HostCall {
        name: "parameter_text",
        call: "(drop (call $parameter_text H P N H H))",
        long: BOUNDED,
    },
    HostCall {
        name: "parameter_text",
        call: "(drop (call $parameter_text H (i32.const 4096) (i32.const 4) P (i32.const -1)))",
        long: "",
    },
    HostCall {
        name: "parameter_name",
        call: "(drop (call $parameter_name H H P (i32.const -1)))",
        long: "",
    },
    HostCall { name: "answer_fixed", call: "(call $answer_fixed H P N H)", long: BOUNDED },
    HostCall { name: "answer_programs", call: "(call $answer_programs H P N)", long: BOUNDED },
    HostCall { name: "answer_narrowed", call: "(call $answer_narrowed H P N)", long: BOUNDED },
    HostCall { name: "error", call: "(call $error H P N T T3)", long: OUTSIDE },
    HostCall { name: "error", call: "(call $error H T T3 P N)", long: OUTSIDE },
];

fn member(name: String, call: &str, expected: &str) -> Member {
    let call = call.replace('H', "(i32.const 0)").replace("T3", "(i32.const 3)");
    let call = call.replace('T', "(i32.const 1024)");
    let source = format!(
        "(data (i32.const 4096) \"textnumber\")
        (func $plan (param i32 i32) (result i32) {call} (call $half_b))"
    );
    let directives = vec![("plan".to_owned(), expected.to_owned())];
    Member { name, source, directives }
}

/// The memory has three pages, with the arguments. Addresses beyond it, before its end, and such that address and length wrap around.
#[test]
fn every_host_function_refuses_lies() {
    let mut keeper = Keeper::new();
    let constant = |value: i64| format!("(i32.const {value})");
    for (at, HostCall { name, call, long }) in CALLS.iter().enumerate() {
        let expected = |part: &str| format!("`plan` | host function `{name}` | {part}");
        for (lie, address, length) in [
            ("wraps", -1, 8),
            ("ends-late", 196_607, 8),
            ("starts-at-the-end", 196_608, 8),
            ("is-far", 0x7fff_fff0, 8),
        ] {
            let call = call.replace('N', &constant(length)).replace('P', &constant(address));
            keeper.visit(&member(format!("{name}-{at}-{lie}"), &call, &expected(OUTSIDE)));
        }
        let lengths: &[i64] = match *long {
            "" => &[],
            // Four bytes each, which is nothing in 32 bits.
            _ => &[-1, 0x4000_0000, 0x7fff_ffff],
        };
        for length in lengths {
            let lying = call.replace('N', &constant(*length)).replace('P', &constant(196_000));
            keeper.visit(&member(format!("{name}-{at}-{length}"), &lying, &expected(long)));
        }
    }
}
