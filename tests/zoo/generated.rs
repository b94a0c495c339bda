//! Plugins of the flat ABI made of arbitrary bytes and numbers, and what must hold of all that they answer.
//!
//! Shared with the fuzz target `route_decision`.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use polyskill_plugin::Loader;
use polyskill_sdk::runtime::LibraryView;
use polyskill_sdk::testing::StubHost;
use polyskill_sdk::{Batch, Decision, Parameters, Request};

/// What a plugin is made from.
#[derive(Clone, Debug)]
pub(crate) struct Generated {
    /// Its memory from 4096 on; all that it writes comes from here.
    pub(crate) memory: Vec<u8>,
    /// Where offsets, columns and weights are taken from, with how many bytes.
    pub(crate) sources: [(u16, u16); 3],
    /// An address and a length that it tells the host while it plans.
    pub(crate) lie: (u32, u32),
    /// What its functions return.
    pub(crate) codes: [i32; 2],
    pub(crate) num_rows: u8,
    pub(crate) num_columns: u8,
}

impl Generated {
    /// The module's text.
    pub(crate) fn text(&self) -> String {
        let mut data = String::new();
        self.memory.iter().for_each(|byte| _ = write!(data, "\\{byte:02x}"));
        let mut copies = String::new();
        for (part, (from, bytes)) in self.sources.iter().enumerate() {
            let field = 8 + 4 * part;
            let from = 4096 + u32::from(*from);
            let _ = write!(
                copies,
                "(memory.copy (i32.load offset={field} (local.get 2)) (i32.const {from}) (i32.const {bytes}))"
            );
        }
        let (address, length) = (self.lie.0.cast_signed(), self.lie.1.cast_signed());
        let [planned, routed] = self.codes;
        let combine = length.rem_euclid(3);
        format!(
            "(module
            (import \"polyskill_v1\" \"describe\" (func $describe (param i32 i32 i32 i32 i32 i32)))
            (import \"polyskill_v1\" \"log\" (func $log (param i32 i32 i32 i32)))
            (import \"polyskill_v1\" \"error\" (func $error (param i32 i32 i32 i32 i32)))
            (import \"polyskill_v1\" \"answer_programs\" (func $programs (param i32 i32 i32)))
            (import \"polyskill_v1\" \"answer_fixed\" (func $fixed (param i32 i32 i32 i32)))
            (memory (export \"memory\") 2)
            (data (i32.const 0) \"generated\")
            (data (i32.const 4096) \"{data}\")
            (func (export \"polyskill_v1_init\") (param i32) (result i32)
                (call $describe (i32.const 0) (i32.const 0) (i32.const 9) (i32.const 0) (i32.const 1) (i32.const 1))
                (i32.const 0))
            (func (export \"polyskill_v1_plan\") (param i32 i32) (result i32)
                (call $log (i32.const 0) (i32.const {length}) (i32.const 4096) (i32.const 64))
                (call $error (i32.const 0) (i32.const 4096) (i32.const 8) (i32.const 4096) (i32.const 64))
                (call $programs (i32.const 0) (i32.const 4096) (i32.const {}))
                (call $fixed (i32.const 0) (i32.const {address}) (i32.const {length}) (i32.const {combine}))
                (i32.const {planned}))
            (func (export \"polyskill_v1_route\") (param i32 i32 i32) (result i32)
                {copies} (i32.const {routed})))",
            self.memory.len()
        )
    }

    /// Loads it from where its code was written, has it plan and decide rows twice.
    pub(crate) fn run(&self, loader: &Loader, path: &Path) {
        let plugin = loader.load(path).expect("it is well-formed");
        let (rows, columns) = (usize::from(self.num_rows), u32::from(self.num_columns));
        let view: Arc<dyn LibraryView> = Arc::new(StubHost::with_modules(columns));
        let mut router = plugin.start(&view, Parameters::default()).expect("it starts");
        let candidates: Vec<u32> = (0..columns).collect();
        if let Err(fault) = router.plan(&view, &Request::for_candidates(&candidates)) {
            assert!(fault.to_string().len() < 3_000, "{fault}");
        }
        let mut stepper = router.stepper(&view).expect("it starts");
        let scores = vec![0.5; rows * columns as usize];
        let batch =
            Batch { num_rows: rows, candidates: &candidates, scores: &scores, ..Batch::default() };
        for _ in 0..2 {
            let mut decision = Decision::default();
            if stepper.route(&batch, &mut decision).is_err() {
                return;
            }
            decision.check_rows(rows).expect("the host counts rows");
            assert!(decision.columns.len() <= rows * columns as usize);
            for row in 0..rows {
                let mut picks = Vec::new();
                if decision.row(row, columns as usize, &mut picks).is_err() {
                    continue;
                }
                assert!(picks.len() <= columns as usize, "{picks:?}");
                let usable =
                    |(column, weight): &(u32, f32)| *column < columns && weight.is_finite();
                assert!(picks.iter().all(usable), "{picks:?}");
                let mut known: Vec<u32> = picks.iter().map(|(column, _)| *column).collect();
                known.sort_unstable();
                known.dedup();
                assert_eq!(known.len(), picks.len(), "{picks:?}");
            }
        }
    }
}
