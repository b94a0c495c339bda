//! The SDK's bindings are what their generator makes of the WIT.

use std::path::{Path, PathBuf};

use wit_bindgen_core::wit_parser::Resolve;
use wit_bindgen_core::{Files, WorldGenerator as _};
use wit_bindgen_rust::Opts;

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The options of the command in CONTRIBUTING.md.
fn options() -> Opts {
    Opts {
        format: true,
        runtime_path: Some("wit_bindgen::rt".to_owned()),
        default_bindings_module: Some("polyskill_sdk::bindings".to_owned()),
        export_macro_name: Some("__export_router".to_owned()),
        pub_export_macro: true,
        ..Opts::default()
    }
}

/// The description of the world for wit-component stands in the file as one literal, with the version of
/// the crate that encoded it.
#[test]
fn the_bindings_are_those_of_the_wit() {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(root().join("sdk/wit/router-0.1")).unwrap();
    let world = resolve.select_world(&[package], Some("full-router")).unwrap();
    let mut files = Files::default();
    options().build().generate(&mut resolve, world, &mut files).unwrap();
    let (_, made) = files.iter().find(|(name, _)| *name == "full_router.rs").unwrap();
    let made = str::from_utf8(made).unwrap();
    let kept = std::fs::read_to_string(root().join("sdk/src/bindings.rs")).unwrap();
    let differs = made.lines().zip(kept.lines()).position(|(made, kept)| made != kept);
    if let Some(at) = differs {
        let line = |text: &str| text.lines().nth(at).unwrap_or_default().to_owned();
        panic!(
            "sdk/src/bindings.rs:{}: found\n{}\nexpected\n{}\nmake it again, as CONTRIBUTING.md says",
            at + 1,
            line(&kept),
            line(made)
        );
    }
    assert_eq!(kept.lines().count(), made.lines().count(), "sdk/src/bindings.rs: lines");
}
