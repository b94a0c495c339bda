//! The zoo: plugins that break one rule or limit each, and what exactly becomes of them.
//!
//! A member is WAT in `tests/zoo`, most of it in `prelude.wat`. Its first line says what it does, the next
//! ones what is expected:
//!
//! | line | meaning |
//! |---|---|
//! | `limits: ...` | limits other than the defaults |
//! | `breaks: ...` | the limit that stops it |
//! | `load: ...`, `start: ...` | it is not loaded, or not published; parts of the message, split by `\|` |
//! | `plan: ...` | a fault, and the base answers |
//! | `passes: ...`, `parameter: ...` | no fault: it leaves the decision, or blames the request |
//! | `traps: ...`, `fails: ...`, `leaves` | `route` gives no answer, and the base runs in all rows |
//! | `rows: ...` | rows with an unusable answer, all or `invalid: n` of the prompt's |
//! | `serves`, `base`, `tolerated` | it does no harm: the rows of `well-behaved`, no picks, or either |

mod components;
mod faults;
mod flat;
mod fuzzed;
mod generated;
mod limits;
mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;

use polyskill_engine::{ComposeError, FaultPolicy, RouterInfo, RouterSettings, Selection};
use polyskill_plugin::{Limits, Loader, Trust};
use polyskill_sdk::runtime::Fault;
use polyskill_sdk::{Parameters, Value};

use crate::common::{Bench, Output, TASKS, greedy, root, routed};

/// The site whose rows members decide: q of the last layer, so that a row's picks reach no other row.
pub(crate) const SITE: u32 = 14;
/// Tokens of the prompt and of the answer: with one step for the prompt, 33 rows in 4 calls of `route`.
const PROMPT: std::ops::Range<u32> = 10..40;
const ANSWER: usize = 4;
const ROWS: u64 = 33;

pub(crate) struct Member {
    pub(crate) name: String,
    source: String,
    directives: Vec<(String, String)>,
}

impl Member {
    pub(crate) fn read(name: &str) -> Self {
        let path = root().join("tests/zoo").join(format!("{name}.wat"));
        let source = std::fs::read_to_string(path).unwrap();
        let head = source.lines().skip(1).map_while(|line| line.strip_prefix(";; "));
        let split = |line: &str| {
            let (key, value) = line.split_once(": ").unwrap_or((line, ""));
            (key.to_owned(), value.to_owned())
        };
        let directives = head.map(split).collect();
        Self { name: name.to_owned(), source, directives }
    }

    /// All members, by name.
    pub(crate) fn all() -> Vec<Self> {
        let entries = std::fs::read_dir(root().join("tests/zoo")).unwrap();
        let mut names: Vec<String> = entries
            .filter_map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                name.strip_suffix(".wat").map(str::to_owned)
            })
            .filter(|name| name != "prelude")
            .collect();
        names.sort();
        names.iter().map(|name| Self::read(name)).collect()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.directives.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub(crate) fn limits(&self) -> Limits {
        let text = self.get("limits").unwrap_or_default().replace(", ", "\n");
        toml::from_str(&text).unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        compiled(&self.source)
    }

    fn selection(&self) -> Selection {
        let chained = format!("{}+well-behaved", self.name);
        let name = if self.get("chain").is_some() { &chained } else { &self.name };
        // Something to ask for.
        let text = ("text".to_owned(), Value::Text("a text".to_owned()));
        let number = ("number".to_owned(), Value::Number(1.0));
        routed(name, Parameters(vec![text, number]))
    }
}

/// A whole module from what a member says, as its first lines are comments.
pub(crate) fn compiled(source: &str) -> Vec<u8> {
    let is_whole = source.lines().any(|line| line.starts_with("(module"));
    let text = if is_whole { source.to_owned() } else { flat::module(source) };
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Bytes as a bare `.wasm` in a directory that lives as long as the first part.
pub(crate) fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(format!("{name}.wasm"));
    std::fs::write(&path, bytes).unwrap();
    (directory, path)
}

