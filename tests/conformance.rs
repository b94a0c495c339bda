//! One router in every form of plugin decides alike.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use polyskill_plugin::{Kind, Limits, Loader, Trust};
use polyskill_router_arrow::Arrow;
use polyskill_router_margin::Margin;
use polyskill_router_mixture::Mixture;
use polyskill_router_phatgoose::Phatgoose;
use polyskill_router_polytropon::Polytropon;
use polyskill_router_retrieval::Retrieval;
use polyskill_router_task_table::TaskTable;
use polyskill_sdk::conformance::{Decided, Transcript, run};
use polyskill_sdk::runtime::{Fault, LibraryView, LoadedRouter, Native};
use polyskill_sdk::testing::StubHost;
use polyskill_sdk::{Parameters, Router, Value};

use crate::common::{copy_all, fixtures, plugins};

/// Where `cargo xtask` puts core modules and dynamic libraries of the routers.
fn flavour(flavour: &str, router: &str) -> PathBuf {
    let path = plugins().parent().unwrap().join("flavours").join(flavour).join(router);
    assert!(path.is_dir(), "{} is missing; run `cargo xtask test`", path.display());
    path
}

/// A router as component, core module and dynamic library.
fn builds(router: &str) -> [(PathBuf, Kind); 3] {
    [
        (plugins().join(router), Kind::Component),
        (flavour("core", router), Kind::Core),
        (flavour("dylib", router), Kind::Dylib),
    ]
}

fn transcript(path: &Path, kind: Kind, parameters: &Parameters) -> Transcript {
    let trust = Trust { dylibs: vec![path.to_owned()], ..Trust::unsigned() };
    let (directory, trust) = signed(path, kind, trust);
    let path = directory.as_ref().map_or(path, |directory| directory.path());
    let loader = Loader::new(Limits::default(), trust, None).unwrap();
    let plugin = loader.load(path).unwrap();
    assert_eq!(plugin.kind(), kind);
    run(&|library, parameters| plugin.start(library, parameters), parameters).unwrap()
}

/// Dynamic libraries are loaded with a trusted signature only.
fn signed(path: &Path, kind: Kind, trust: Trust) -> (Option<tempfile::TempDir>, Trust) {
    if kind != Kind::Dylib {
        return (None, trust);
    }
    let (directory, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy_all(path, directory.path());
    let key = polyskill_plugin::new_key(&keys.path().join("key")).unwrap();
    polyskill_plugin::sign(directory.path(), &keys.path().join("key"), &Limits::default()).unwrap();
    let trusted = polyskill_plugin::TrustedKey { key, prefix: String::new(), dylibs: true };
    let dylibs = vec![directory.path().to_owned()];
    (Some(directory), Trust { keys: vec![trusted], dylibs, ..trust })
}

fn native<R: Router>(parameters: &Parameters) -> Transcript {
    let make = |library: &Arc<dyn LibraryView>, parameters: Parameters| {
        Ok(Box::new(Native::<R>::new(library, &parameters)?) as Box<dyn LoadedRouter>)
    };
    run(&make, parameters).unwrap()
}

fn number(name: &str, value: f64) -> (String, Value) {
    (name.to_owned(), Value::Number(value))
}

fn text(name: &str, value: &str) -> (String, Value) {
    (name.to_owned(), Value::Text(value.to_owned()))
}

/// Runs the suite on every build of a router; returns what all of them decided.
fn alike<R: Router>(router: &str, parameters: Vec<(String, Value)>) -> Transcript {
    let parameters = Parameters(parameters);
    let native = native::<R>(&parameters);
    for (path, kind) in builds(router) {
        let built = transcript(&path, kind, &parameters);
        let differs = native.0.iter().zip(&built.0).find(|(native, built)| native != built);
        assert!(built == native, "{router}, {kind}, {parameters:?}: {differs:?}");
    }
    native
}

fn count(transcript: &Transcript, is: impl Fn(&Decided) -> bool) -> usize {
    transcript.0.iter().filter(|decided| is(decided)).count()
}

fn planned(decided: &Decided) -> bool {
    matches!(decided, Decided::Plan(Ok(_)))
}

fn refused(decided: &Decided) -> bool {
    matches!(decided, Decided::Plan(Err(Fault::InvalidParameter(_))))
}

#[test]
fn arrow_decides_alike_in_every_build() {
    for parameters in [
        vec![],
        vec![number("top_k", 1.0), number("temperature", 0.3), text("share", "group")],
        vec![text("prototypes", "power15"), number("seed", 7.0), text("combine", "ab-merge")],
        vec![number("temperature", -1.0)],
    ] {
        let transcript = alike::<Arrow>("arrow", parameters);
        assert!(count(&transcript, planned) > 0);
    }
}

#[test]
fn rows_are_decided_alike_in_every_build() {
    let transcript = alike::<Margin>("margin", vec![]);
    let routed =
        |decided: &Decided| matches!(decided, Decided::Rows(Ok(rows)) if rows.len() == 256);
    assert!(count(&transcript, routed) > 0);
}

#[test]
fn planners_decide_alike_in_every_build() {
    for transcript in [
        alike::<Retrieval>("retrieval", vec![number("k", 2.0)]),
        alike::<Retrieval>("retrieval", vec![text("mode", "mixture")]),
        alike::<Mixture>("mixture", vec![]),
        alike::<TaskTable>("task-table", vec![text("task", "code")]),
        alike::<Polytropon>("polytropon", vec![]),
        alike::<Phatgoose>("phatgoose", vec![]),
    ] {
        assert!(!transcript.0.is_empty());
        assert_eq!(count(&transcript, refused), 0, "{transcript:?}");
    }
}

/// Plugins that were built against each minor of the interface keep loading and deciding as they did.
/// A new minor gets a folder of its own; the files of a released one are never built again.
#[test]
fn binaries_of_past_minors_decide_as_today() {
    let native = native::<Margin>(&Parameters::default());
    for (file, kind) in [("component.wasm", Kind::Component), ("core.wasm", Kind::Core)] {
        let path = fixtures().join("plugins/router-0.1").join(file);
        assert!(transcript(&path, kind, &Parameters::default()) == native, "{file}");
    }
}

/// Texts with everything that could break on its way come back as they were.
#[test]
fn refusals_are_alike_in_every_build() {
    let parameters = Parameters(vec![text("nonsense", "\"quoted\\\n\u{1f980}")]);
    let library: Arc<dyn LibraryView> = Arc::new(StubHost::with_modules(2));
    let native = Native::<Arrow>::new(&library, &parameters).map(drop);
    for (path, kind) in builds("arrow").into_iter().filter(|(_, kind)| *kind != Kind::Dylib) {
        let loader = Loader::new(Limits::default(), Trust::unsigned(), None).unwrap();
        let plugin = loader.load(&path).unwrap();
        assert_eq!(plugin.start(&library, parameters.clone()).map(drop), native, "{kind}");
    }
}
