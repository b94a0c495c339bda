//! One router in every form of plugin decides alike.

use std::path::PathBuf;
use std::sync::Arc;

use polyskill_plugin::{Kind, Limits, Loader, Trust};
use polyskill_router_arrow::Arrow;
use polyskill_sdk::conformance::{Decided, Transcript, run};
use polyskill_sdk::runtime::{LibraryView, LoadedRouter, Native};
use polyskill_sdk::{Parameters, Router, Value};

use crate::common::plugins;

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

fn transcript(path: &PathBuf, kind: Kind, parameters: &Parameters) -> Transcript {
    let trust = Trust { dylibs: vec![path.clone()], ..Trust::unsigned() };
    let (directory, trust) = signed(path, kind, trust);
    let path = directory.as_ref().map_or(path.as_path(), |directory| directory.path());
    let loader = Loader::new(Limits::default(), trust, None).unwrap();
    let plugin = loader.load(path).unwrap();
    assert_eq!(plugin.kind(), kind);
    run(&|library, parameters| plugin.start(library, parameters), parameters).unwrap()
}

/// Dynamic libraries are loaded with a trusted signature only.
fn signed(path: &PathBuf, kind: Kind, trust: Trust) -> (Option<tempfile::TempDir>, Trust) {
    if kind != Kind::Dylib {
        return (None, trust);
    }
    let (directory, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
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

#[test]
fn arrow_decides_alike_in_every_build() {
    for parameters in [
        vec![],
        vec![number("top_k", 1.0), number("temperature", 0.3), text("share", "group")],
        vec![text("prototypes", "power15"), number("seed", 7.0), text("combine", "ab-merge")],
        vec![number("temperature", -1.0)],
        vec![number("top_k", 0.0)],
        vec![text("nonsense", "\"quoted\\\n\u{1f980}")],
    ] {
        let parameters = Parameters(parameters);
        let valid = parameters.get("nonsense").is_none()
            && parameters.get("top_k") != Some(&Value::Number(0.0));
        if !valid {
            let none = Parameters::default();
            let library: Arc<dyn LibraryView> =
                Arc::new(polyskill_sdk::testing::StubHost::with_modules(2));
            let native = Native::<Arrow>::new(&library, &parameters).map(drop);
            for (path, kind) in builds("arrow").into_iter().filter(|(_, kind)| *kind != Kind::Dylib)
            {
                let loader = Loader::new(Limits::default(), Trust::unsigned(), None).unwrap();
                let plugin = loader.load(&path).unwrap();
                let refused = plugin.start(&library, parameters.clone()).map(drop);
                assert_eq!(refused, native, "{kind}");
                assert!(plugin.start(&library, none.clone()).is_ok());
            }
            continue;
        }
        let native = native::<Arrow>(&parameters);
        assert!(native.0.iter().any(|decided| matches!(decided, Decided::Plan(Ok(_)))));
        for (path, kind) in builds("arrow") {
            assert!(transcript(&path, kind, &parameters) == native, "{kind}, {parameters:?}");
        }
    }
}