pub(crate) fn loader(limits: Limits) -> Loader {
    Loader::new(limits, Trust::unsigned(), None).unwrap()
}

/// Hidden states are granted, and no number of faults quarantines.
pub(crate) fn patient() -> RouterSettings {
    let faults = FaultPolicy { max_faults: usize::MAX, ..FaultPolicy::default() };
    RouterSettings { hidden: true, faults, ..RouterSettings::default() }
}

/// Loads bytes and publishes them; a reason where that fails.
pub(crate) fn publish(
    bench: &Bench,
    loader: &Loader,
    (name, bytes): (&str, &[u8]),
    settings: RouterSettings,
) -> Result<String, String> {
    let (_directory, path) = written(name, bytes);
    let plugin = loader.load(&path).map_err(|error| format!("load: {error}"))?;
    let digest = plugin.digest().to_owned();
    plugin
        .start(&bench.composer.view(), settings.parameters.clone())
        .and_then(|router| bench.composer.add_router(name, digest.clone(), router, settings))
        .map_err(|fault: Fault| format!("start: {fault}"))?;
    Ok(digest)
}

pub(crate) fn info(bench: &Bench, name: &str) -> RouterInfo {
    bench.composer.routers().into_iter().find(|router| router.name == name).unwrap()
}

fn run(bench: &Bench, selection: &Selection) -> Output {
    let prompt: Vec<u32> = PROMPT.collect();
    bench.run(selection, &prompt, greedy(ANSWER))
}

/// Faults, unusable rows, abstentions.
fn counters(info: &RouterInfo) -> [u64; 3] {
    [info.faults, info.invalid_rows, info.abstentions]
}

struct Keeper {
    bench: Bench,
    loaders: BTreeMap<String, Loader>,
    base: Vec<u32>,
    good: Vec<u32>,
    /// `half_b` as a fixed mixture.
    mixed: Vec<u32>,
}

impl Keeper {
    fn new() -> Self {
        let bench = Bench::new("models/llama-tied", &TASKS);
        let loader = loader(Limits::default());
        let good = Member::read("well-behaved");
        publish(&bench, &loader, (&good.name, &good.bytes()), patient()).unwrap();
        let base = run(&bench, &Selection::Base).bits();
        let good = run(&bench, &good.selection()).bits();
        let mixed = run(&bench, &crate::common::weighted(&[("task-b", 0.5)])).bits();
        assert!(base != good && base != mixed && good != mixed);
        Self { bench, loaders: BTreeMap::from([(String::new(), loader)]), base, good, mixed }
    }

    fn visit(&mut self, member: &Member) {
        let Member { name, .. } = member;
        let key = member.get("limits").unwrap_or_default().to_owned();
        let limits = || loader(member.limits());
        let loader = self.loaders.entry(key).or_insert_with(limits);
        let granted = member.get("ungranted").is_none();
        let settings = RouterSettings { hidden: granted, ..patient() };
        let published = publish(&self.bench, loader, (name, &member.bytes()), settings);
        for stage in ["load", "start"] {
            let Some(parts) = member.get(stage) else { continue };
            let reason = published.expect_err(name);
            assert!(reason.starts_with(stage), "{name}: {reason}");
            requires(name, &reason, parts);
            assert!(self.bench.composer.routers().iter().all(|router| router.name != *name));
            return;
        }
        published.unwrap_or_else(|reason| panic!("{name}: {reason}"));
        if member.get("plan").or(member.get("passes")).is_some() {
            self.plans_in_vain(member);
        } else if let Some(parts) = member.get("parameter") {
            let error = self.bench.composer.compose(&member.selection()).unwrap_err();
            assert!(matches!(error, ComposeError::Parameter(_)), "{name}: {error}");
            requires(name, &error.to_string(), parts);
            assert_eq!(counters(&info(&self.bench, name)), [0; 3], "{name}");
        } else {
            self.decides(member);
        }
        self.bench.composer.remove_router(name).unwrap();
    }

