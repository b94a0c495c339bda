//! Every field of `Limits` stops somebody.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use polyskill_engine::{RouterSettings, Selection};
use polyskill_plugin::Limits;
use polyskill_sdk::Parameters;

use super::{Member, info, loader, patient, publish, written};
use crate::common::{Bench, TASKS, greedy, routed};

/// Those that no member can break alone.
const ELSEWHERE: [(&str, fn()); 3] = [
    ("file_mib", files_are_bounded),
    ("max_instances", instances_are_bounded),
    ("step_milliseconds", steps_are_bounded),
];

/// The fields, as the reader of configurations names them.
fn fields() -> BTreeSet<String> {
    let error = toml::from_str::<Limits>("nothing = 1").unwrap_err().to_string();
    let (_, expected) = error.split_once("expected one of ").unwrap();
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_limit_is_enforced() {
    let mut broken: BTreeSet<String> =
        Member::all().iter().filter_map(|member| member.get("breaks")).map(str::to_owned).collect();
    for (limit, test) in ELSEWHERE {
        test();
        broken.insert(limit.to_owned());
    }
    assert_eq!(broken, fields());
}

fn files_are_bounded() {
    let mut bytes = Member::read("well-behaved").bytes();
    // A custom section of a mebibyte.
    let size = 1_u32 << 20;
    bytes.push(0);
    let mut left = size;
    while left >= 0x80 {
        bytes.push(left as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes.resize(bytes.len() + size as usize, 0);
    let (_directory, path) = written("large", &bytes);
    loader(Limits { file_mib: 2, ..Limits::default() }).load(&path).unwrap();
    let error = loader(Limits { file_mib: 1, ..Limits::default() }).load(&path).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("large") && error.contains("more than 1048576 bytes"), "{error}");
}

/// Every call keeps its own deadline, and all of them together would hold up everybody: the step's share
/// ends it. One row is decided at the first site and falls back at the others.
fn steps_are_bounded() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let loader = loader(Limits::default());
    let good = Member::read("well-behaved");
    let none = RouterSettings { step_time: Some(Duration::ZERO), ..patient() };
    publish(&bench, &loader, ("slow", &good.bytes()), none).unwrap();
    let ample = RouterSettings { step_time: Some(Duration::from_secs(60)), ..patient() };
    publish(&bench, &loader, ("quick", &good.bytes()), ample).unwrap();
    let run = |name: &str| {
        let selection = routed(name, Parameters::default());
        bench.run(&selection, &[10, 11, 12], greedy(3)).finished.fallback_rows
    };
    assert_eq!((run("quick"), info(&bench, "quick").faults), (0, 0));
    run("slow");
    let info = info(&bench, "slow");
    assert!(info.faults > 0 && info.last_fault.unwrap().contains("`step_milliseconds`"));
}

/// A router that decides rows has two instances.
fn instances_are_bounded() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let loader = loader(Limits { max_instances: 3, ..Limits::default() });
    let good = Member::read("well-behaved");
    let put = |name: &str| publish(&bench, &loader, (name, &good.bytes()), patient());
    let compose = |name: &str| bench.compose(&routed(name, Parameters::default()));
    put("a").unwrap();
    assert_eq!(compose("a").fallback(), None);
    put("b").unwrap();
    let composition = compose("b");
    let reason = composition.fallback().expect("a fourth instance was made");
    assert!(reason.contains("`max_instances`"), "{reason}");
    let error = put("c").unwrap_err();
    assert!(error.contains("`max_instances`"), "{error}");
    // What goes makes room.
    bench.composer.remove_router("a").unwrap();
    drop(composition);
    assert_eq!(compose("b").fallback(), None);
    put("c").unwrap();
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// With one subscriber in the process, tracing asks only the thread that comes first to a log statement
/// whether anyone listens, and other tests come there too. With two it asks both.
static SECOND: LazyLock<tracing::Dispatch> =
    LazyLock::new(|| tracing::Dispatch::new(tracing_subscriber::registry()));

fn logged(member: &str) -> String {
    LazyLock::force(&SECOND);
    let bench = Bench::new("models/llama-tied", &TASKS);
    let bytes = Member::read(member).bytes();
    publish(&bench, &loader(Limits::default()), (member, &bytes), patient()).unwrap();
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        bench.compose(&routed(member, Parameters::default()));
    });
    String::from_utf8(std::mem::take(&mut *lines.0.lock().unwrap())).unwrap()
}

#[test]
fn logs_are_bounded_in_number_and_length() {
    assert_eq!(
        logged("log-floods").matches("flood plugin").count(),
        Limits::default().log_messages
    );
    let long = logged("log-is-long");
    assert!(long.contains("ERROR") && long.len() < 40_000, "{} bytes", long.len());
    let odd = logged("log-is-no-text");
    assert!(odd.contains("ERROR") && odd.contains('\u{fffd}'), "{odd}");
}

/// Rows under ever new names: `definition_mib` bounds a call, and what is kept over all calls.
#[test]
fn what_a_router_defines_is_bounded_over_its_life() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let bytes = Member::read("defines-ever-more").bytes();
    let loader = loader(Limits { definition_mib: 1, ..Limits::default() });
    let settings = RouterSettings { defined_bytes: Some(1 << 20), ..patient() };
    publish(&bench, &loader, ("hoarder", &bytes), settings).unwrap();
    let selection = routed("hoarder", Parameters::default());
    // 3000 rows of 260 bytes each: the second call goes over the mebibyte.
    assert_eq!(bench.compose(&selection).fallback(), None);
    for round in 1..=3 {
        let composition = bench.compose(&selection);
        let reason = composition.fallback().expect("it hoards");
        assert!(reason.contains("`definition_mib`"), "{reason}");
        assert_eq!(info(&bench, "hoarder").faults, round);
    }
    assert_eq!(bench.compose(&Selection::Base).fallback(), None);
}
