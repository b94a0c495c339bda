//! Resources that a plugin may use.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Limits of one plugin instance; all configurable.
///
/// Fuel, time and memory hold for sandboxed plugins. A dynamic library is trusted with the process:
/// nothing stops its calls, and only its answers are checked.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Linear memory, of all memories of an instance together.
    ///
    /// A guest that asks for more gets the failure of `memory.grow`, not a trap.
    pub memory_mib: usize,
    /// Instructions (wasmtime's fuel) per `plan`. Unlike time, fuel runs out at the same
    /// instruction on every machine.
    pub plan_fuel: u64,
    /// Wall-clock time per `plan`, host calls included.
    pub plan_milliseconds: u64,
    /// Instructions per `route`, whatever the number of rows in the batch.
    pub route_fuel: u64,
    /// Wall-clock time per `route`: it holds up every running request.
    pub route_milliseconds: u64,
    /// Wall-clock time of all calls of `route` in one step of up to 32 rows; a larger step has more
    /// in proportion. What is over runs without modules, and counts as a fault.
    pub step_milliseconds: u64,
    /// Instructions per `init` or `library-changed`; these may look at every module's tensors.
    pub setup_fuel: u64,
    /// Wall-clock time per `init` or `library-changed`.
    pub setup_milliseconds: u64,
    /// Stack of a call, which a guest cannot exceed without a trap.
    pub stack_kib: usize,
    /// Instances alive at once, over all plugins: each router has one that plans and one that
    /// decides rows.
    ///
    /// Of the limits for all plugins; a plugin's own value is not looked at. The pool of memories
    /// is reserved for as many.
    pub max_instances: u32,
    /// Entries of a table of functions.
    pub table_elements: usize,
    /// Size of a plugin's file, and of all files of a bundle together.
    pub file_mib: u64,
    /// Bytes of rows that one call may define, and that are kept of all calls. The rows take their
    /// place in the host's memory, not in the plugin's.
    pub definition_mib: usize,
    /// Log messages per call; those beyond are left out, and longer ones are cut.
    pub log_messages: usize,
    /// Picks that one `route` may return, over all rows of the batch.
    pub route_picks: usize,
    /// Picks, candidates, programs and ops that one plan may hold, and layers of expert programs.
    pub plan_items: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_mib: 16,
            plan_fuel: 2_000_000_000,
            plan_milliseconds: 2_000,
            route_fuel: 50_000_000,
            route_milliseconds: 20,
            step_milliseconds: 30,
            setup_fuel: 20_000_000_000,
            setup_milliseconds: 30_000,
            stack_kib: 512,
            max_instances: 64,
            table_elements: 10_000,
            file_mib: 64,
            definition_mib: 512,
            log_messages: 64,
            route_picks: 1 << 20,
            plan_items: 4_096,
        }
    }
}

impl Limits {
    /// The budget of one `plan`.
    pub(crate) fn plan_budget(&self) -> Budget {
        Budget { fuel: self.plan_fuel, time: Duration::from_millis(self.plan_milliseconds) }
    }

    /// The budget of one `route`.
    pub(crate) fn route_budget(&self) -> Budget {
        Budget { fuel: self.route_fuel, time: Duration::from_millis(self.route_milliseconds) }
    }

    /// The budget of one `init` or `library-changed`, and of an instance's start code.
    pub(crate) fn setup_budget(&self) -> Budget {
        Budget { fuel: self.setup_fuel, time: Duration::from_millis(self.setup_milliseconds) }
    }
}

/// The fuel and the time that one call may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Instructions, as wasmtime counts them.
    pub(crate) fuel: u64,
    /// Wall-clock time, rounded up to whole ticks of the clock.
    pub(crate) time: Duration,
}