    /// The base answers every request, and each attempt is counted.
    fn plans_in_vain(&self, member: &Member) {
        let name = &member.name;
        for round in 1..=2 {
            let composition = self.bench.compose(&member.selection());
            let reason = composition.fallback().unwrap_or_else(|| panic!("{name}: it planned"));
            assert!(reason.len() < 4_000, "{name}: a reason of {} bytes", reason.len());
            let info = info(&self.bench, name);
            match (member.get("plan"), member.get("passes")) {
                (Some(parts), _) => {
                    requires(name, reason, parts);
                    assert_eq!(counters(&info), [round, 0, 0], "{name}");
                    let last = info.last_fault.unwrap();
                    assert!(reason.starts_with(&last[..last.len().min(40)]), "{name}: {last}");
                }
                (_, parts) => {
                    requires(name, reason, parts.unwrap());
                    assert_eq!(counters(&info), [0, 0, round], "{name}");
                }
            }
        }
        assert!(run(&self.bench, &member.selection()).bits() == self.base, "{name}");
    }

    fn decides(&self, member: &Member) {
        let name = &member.name;
        let composition = self.bench.compose(&member.selection());
        assert_eq!(composition.fallback(), None, "{name}");
        let output = run(&self.bench, &member.selection());
        let (bits, fallback_rows) = (output.bits(), output.finished.fallback_rows);
        let info = info(&self.bench, name);
        let found = counters(&info);
        let all_fall_back = || {
            assert!(bits == self.base, "{name}: it changed the base");
            assert_eq!(fallback_rows, ROWS, "{name}");
        };
        if let Some(parts) = member.get("traps") {
            // Between a trap and the next instance, rows are not asked about.
            all_fall_back();
            requires(name, &info.last_fault.unwrap(), parts);
            assert!((1..=4).contains(&found[0]) && found[1..] == [0, 0], "{name}: {found:?}");
        } else if let Some(parts) = member.get("fails") {
            all_fall_back();
            requires(name, &info.last_fault.unwrap(), parts);
            assert_eq!((found, info.route_rows), ([4, 0, 0], ROWS), "{name}");
        } else if member.get("leaves").is_some() {
            all_fall_back();
            assert_eq!((found, info.route_rows), ([0, 0, 4], ROWS), "{name}");
        } else if let Some(parts) = member.get("rows") {
            requires(name, &info.last_invalid.unwrap(), parts);
            match member.get("invalid") {
                None => all_fall_back(),
                Some(invalid) => assert_eq!(fallback_rows.to_string(), invalid, "{name}"),
            }
            assert_eq!(found, [0, fallback_rows, 0], "{name}");
        } else if member.get("sometimes").is_some() {
            assert!(found[0] >= 1 && found[1..] == [0, 0], "{name}: {found:?}");
            assert!((1..ROWS).contains(&fallback_rows), "{name}: {fallback_rows}");
        } else {
            let harmless = [&self.good, &self.mixed];
            let expected = if member.get("base").is_some() { [&self.base; 2] } else { harmless };
            let tolerated = member.get("tolerated").is_some();
            assert!(tolerated || expected.contains(&&bits), "{name}");
            assert_eq!((found[0], found[1]), (0, fallback_rows), "{name}");
            assert!(tolerated || fallback_rows == 0, "{name}");
        }
    }
}

/// Requires every part, split by `|`, in a message.
fn requires(name: &str, message: &str, parts: &str) {
    for part in parts.split(" | ") {
        assert!(message.contains(part), "{name}: no `{part}` in: {message}");
    }
}

#[test]
fn members_come_out_as_they_say() {
    let members = Member::all();
    assert!(members.len() > 100, "the zoo has shrunk");
    let mut keeper = Keeper::new();
    let mut wrong = Vec::new();
    for member in &members {
        let visit = std::panic::AssertUnwindSafe(|| keeper.visit(member));
        if std::panic::catch_unwind(visit).is_err() {
            wrong.push(member.name.as_str());
            let _ = keeper.bench.composer.remove_router(&member.name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(keeper.bench.engine.handle().stats().snapshot().kv_blocks_used, 0);
}
