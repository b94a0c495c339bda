//! Asking routers which experts of a sparse base a request gets.

use std::sync::Arc;
use std::time::Instant;

use polyskill_adapters::Snapshot;
use polyskill_model::ModelConfig;
use polyskill_sdk::experts::ExpertProgram;
use polyskill_sdk::runtime::Fault;

use super::asking::{as_given, count, offered, refused, request_for};
use super::selection::{ComposeError, RouterRequest};
use super::versions::Link;
use super::{Composer, Parts, numbered};
use crate::composition::{Composition, LeasedModule, Plan, RouterIdentity};
use crate::experts::ExpertPlan;
use crate::health::Standing;

/// A router's programs for experts; they have been checked once.
pub(super) struct AskedExperts {
    programs: Vec<ExpertProgram>,
    /// Of the router that made them.
    digest: String,
}

impl AskedExperts {
    pub(super) fn compile(
        &self,
        snapshot: &Snapshot,
        config: &ModelConfig,
        modules: &mut Vec<LeasedModule>,
    ) -> ExpertPlan {
        ExpertPlan::compile(&self.programs, snapshot, config, modules).unwrap_or_default()
    }

    pub(super) fn text(&self) -> String {
        format!(" experts {} {:?}", self.digest, self.programs)
    }
}

impl Composer {
    /// What the first router of the chain that has something to say of a sparse base's experts says. A router that fails
    /// leaves them to the base.
    pub(super) fn asked_experts(
        &self,
        snapshot: &Snapshot,
        (asked, chain): (&RouterRequest, &[Link]),
        candidates: &[u32],
    ) -> Result<Option<AskedExperts>, ComposeError> {
        if self.expert_layers.is_empty() {
            return Ok(None);
        }
        for (at, link) in chain.iter().enumerate() {
            let slot = &link.slot;
            if slot.health.standing(Instant::now()) != Standing::Serving {
                continue;
            }
            let offered = offered(snapshot, slot, candidates);
            let request = request_for(slot, (asked, at + 1 == chain.len()), &offered);
            match slot.plan_experts(snapshot, request, &self.expert_layers) {
                Ok(programs) => {
                    let mut modules = Vec::new();
                    let plan = ExpertPlan::compile(&programs, snapshot, &self.config, &mut modules);
                    match plan {
                        Ok(_) => {
                            let digest = slot.digest.clone();
                            return Ok(Some(AskedExperts { programs, digest }));
                        }
                        Err(reason) => {
                            count(slot, asked, &reason);
                            refused(slot, &reason)?;
                        }
                    }
                }
                Err(Fault::Abstain) => {}
                Err(Fault::InvalidParameter(error)) => {
                    return Err(ComposeError::Parameter(as_given(asked, slot, error)));
                }
                Err(fault) => {
                    count(slot, asked, &fault.to_string());
                    refused(slot, &fault.to_string())?;
                }
            }
        }
        Ok(None)
    }

    /// The base with other experts, and modules beside.
    pub(super) fn experts_alone(
        &self,
        snapshot: &Snapshot,
        beside: Vec<(LeasedModule, f32)>,
        router: RouterIdentity,
        asked: &AskedExperts,
    ) -> Result<Arc<Composition>, ComposeError> {
        let (mut modules, beside) = numbered(beside, 0);
        let experts = asked.compile(snapshot, &self.config, &mut modules);
        let text = format!("{beside:?} {}", asked.text());
        let digest = self.digest(&modules, Some(&router), &text);
        let (plan, router) = (Plan::Base, Some(router));
        self.ready(Parts { digest, modules, plan, beside, router, slot: None, experts }, None)
    }
}
