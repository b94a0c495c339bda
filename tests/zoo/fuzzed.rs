//! Plugins that are made up: whatever they answer, rows are usable or refused.

use polyskill_plugin::Limits;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof};
use proptest::test_runner::TestRunner;

use super::generated::Generated;
use super::{loader, written};

/// Words as they stand in decisions, and any others.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        8 => 0..12_u32,
        4 => Just(0.5_f32.to_bits()),
        1 => any::<u32>(),
        1 => any::<f32>().prop_map(f32::to_bits),
    ]
}

/// Ascending offsets first, so that some rows are right.
fn memory() -> impl Strategy<Value = Vec<u8>> {
    let steps = proptest::collection::vec(prop_oneof![9 => 0..2_u32, 1 => any::<u32>()], 0..24);
    let words = proptest::collection::vec(word(), 0..96);
    (steps, words).prop_map(|(steps, words)| {
        let mut sum = 0_u32;
        let offsets = steps.into_iter().map(|step| {
            let before = sum;
            sum = sum.wrapping_add(step);
            before
        });
        offsets.chain(words).flat_map(u32::to_le_bytes).collect()
    })
}

fn source() -> impl Strategy<Value = (u16, u16)> {
    let at = prop_oneof![3 => (0..40_u16).prop_map(|at| 4 * at), 1 => any::<u16>()];
    (at, prop_oneof![4 => 0..200_u16, 1 => any::<u16>()])
}

fn generated() -> impl Strategy<Value = Generated> {
    let offsets = prop_oneof![3 => (Just(0), 0..100_u16), 1 => source()];
    let code = || prop_oneof![6 => Just(0), 1 => 0..6, 1 => any::<i32>()];
    let sizes = (1..24_u8, 1..6_u8);
    let lie = (any::<u32>(), prop_oneof![0..9_u32, any::<u32>()]);
    (memory(), (offsets, source(), source()), lie, (code(), code()), sizes).prop_map(
        |(memory, (offsets, columns, weights), lie, codes, (num_rows, num_columns))| Generated {
            memory,
            sources: [offsets, columns, weights],
            lie,
            codes: codes.into(),
            num_rows,
            num_columns,
        },
    )
}

#[test]
fn made_up_plugins_are_usable_or_refused() {
    let loader = loader(Limits::default());
    // For a long run: `POLYSKILL_CASES=100000 cargo test --release made_up_plugins`.
    let cases = std::env::var("POLYSKILL_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = cases.unwrap_or(200);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let run = TestRunner::new(config).run(&generated(), |generated| {
        let code = wat::parse_str(generated.text()).unwrap();
        let (_directory, path) = written("generated", &code);
        generated.run(&loader, &path);
        Ok(())
    });
    run.unwrap();
}
