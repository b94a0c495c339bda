//! Members that are components, or lie in their manifest.

use polyskill_plugin::Limits;
use polyskill_sdk::Parameters;

use super::{Member, counters, info, loader, patient, publish, run};
use crate::common::{Bench, TASKS, routed};
use crate::hostile_plugins::planner;

const ANSWER: &str = "i32.const 1300";

/// A list of programs that all name the same sites, and the same ops: far more than the guest's memory holds.
#[test]
fn lists_that_share_memory_do_not_multiply() {
    // Result ok, `gated`, 60000 programs at 8192; each lists a million sites at 0.
    let head = r#"(data (i32.const 1300) "\00\00\00\00\01\00\00\00\00\20\00\00\60\ea\00\00")"#;
    let plan = "(local.set $n (i32.const 0))
        (drop (memory.grow (i32.const 200)))
        (loop $l
            (i32.store (i32.add (i32.const 8192) (local.get $n)) (i32.const 1))
            (i32.store (i32.add (i32.const 8200) (local.get $n)) (i32.const 1000000))
            (local.set $n (i32.add (local.get $n) (i32.const 28)))
            (br_if $l (i32.lt_u (local.get $n) (i32.const 1680000))))
        i32.const 1300";
    let bench = Bench::new("models/llama-tied", &TASKS);
    let started = std::time::Instant::now();
    let bytes = planner(head, plan);
    publish(&bench, &loader(Limits::default()), ("many", &bytes), patient()).unwrap();
    let composition = bench.compose(&routed("many", Parameters::default()));
    let reason = composition.fallback().expect("it planned");
    assert!(reason.contains("`plan`") || reason.contains("`plan_items`"), "{reason}");
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

/// `failed` with a mebibyte of text.
#[test]
fn components_do_not_talk_at_length() {
    let head = r#"(data (i32.const 1300) "\01\00\00\00\03\00\00\00\00\20\00\00\00\00\10\00")"#;
    let plan = "(drop (memory.grow (i32.const 40)))
        (memory.fill (i32.const 8192) (i32.const 88) (i32.const 1048576))
        i32.const 1300";
    let bench = Bench::new("models/llama-tied", &TASKS);
    publish(&bench, &loader(Limits::default()), ("loud", &planner(head, plan)), patient()).unwrap();
    let composition = bench.compose(&routed("loud", Parameters::default()));
    let reason = composition.fallback().expect("it planned");
    assert!(reason.starts_with("the router failed: XXXX") && reason.len() < 2_000, "{reason}");
    assert_eq!(counters(&info(&bench, "loud")), [1, 0, 0]);
}

/// A component with further core modules, each with a memory of 8 MiB.
fn with_memories(count: u8) -> Vec<u8> {
    let good = planner(
        r#"(data (i32.const 1300) "\00\00\00\00\00\00\00\00\b8\0b\00\00\01\00\00\00")
           (data (i32.const 3000) "\01\00\00\00\00\00\00\3f")"#,
        ANSWER,
    );
    let encoder = wit_component::ComponentEncoder::default().module(&good).unwrap();
    let mut bytes = encoder.validate(true).encode().unwrap();
    let first = core_modules(&bytes);
    let module = wat::parse_str("(module (memory 128))").unwrap();
    for index in 0..count {
        bytes.extend([1, module.len() as u8]);
        bytes.extend(&module);
        bytes.extend([2, 4, 1, 0, first + index, 0]);
    }
    bytes
}

/// Core modules at the top of a component: sections of kind 1.
fn core_modules(bytes: &[u8]) -> u8 {
    let (mut at, mut count) = (8, 0);
    while at < bytes.len() {
        count += u8::from(bytes[at] == 1);
        let (mut size, mut shift) = (0, 0);
        loop {
            at += 1;
            size |= usize::from(bytes[at] & 0x7f) << shift;
            shift += 7;
            if bytes[at] & 0x80 == 0 {
                break;
            }
        }
        at += 1 + size;
    }
    count
}

#[test]
fn memory_is_counted_over_all_memories() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let loader = loader(Limits::default());
    publish(&bench, &loader, ("one", &with_memories(1)), patient()).unwrap();
    assert_eq!(bench.compose(&routed("one", Parameters::default())).fallback(), None);
    let reason = publish(&bench, &loader, ("two", &with_memories(2)), patient()).unwrap_err();
    assert!(reason.starts_with("start: ") && reason.contains("memory"), "{reason}");
}

#[test]
fn components_of_other_versions_are_refused() {
    for version in ["0.2.0", "0.9.0"] {
        let export = format!(
            "(component (instance $i) (export \"polyskill:router/planner@{version}\" (instance $i)))"
        );
        let bench = Bench::new("models/llama-tied", &TASKS);
        let bytes = wat::parse_str(export).unwrap();
        let reason = publish(&bench, &loader(Limits::default()), ("other", &bytes), patient());
        let reason = reason.unwrap_err();
        super::requires(
            version,
            &reason,
            &format!(
                "exports polyskill:router/planner@{version} | accepts polyskill:router/planner@0.1.x"
            ),
        );
    }
}

#[test]
fn manifests_of_other_versions_are_refused() {
    let member = Member::read("well-behaved");
    for abi in ["0.9", "0.2", "1", ""] {
        let directory = tempfile::tempdir().unwrap();
        let manifest =
            format!("name = \"m\"\nversion = \"1\"\nabi = \"{abi}\"\nfile = \"m.wasm\"\n");
        std::fs::write(directory.path().join("plugin.toml"), manifest).unwrap();
        std::fs::write(directory.path().join("m.wasm"), member.bytes()).unwrap();
        let error = loader(Limits::default()).load(directory.path()).unwrap_err().to_string();
        super::requires(abi, &error, &format!("exports abi {abi}, this host accepts"));
    }
}

/// A component that spins, against its deadline rather than its fuel.
#[test]
fn components_have_deadlines() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let limits = Limits { plan_fuel: u64::MAX, plan_milliseconds: 30, ..Limits::default() };
    let bytes = planner("", "(loop $l (br $l)) unreachable");
    let loader = loader(limits);
    publish(&bench, &loader, ("spins", &bytes), patient()).unwrap();
    let selection = routed("spins", Parameters::default());
    let composition = bench.compose(&selection);
    super::requires("spins", composition.fallback().unwrap(), "`plan` | interrupt");
    assert!(
        run(&bench, &selection).bits() == run(&bench, &polyskill_engine::Selection::Base).bits()
    );
}
