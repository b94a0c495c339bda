//! The sandboxed Arrow answers as the native one does, bit for bit.

use polyskill_adapters::library::Expected;
use polyskill_engine::RouterSettings;
use polyskill_plugin::{Limits, Loader, Trust};
use polyskill_sdk::Parameters;

use crate::common::{Bench, TASKS, arrow_selection, cases, greedy, plugins};

fn sandboxed() -> Bench {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let loader = Loader::new(Limits::default(), Trust::unsigned(), None).unwrap();
    let plugin = loader.load(&plugins().join("arrow")).unwrap();
    assert_eq!(plugin.name(), "arrow");
    let digest = plugin.digest().to_owned();
    let router = plugin.start(&bench.composer.view(), Parameters::default()).unwrap();
    bench.composer.add_router("arrow", digest, router, RouterSettings::default()).unwrap();
    bench
}

#[test]
fn the_sandboxed_arrow_gives_the_bits_of_the_native_one() {
    let (native, sandboxed) = (Bench::arrow(), sandboxed());
    for case in cases("arrow") {
        let selection = arrow_selection(&case);
        let composition = sandboxed.compose(&selection);
        assert_eq!(composition.fallback(), None, "{}", case.name);
        let (inside, outside) = (
            sandboxed.run(&selection, &case.prompt, greedy(12)),
            native.run(&selection, &case.prompt, greedy(12)),
        );
        assert_eq!(inside.ids(), outside.ids(), "{}", case.name);
        assert_eq!(inside.bits(), outside.bits(), "{}", case.name);
        let routing = |output: &crate::common::Output| {
            output.tokens.iter().map(|token| token.routing.clone()).collect::<Vec<_>>()
        };
        assert_eq!(routing(&inside), routing(&outside), "{}", case.name);
    }
    assert_eq!(sandboxed.composer.routers()[0].faults, 0);
}

/// The descriptor crosses the boundary as it is.
#[test]
fn both_describe_themselves_alike() {
    let (native, sandboxed) = (Bench::arrow(), sandboxed());
    let descriptor = |bench: &Bench| bench.composer.routers()[0].descriptor.clone();
    assert_eq!(descriptor(&native), descriptor(&sandboxed));
}

/// The instance that stays alive between calls keeps no modules.
#[test]
fn an_idle_plugin_leases_nothing() {
    let bench = sandboxed();
    let case = cases("arrow").remove(0);
    bench.run(&arrow_selection(&case), &case.prompt, greedy(2));
    for name in TASKS {
        drop(bench.library.remove(name, Expected::Any).unwrap());
    }
    assert_eq!(bench.library.resident_bytes(), 0);
}
