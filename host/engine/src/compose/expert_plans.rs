//! Asking routers which experts of a sparse base a request gets.

use std::sync::Arc;
use std::time::Instant;

use polyskill_adapters::Snapshot;
use polyskill_model::ModelConfig;
use polyskill_sdk::experts::ExpertProgram;
use polyskill_sdk::runtime::Fault;

use super::chain::{as_given, count, offered, refused, request_for};
use super::selection::{ComposeError, RouterRequest};
use super::versions::Link;
use super::{Composer, Parts, numbered};
use crate::compose::composition::{Composition, LeasedModule, Plan, RouterIdentity};
use crate::hooks::expert_choice::ExpertPlan;
use crate::routers::health::Standing;

/// What a router says of experts.
pub(super) struct AskedExperts {
    plan: ExpertPlan,
    policies: Vec<LeasedModule>,
    /// The programs and the router that made them, for digests.
    text: String,
}

impl AskedExperts {
    fn new(
        (programs, digest): (&[ExpertProgram], &str),
        snapshot: &Snapshot,
        config: &ModelConfig,
    ) -> Result<Self, String> {
        let (plan, policies) = ExpertPlan::compile(programs, snapshot, config)?;
        Ok(Self { plan, policies, text: format!(" experts {digest} {programs:?}") })
    }

    pub(super) fn attached(&self, modules: &mut Vec<LeasedModule>) -> ExpertPlan {
        self.plan.attached(&self.policies, modules)
    }

    pub(super) fn text(&self) -> &str {
        &self.text
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
                    match AskedExperts::new((&programs, &slot.digest), snapshot, &self.config) {
                        Ok(experts) => return Ok(Some(experts)),
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
        beside: Vec<(LeasedModule, f32)>,
        router: RouterIdentity,
        asked: &AskedExperts,
    ) -> Result<Arc<Composition>, ComposeError> {
        let (mut modules, beside) = numbered(beside, 0);
        let experts = asked.attached(&mut modules);
        let experts = experts.with_policies(beside.iter(), &modules, &self.config);
        let text = format!("{beside:?} {}", asked.text());
        let digest = self.digest(&modules, Some(&router), &text);
        let (plan, router) = (Plan::Base, Some(router));
        self.ready(Parts { digest, modules, plan, beside, router, slot: None, experts }, None)
    }
}
