//! The log of the last plans, from which test fixtures of routers are made.

use std::collections::VecDeque;
use std::sync::PoisonError;

use polyskill_adapters::Snapshot;
use polyskill_sdk::runtime::Fault;
use polyskill_sdk::{ModuleInfo, Request};

use super::Composer;
use crate::routers::version::RouterVersion;

/// A request that a router planned.
#[derive(Clone, Debug)]
pub struct PlannedRequest {
    /// The router's name.
    pub router: String,
    /// Digest of its code.
    pub digest: String,
    /// The request to it, with the request's own parameters and not the configured ones.
    pub request: Request,
    /// The candidates, in the order of the request.
    pub candidates: Vec<ModuleInfo>,
    /// Its answer, before it was checked.
    pub plan: Result<polyskill_sdk::Plan, Fault>,
}

/// The last plans, as many as the operator wants. Memory grows with that number and the length of
/// users' texts.
#[derive(Debug, Default)]
pub(super) struct PlanLog {
    /// Plans that are logged at most; 0 logs none.
    most: usize,
    /// The plans, oldest first.
    plans: VecDeque<PlannedRequest>,
}

impl Composer {
    /// Records the last `most` plans, with the texts that users wrote; none by default.
    pub fn keep_plans(&self, most: usize) {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).most = most;
    }

    /// The recorded plans, oldest first.
    pub fn recorded_plans(&self) -> Vec<PlannedRequest> {
        let kept = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        kept.plans.iter().cloned().collect()
    }

    /// Logs a plan over the snapshot that its candidates are numbered by. The oldest plans make
    /// room.
    pub(super) fn log_plan(
        &self,
        snapshot: &Snapshot,
        version: &RouterVersion,
        request: &Request,
        plan: &Result<polyskill_sdk::Plan, Fault>,
    ) {
        let mut kept = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.most == 0 {
            return;
        }
        let modules = self.views.modules(snapshot);
        let candidate = |index: &u32| modules.get(*index as usize).cloned();
        let candidates = request.candidates.iter().filter_map(candidate).collect();
        while kept.plans.len() >= kept.most {
            kept.plans.pop_front();
        }
        kept.plans.push_back(PlannedRequest {
            router: version.name.clone(),
            digest: version.digest.clone(),
            request: request.clone(),
            candidates,
            plan: plan.clone(),
        });
    }
}
