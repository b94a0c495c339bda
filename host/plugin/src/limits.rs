//! What a plugin may use.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Limits of one plugin instance; all configurable.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Linear memory, of all memories of an instance together.
    pub memory_mib: usize,
    /// Instructions (wasmtime's fuel) per `plan`.
    pub plan_fuel: u64,
    /// Wall-clock time per `plan`, host calls included.
    pub plan_milliseconds: u64,
    /// Instructions per `route`.
    pub route_fuel: u64,
    /// Wall-clock time per `route`: it holds up every running request.
    pub route_milliseconds: u64,
    /// Wall-clock time of all calls of `route` in one step of up to 32 rows; a larger step has more in
    /// proportion. What is over runs without modules, and counts as a fault.
    pub step_milliseconds: u64,
    /// Instructions per `init` or `library-changed`.
    pub setup_fuel: u64,
    /// Wall-clock time per `init` or `library-changed`.
    pub setup_milliseconds: u64,
    /// Stack of a call.
    pub stack_kib: usize,
    /// Instances alive at once, over all plugins: each router has one that plans and one that decides rows.
    pub max_instances: u32,
    /// Entries of a table.
    pub table_elements: usize,
    /// Size of a plugin's file.
    pub file_mib: u64,
    /// Bytes of rows that one call may define, and that are kept of all calls.
    pub definition_mib: usize,
    /// Log messages per call; longer messages are cut.
    pub log_messages: usize,
    /// Picks that one `route` may return.
    pub route_picks: usize,
    /// Picks, programs and ops that one plan may hold.
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
    pub(crate) fn plan_budget(&self) -> Budget {
        Budget { fuel: self.plan_fuel, time: Duration::from_millis(self.plan_milliseconds) }
    }

    pub(crate) fn route_budget(&self) -> Budget {
        Budget { fuel: self.route_fuel, time: Duration::from_millis(self.route_milliseconds) }
    }

    pub(crate) fn setup_budget(&self) -> Budget {
        Budget { fuel: self.setup_fuel, time: Duration::from_millis(self.setup_milliseconds) }
    }
}

/// What one call may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub(crate) fuel: u64,
    pub(crate) time: Duration,
}
